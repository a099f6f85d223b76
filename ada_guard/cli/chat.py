"""A chat on a terminal. After a cut the history holds the replacement only: no next answer builds on unsafe text."""

from __future__ import annotations

import contextlib
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ada_guard.cli.inputs import checked_text
from ada_guard.cli.run import answer
from ada_guard.cli.view import TextView, note
from ada_guard.errors import ConfigError

if TYPE_CHECKING:
    from ada_guard.guard import Guard

__all__ = ["chat"]


def chat(guard: Guard, *, system: str | None, no_guard: bool, generation: dict[str, Any]) -> None:
    """Asks and answers until the user leaves.

    Args:
        guard: Whose model answers.
        system: A system prompt, if any.
        no_guard: Answer without checks.
        generation: Keyword arguments of `Guard.stream`.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and history; not on every platform
    first = [] if system is None else [{"role": "system", "content": checked_text(system, "--system")}]
    history = list(first)
    checks = "no guard" if no_guard else f"checks by {guard.checker.name}"
    print(f"Chat with {guard.model.name}, {checks}. /new starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer.")
    while (asked := _ask()) is not None:
        if asked == "/new":
            history = list(first)
            continue
        try:
            turn = {"role": "user", "content": checked_text(asked, "the input")}
            reply = _reply(guard, [*history, turn], no_guard=no_guard, generation=generation)
        except ConfigError as error:  # this turn cannot be answered, for instance because the context is full
            note(str(error))
            continue
        if reply:
            history += [turn, {"role": "assistant", "content": reply}]


def _ask() -> str | None:
    """The user's next line; None to leave."""
    while True:
        try:
            line = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return None
        except UnicodeDecodeError:
            note("that was not valid UTF-8")
            continue
        if line == "/exit":
            return None
        if line:
            return line


def _reply(guard: Guard, messages: list[dict[str, Any]], *, no_guard: bool, generation: dict[str, Any]) -> str:
    """Shows the answer and returns what the history keeps of it; empty for nothing."""
    view = TextView()
    try:
        with closing(answer(guard, messages, no_guard=no_guard, generation=generation)) as events:
            view.show(events)
    except KeyboardInterrupt:
        view.interrupt()
        print("(stopped)", file=sys.stderr)
    return (view.replacement or "") if view.cut else view.released
