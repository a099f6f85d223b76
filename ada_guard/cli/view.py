"""Shows the events of one stream: as JSON lines, or as text with a summary on stderr. Knows no model and no policy."""

from __future__ import annotations

import io
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from ada_guard.delta import Channel
from ada_guard.events import Check, Done, Event, Halt, Release, Replace

__all__ = ["TextView", "colours", "hanging", "note", "print_json", "printable", "show_json", "summary"]

# C0 and C1 controls, without tab and newline: on a terminal they would let a model move the cursor or set the title.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """The text without characters that steer a terminal."""
    return text.translate(_CONTROLS)


def colours(stream: Any) -> bool:
    """Whether to colour what is written to a stream. NO_COLOR: https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def hanging(label: str, text: str, *, indent: int, width: int) -> str:
    """A label and its text, wrapped and indented behind it; line breaks in the text are kept."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += textwrap.wrap(line, width - indent, break_on_hyphens=False) or [""]
    return "\n".join(f"{label if i == 0 else '':<{indent}}{line}".rstrip() for i, line in enumerate(lines))


def note(text: str) -> None:
    """A line on stderr."""
    print(f"ada-guard: {text}", file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One object on a line of stdout, at once."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the locale
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def show_json(events: Iterable[Event]) -> None:
    """Prints each event as it comes."""
    for event in events:
        print_json(event.to_dict())


class TextView:
    """Writes released text as it is released, and a cut clearly set off.

    Attributes:
        released: What was shown, without the replacement.
        replacement: The replacement, or None without a cut.
        cut: Whether the stream was cut.
    """

    def __init__(self) -> None:
        self.released = ""
        self.replacement: str | None = None
        self.cut = False
        self._checks: list[Check] = []
        self._at_line_start = True
        self._channel: Channel = "text"

    def show(self, events: Iterable[Event]) -> None:
        """Shows each event as it comes, and the summary after the last one."""
        for event in events:
            if isinstance(event, Release):
                self._release(event)
            elif isinstance(event, Check):
                self._checks.append(event)
            elif isinstance(event, Halt):
                self.cut = True
                self._new_line()
                self._write(f"--- cut at depth {event.depth} ---\n", style="1;31")
            elif isinstance(event, Replace):
                self.replacement = event.text
                self._write(event.text)
            elif isinstance(event, Done):
                self._new_line()
                note(summary(event, self._checks))

    def interrupt(self) -> None:
        """Ends the line after Ctrl-C."""
        self._new_line()

    def _release(self, event: Release) -> None:
        """Text and refusals as they are; reasoning dimmed and tool calls named, on lines of their own."""
        if event.channel != self._channel:
            self._channel = event.channel
            self._new_line()
        if event.channel in ("text", "refusal"):
            self.released += event.text
            self._write(event.text)
        elif event.call is not None:
            self._write(f"[calls {event.call.name}({event.text})]\n", style="36")
        else:
            self._write(event.text, style="2")

    def _new_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str, *, style: str = "") -> None:
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if sys.stdout.isatty():
            text = printable(text)
        if style and colours(sys.stdout):
            text = f"\x1b[{style}m{text}\x1b[0m"
        sys.stdout.write(text)
        sys.stdout.flush()


def summary(done: Done, checks: Iterable[Check]) -> str:
    """The stream in one line, without any of its text."""
    made = list(checks)
    tokens = f"{done.generated_tokens} tokens generated, {done.released_tokens} shown"
    if not made:  # no checks: there was no guard, or nothing to check
        return f"{tokens}{', unguarded' if done.released_tokens else ''} · {done.wall_ms:.0f} ms"
    outcome = "passed" if all(check.decision == "pass" for check in made) else "flagged, not cut"
    if done.finish_reason == "content_filter" and any(check.decision != "pass" for check in made):
        outcome = f"cut ({made[-1].reason or made[-1].decision})"
    elif any(check.decision == "unchecked" for check in made):
        outcome = "partly unchecked"
    known = [check.harm_probability for check in made if check.harm_probability is not None]
    highest = f", harm probability up to {max(known):.2f}" if known else ""
    share = done.check_ms / done.wall_ms if done.wall_ms else 0.0
    return (
        f"{outcome} · {tokens}, {done.unchecked_released_tokens} of them unchecked · "
        f"{done.checks} check{'s' * (done.checks != 1)} by {made[-1].checker}{highest} · "
        f"{done.check_ms:.0f} of {done.wall_ms:.0f} ms in checks ({share:.0%})"
    )
