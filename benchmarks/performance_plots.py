"""The pictures of `docs/performance.md`, drawn from saved results.

A picture says in its metadata of which data it is: whether it is stale can be told without drawing it again, on any
machine, and with any version of matplotlib.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from performance_results import MACHINES, Results

__all__ = ["PICTURES", "Picture", "is_fresh", "write"]

Data: TypeAlias = dict[str, Any]
COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colour-blind readers can tell them apart. Source: Okabe and Ito (2008)."""
LINES = {
    "unguarded": "our step, no check",
    "fused": "fused check at every token",
    "rethink": "fused rethink, first token",
    "separate": "check in a pass of its own",
    "no_shortcuts": "fused, without shortcuts",
    "concatenated": "fused, cache copied for every token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of results.

    Attributes:
        says: What it shows, for those who do not see it.
        data: What is drawn, as JSON types; empty if no result has it.
        draw: Draws it into a figure.
    """

    says: str
    data: Callable[[Results], Data]
    draw: Callable[[Any, Data], None]


def is_fresh(results: Results, name: str, path: Path) -> bool:
    """Whether the file is of the data as they are; where there are none, whether there is no file."""
    data = PICTURES[name].data(results)
    if not data:
        return not path.exists()
    return path.exists() and _digest(data) in path.read_text(encoding="utf-8")


def write(results: Results, name: str, path: Path) -> None:
    """Draws a picture; removes it where there is nothing to be drawn."""
    data = PICTURES[name].data(results)
    if not data:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_drawn(PICTURES[name], data), encoding="utf-8")


def _digest(data: Data) -> str:
    return "data sha256:" + hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _drawn(picture: Picture, data: Data) -> str:
    """As SVG; the same text for the same data and the same matplotlib."""
    import matplotlib as mpl

    # Text stays text: whoever shows the picture has fonts, and the file does not depend on ours.
    settings = {"svg.hashsalt": "ada-guard", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with mpl.rc_context(settings):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasSVG(figure)
        picture.draw(figure, data)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Title": picture.says, "Description": _digest(data)}
        figure.savefig(file, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _steps(results: Results) -> Data:
    """Machine -> contender -> depth, ratio and quartiles of each point."""
    found: Data = {}
    for machine in MACHINES:
        saved = results.load("decode_step", machine)
        for row in saved["rows"] if saved else ():
            if row["family"] == "llama" and row["contender"] in LINES:
                point = [row["depth"], *_rounded(row["to_generate"], *row["to_generate_quartiles"])]
                found.setdefault(machine, {}).setdefault(row["contender"], []).append(point)
    return found


def _draw_steps(figure: Any, data: Data) -> None:
    panels = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
    for axes, (machine, lines) in zip(panels, data.items(), strict=True):
        for number, (name, points) in enumerate(lines.items()):
            depths, ratios, low, high = (list(each) for each in zip(*sorted(points), strict=True))
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(depths, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(depths, ratios, marker="o", markersize=4, color=colour, label=LINES[name])
        axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        depths = sorted({point[0] for points in lines.values() for point in points})
        axes.set_xticks(depths, [f"{depth:,}" for depth in depths])
        axes.minorticks_off()
        axes.set(xlabel="depth, tokens", ylim=(0, None), title={"cpu": "CPU", "cuda": "CUDA"}[machine])
    panels[0].set_ylabel("a step, to one of generate")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)


def _stream(results: Results) -> Data:
    """Machine -> throughput of each contender to that of ``generate``, with its range."""
    found: Data = {}
    for machine in MACHINES:
        if saved := results.load("whole_stream", machine):
            found[machine] = [
                [row["contender"], *_rounded(row["throughput_to_generate"], *row["throughput_range"])]
                for row in saved["rows"]
            ]
    return found


def _draw_stream(figure: Any, data: Data) -> None:
    panels = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
    for axes, (machine, bars) in zip(panels, data.items(), strict=True):
        names, ratios, low, high = (list(each) for each in zip(*bars, strict=True))
        off = [[r - a for r, a in zip(ratios, low, strict=True)], [b - r for r, b in zip(ratios, high, strict=True)]]
        axes.barh(names, ratios, xerr=off, color=_colours(names), height=0.7, error_kw={"linewidth": 0.8})
        axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlabel="tokens/s of a whole answer, to generate", title={"cpu": "CPU", "cuda": "CUDA"}[machine])
    panels[0].invert_yaxis()


def _guards(results: Results) -> Data:
    """For each guard: first text in ms, and tokens shown from the violation on and generated behind it."""
    saved = results.load("streaming_guards")
    rows = [row for row in saved["rows"] if "total_ratio" in row] if saved else []
    if not rows:
        return {}
    bars = []
    for row in rows:
        if row.get("process") == "nemo" and row["system"] == "none":
            continue  # the same unguarded stream, seen from the other process
        costs = "" if row["check_ms"] is None else f", check of {row['check_ms']:g} ms"
        first = (row["first_text_ms"] or {"median": 0.0})["median"]
        shown, after = row["shown_from_violation"]["median"], row["generated_after_violation"]["median"]
        bars.append([f"{row['system']}: {row['setting']}{costs}", *_rounded(first, shown, after)])
    return {"bars": bars}


def _draw_guards(figure: Any, data: Data) -> None:
    names = [name for name, *_ in data["bars"]]
    figure.set_size_inches(11, 0.9 + 0.3 * len(names))
    titles = ("first text, ms", "tokens shown from\nthe violation on", "tokens generated\nbehind it")
    panels = figure.subplots(1, 3, sharey=True)
    # Two contenders may have the same name: places are numbers.
    places = list(range(len(names)))
    for column, (axes, title) in enumerate(zip(panels, titles, strict=True), start=1):
        values = [bar[column] for bar in data["bars"]]
        drawn = axes.barh(places, values, color=_colours(names), height=0.7)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=2, fontsize=8)
        axes.set_title(title)
        axes.margins(x=0.18)
    panels[0].set_yticks(places, names)
    panels[0].invert_yaxis()


def _streams(results: Results) -> Data:
    """Machine -> what was loaded and how many tokens are new at a check -> streams, checks/s alone and in the pool."""
    found: Data = {}
    for machine in MACHINES:
        saved = results.load("pool", machine)
        for row in saved["rows"] if saved else ():
            rate = row["checks_per_s"]
            point = [row["streams"], *_rounded(rate["alone"], rate["pool"])]
            new = row["new_tokens"]
            line = f"{new} new token{'' if new == 1 else 's'} a check, {row.get('loaded', 'whole')}"
            found.setdefault(machine, {}).setdefault(line, []).append(point)
    return found


def _draw_streams(figure: Any, data: Data) -> None:
    panels = figure.subplots(1, len(data), squeeze=False)[0]
    for axes, (machine, lines) in zip(panels, data.items(), strict=True):
        for number, (line, points) in enumerate(lines.items()):
            streams, alone, pool = (list(each) for each in zip(*sorted(points), strict=True))
            colour = COLOURS[1 + number]
            axes.plot(streams, pool, marker="o", markersize=4, color=colour, label=line)
            axes.plot(streams, alone, color=colour, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in lines.values() for point in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="streams at once", ylim=(0, None), title={"cpu": "CPU", "cuda": "CUDA"}[machine])
    panels[0].set_ylabel("checks a second (dotted: one at a time)")
    panels[0].legend(loc="upper left", frameon=False)


def _rounded(*values: float) -> list[float]:
    """To what can be seen."""
    return [float(f"{value:.4g}") for value in values]


def _colours(names: list[str]) -> list[str]:
    """Ours and everybody else's."""
    ours = ("probe", "cascade", "rethink", "companion", "ada-guard")
    return [COLOURS[1] if name.startswith(ours) else COLOURS[0] for name in names]


PICTURES: Mapping[str, Picture] = {
    "step": Picture(
        says="A decode step with a check at every token, to a step of generate, by depth", data=_steps, draw=_draw_steps
    ),
    "stream": Picture(says="Throughput of whole guarded answers, to generate", data=_stream, draw=_draw_stream),
    "guards": Picture(
        says="Time to first text, tokens shown and tokens generated after a violation, by guard",
        data=_guards,
        draw=_draw_guards,
    ),
    "streams": Picture(says="Checks a second by the number of companion streams", data=_streams, draw=_draw_streams),
}
"""Name of the file -> picture."""
