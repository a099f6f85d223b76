"""Saved results as `docs/performance.md` needs them: one that is missing is said to be missing, never made up.

Loads no torch and measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["MACHINES", "SCRIPTS", "Results", "Saved", "made_by", "number", "pick", "table", "times"]

Saved: TypeAlias = dict[str, Any]
SCRIPTS = ("decode_step", "whole_stream", "streaming_guards", "pool", "machinery")
"""Names of results; each has a script of that name."""
MACHINES = {"cpu": "", "cuda": ".cuda"}


@dataclass(frozen=True, slots=True)
class Results:
    """A folder of results.

    Attributes:
        folder: Holds ``<name>.json``, and ``<name>.cuda.json`` from a CUDA machine.
    """

    folder: Path

    def load(self, name: str, machine: str = "cpu") -> Saved | None:
        """A result, or None if it was not measured on that kind of machine."""
        path = self.folder / f"{name}{MACHINES[machine]}.json"
        if not path.exists():
            return None
        saved: Saved = json.loads(path.read_text(encoding="utf-8"))
        return saved

    def blocks(self, name: str, block: Callable[[Saved], str]) -> str:
        """A block for each kind of machine that the result is there from; a line in its place if there is none."""
        found = [saved for machine in MACHINES if (saved := self.load(name, machine)) is not None]
        if not found:
            return f"*Not measured yet: `python benchmarks/{name}.py`.*"
        return "\n\n".join(f"{block(saved)}\n\n{made_by(saved)}" for saved in found)

    def missing(self) -> str:
        """What was not measured, and where."""
        cpu = [name for name in SCRIPTS if self.load(name) is None]
        cuda = [name for name in SCRIPTS if self.load(name, "cuda") is None]
        lines = []
        if cuda == list(SCRIPTS):
            lines.append(
                "- **A CUDA machine.** None of these figures is from one, and the bars for a datacentre GPU are open. "
                "The scripts take `--device cuda`; their results would stand beside those of the CPU."
            )
        elif cuda:
            lines.append(f"- On a CUDA machine: {_scripts(cuda)}.")
        if cpu:
            lines.append(f"- On a CPU: {_scripts(cpu)}.")
        return "\n".join(lines) or "Every script was run on a CPU and on a CUDA machine."


def _scripts(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}.py`" for name in names)


def made_by(saved: Saved) -> str:
    """On what, with what and how a result was made."""
    machine = saved.get("machine") or saved.get("device")
    versions = saved.get("versions") or {name: saved[name] for name in ("torch", "transformers") if name in saved}
    about = [str(machine), ", ".join(f"{name} {value}" for name, value in versions.items()), f"`{saved['command']}`"]
    if commit := saved.get("commit"):
        about.append(f"commit {commit}")
    return f"<small>{'; '.join(filter(None, about))}</small>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def pick(rows: Iterable[Mapping[str, Any]], **where: Any) -> Mapping[str, Any] | None:
    """The first row with these values; None if there is none."""
    return next((row for row in rows if all(row.get(name) == value for name, value in where.items())), None)


def times(value: float | None, spread: Sequence[float] | None = None) -> str:
    """A ratio, with its quartiles if they are given."""
    if value is None:
        return ""
    ends = f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else ""
    return f"{value:.2f}x{ends}"


def number(value: float | None, unit: str = "") -> str:
    """With about three digits; nothing for None."""
    if value is None:
        return ""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{value:,.{digits}f}{unit}"
