"""Draws the checks of one stream, a row each, with the threshold as a line. Data in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from ada_guard.events import Check

__all__ = ["bar_chart", "sparkline"]

_BAR_START, _BAR_WIDTH = 12, 40
_EIGHTHS = " ▏▎▍▌▋▊▉"
_SPARKS = "▁▂▃▄▅▆▇█"
_MARKS = {"pass": ("passed", "green"), "flag": ("✖ flagged", "bold red"), "unchecked": ("? not checked", "yellow")}


def bar_chart(checks: Sequence[Check], *, prefill_tokens: int = 0) -> list[Text]:
    """A heading and one line a check, at most 78 columns wide.

    Args:
        checks: In order; those without a harm probability get no bar.
        prefill_tokens: A check at this depth is marked as that of the prefill.
    """
    threshold = next((check.threshold for check in checks if check.threshold is not None), None)
    return [Text(_heading(threshold), style="dim"), *(_row(check, threshold, prefill_tokens) for check in checks)]


def sparkline(checks: Sequence[Check]) -> str:
    """The harm probabilities as one small block each; full height is 1."""
    values = [check.harm_probability for check in checks if check.harm_probability is not None]
    return "".join(_SPARKS[min(7, int(value * 8))] for value in values)


def _heading(threshold: float | None) -> str:
    """The names of the columns, and the threshold's above its line: to the left of it where there is room."""
    names = "depth  harm probability"
    if threshold is None:
        return names
    at, label = _BAR_START + _column(threshold), f"threshold {threshold:.2f}"
    if len(names) + 2 + len(label) < at:
        return names + f"{label} ┐".rjust(at + 1 - len(names))
    return f"{names if len(names) < at else 'depth  harm':<{at}}┌ {label}"


def _column(probability: float) -> int:
    """The column of the bar area that a probability falls into."""
    return min(_BAR_WIDTH - 1, int(probability * _BAR_WIDTH))


def _row(check: Check, threshold: float | None, prefill_tokens: int) -> Text:
    mark, style = _MARKS[check.decision]
    probability = check.harm_probability
    row = Text(f"{check.depth:5}  ")
    row.append("   - " if probability is None else f"{probability:.2f} ")
    bar = list(_bar(probability or 0.0).ljust(_BAR_WIDTH))
    if threshold is not None and bar[_column(threshold)] == " ":
        bar[_column(threshold)] = "│"
    row.append("".join(bar), style=style)
    where = " (the prefill)" if prefill_tokens and check.depth == prefill_tokens else ""
    row.append(f"  {mark}{where}", style=style)
    return row


def _bar(probability: float) -> str:
    eighths = round(probability * _BAR_WIDTH * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
