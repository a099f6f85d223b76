"""Writes the report: an HTML page with everything in it, and PNGs beside it. Knows no evaluation by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ada_guard.errors import ConfigError
from ada_guard.evals.report.figures import as_png, as_svg, drawings
from ada_guard.evals.report.summary import summary
from ada_guard.evals.report.tables import tables
from ada_guard.evals.result import EvalResult

__all__ = ["write_report"]

_BREAKS = re.compile(r"(?<=[,;]) | (?=\()")


def write_report(results: Sequence[EvalResult], folder: str | Path, not_run: Mapping[str, str] | None = None) -> Path:
    """Writes ``report.html`` and ``plots/*.png``.

    The page needs nothing beside it and no network: styles and plots are in it.

    Args:
        results: In the order in which they are to be read.
        folder: Where to; made if it is not there.
        not_run: Evaluations that are missing, and why: the page says so.

    Returns:
        The page.

    Raises:
        ConfigError: There are no results.
    """
    if not results:
        raise ConfigError("a report needs at least one result")
    folder = Path(folder)
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    sections = []
    said: set[str] = set()
    names = [result.evaluation for result in results]
    for number, result in enumerate(results, start=1):
        drawn = []
        for drawing in drawings(result):
            # Two results of one evaluation, of two models say, have plots of one name.
            place = f"{number:02d}-" if names.count(result.evaluation) > 1 else ""
            (plots / f"{place}{drawing.name}.png").write_bytes(as_png(drawing.figure))
            # Our own drawing: names in it are paths of letters, not markup.
            drawn.append({"title": drawing.title, "svg": Markup(as_svg(drawing.figure))})  # noqa: S704  # see above
        notes = [note for note in result.notes if note not in said]
        said.update(notes)
        sections.append(
            {
                "anchor": f"{number}-{result.evaluation}",
                "result": result,
                "notes": notes,
                "repeated": [note for note in result.notes if note not in notes],
                "tables": tables(result),
                "drawings": drawn,
            }
        )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pieces"] = _pieces
    source = files("ada_guard.evals.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    models = ", ".join(dict.fromkeys(result.model for result in results))
    page = folder / "report.html"
    partial = page.with_name(page.name + ".partial")
    several = len({result.model for result in results}) > 1
    text = environment.from_string(source).render(
        models=models, several=several, first=summary(results), sections=sections, not_run=dict(not_run or {})
    )
    partial.write_text(text, encoding="utf-8")
    partial.replace(page)
    return page


def _pieces(cell: str) -> list[str]:
    """Parts of a cell that a line may be broken between: a count, its interval, what is missing."""
    return _BREAKS.split(cell)
