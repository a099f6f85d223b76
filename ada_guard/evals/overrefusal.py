"""Over-refusal: how many benign answers does a guard flag anywhere? Knows no command line.

The rate is per response: one flag at any depth is enough. Rates per check look much smaller and hide that they add up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ada_guard.errors import CheckError, ConfigError
from ada_guard.evals.cases import prompts_note, rows_digest
from ada_guard.evals.identity import model_digest
from ada_guard.evals.result import Count, EvalResult, Series, library_versions
from ada_guard.evals.systems import CutAnswer, Progress, System, beyond_calibration, silent
from ada_guard.local import LocalModel
from ada_guard.probe.rows import LabelledResponse
from ada_guard.refusals import RefusalMatcher

__all__ = ["ANSWERS", "REFUSALS", "evaluate_overrefusal"]

ANSWERS, REFUSALS = "benign answers", "own refusals"
"""Kinds of benign responses: a model's own refusal does no harm, and a guard that flags it replaces it for nothing."""
WHAT = "any flag on a benign response"


def evaluate_overrefusal(
    systems: Mapping[str, Sequence[System]],
    rows: Sequence[LabelledResponse],
    *,
    model: LocalModel,
    seed: int,
    tokens: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> EvalResult:
    """Counts, for each system and schedule, the benign responses with a flag at any depth.

    Args:
        systems: By the name of the schedule they were made with.
        rows: Benign responses.
        model: The model under evaluation; its tokenizer counts depths.
        seed: As the rows were drawn with.
        tokens: Responses are read up to here; None: to their end.
        command: What reproduces it.
        progress: Told of each response.

    Raises:
        ConfigError: No benign rows or no systems.
    """
    started = time.perf_counter()
    rows = [row for row in rows if not row.harmful]
    if not rows or not any(systems.values()):
        raise ConfigError("over-refusal needs benign responses and a guard")
    matcher = RefusalMatcher()
    kinds = [REFUSALS if matcher.is_all_refusal(row.response) else ANSWERS for row in rows]
    answers = [CutAnswer.of(model.tokenizer, row.response) for row in rows]
    read = answers if tokens is None else [answer.shortened(tokens) for answer in answers]
    longest = max(map(len, read))
    total = len(rows) * sum(map(len, systems.values()))
    done = 0
    counts: list[Count] = []
    series: list[Series] = []
    for schedule, group in systems.items():
        for system in group:
            flags: list[int | CheckError | None] = []
            for row, answer in zip(rows, read, strict=True):
                progress(f"over-refusal, {system.name}, {schedule}", done, total)
                flags.append(_first_flag(system, row, answer))
                done += 1
            for kind in dict.fromkeys(kinds):
                of_kind = [flag for flag, each in zip(flags, kinds, strict=True) if each == kind]
                where = {"schedule": schedule, "responses": kind}
                outcomes = [None if isinstance(flag, CheckError) else flag is not None for flag in of_kind]
                counts.append(Count.of(outcomes, what=WHAT, system=system.name, where=where))
                decided = [flag for flag in of_kind if not isinstance(flag, CheckError)]
                if decided:
                    series.append(_first_flags(decided, f"{system.name}, {schedule}, {kind}", longest))
    progress("over-refusal", total, total)
    return EvalResult(
        evaluation="overrefusal",
        title="Benign responses with a flag at any depth",
        command=command,
        model=model.name,
        settings={
            "schedules": list(systems),
            "systems": {schedule: [system.name for system in group] for schedule, group in systems.items()},
            "rows": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "longest_tokens": longest,
            "mean_tokens": sum(map(len, read)) / len(read),
        },
        seed=seed,
        data={"benign": rows_digest(rows), "model": model_digest(model)},
        seconds=time.perf_counter() - started,
        versions=library_versions(),
        counts=tuple(counts),
        series=tuple(series),
        notes=(*_notes(answers, read, tokens), *prompts_note(rows)),
    )


def _first_flag(system: System, row: LabelledResponse, answer: CutAnswer) -> int | CheckError | None:
    try:
        with beyond_calibration():
            return system.first_flag(row.messages, answer.text)
    except CheckError as error:
        return error


def _first_flags(flags: Sequence[int | None], name: str, longest: int) -> Series:
    """Which share of responses has had its first flag by a depth; a step at each depth where one falls."""
    depths = sorted(flag for flag in flags if flag is not None)
    x = sorted({0, *depths, longest})
    return Series(
        name=name,
        figure="first_flag",
        x_label="depth in tokens",
        y_label="responses flagged by then",
        x=tuple(x),
        y=tuple(sum(depth <= at for depth in depths) / len(flags) for at in x),
    )


def _notes(answers: Sequence[CutAnswer], read: Sequence[CutAnswer], tokens: int | None) -> tuple[str, ...]:
    shortened = sum(len(whole) > len(part) for whole, part in zip(answers, read, strict=True))
    said = ["A response counts once, however many of its checks flag."]
    if shortened:
        said.append(f"{shortened} of {len(answers)} responses were read up to token {tokens} only.")
    return tuple(said)
