"""A chat on a terminal. After a cut the history holds the replacement only: no next answer builds on unsafe text."""

from __future__ import annotations

import contextlib
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeAlias

from ada_guard.cli.inputs import checked_text
from ada_guard.cli.view import TextView, note
from ada_guard.errors import CheckError, ConfigError, GenerationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ada_guard.events import Event
    from ada_guard.guard import Messages

    Answer: TypeAlias = Callable[[Messages], Generator[Event, None, None]]

__all__ = ["chat"]


def chat(answer: Answer, *, title: str, system: str | None) -> None:
    """Asks and answers until the user leaves.

    Args:
        answer: Gives the events of an answer to messages.
        title: Who answers, and who checks.
        system: A system prompt, if any.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and history; not on every platform
    first = [] if system is None else [{"role": "system", "content": checked_text(system, "--system")}]
    history = list(first)
    print(f"Chat with {title}. /new starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer.")
    while (asked := _ask()) is not None:
        if asked == "/new":
            history = list(first)
            continue
        try:
            turn = {"role": "user", "content": checked_text(asked, "the input")}
            reply = _reply(answer, [*history, turn])
        except (ConfigError, CheckError, GenerationError) as error:  # of this turn: the next one may do better
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


def _reply(answer: Answer, messages: list[dict[str, Any]]) -> str:
    """Shows the answer and returns what the history keeps of it; empty for nothing."""
    view = TextView()
    try:
        with closing(answer(messages)) as events:
            view.show(events)
    except KeyboardInterrupt:
        view.interrupt()
        print("(stopped)", file=sys.stderr)
    return (view.replacement or "") if view.cut else view.released
