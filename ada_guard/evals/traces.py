"""The probe's scores while answers run: traces of single ones, and how well their highest scores tell the two classes.

Knows no checker and no threshold of its own: those on the probe's card are marked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np

from ada_guard.errors import ConfigError
from ada_guard.evals.cases import rows_digest
from ada_guard.evals.identity import model_digest
from ada_guard.evals.result import EvalResult, Quantity, Series, library_versions
from ada_guard.evals.systems import Progress, due_depths, silent
from ada_guard.local import LocalModel
from ada_guard.local.model import StateProbe
from ada_guard.policy import Schedule
from ada_guard.probe.cached_pass import states_at_depths
from ada_guard.probe.rates import auroc, roc, tpr_at_fpr
from ada_guard.probe.rows import LabelledResponse
from ada_guard.prompt import encode_text

__all__ = ["evaluate_traces"]

_RESAMPLED = 1000
_FPR = 0.01


def evaluate_traces(
    model: LocalModel,
    traced: Sequence[LabelledResponse],
    ranked: Sequence[LabelledResponse],
    *,
    seed: int,
    schedule: Schedule | None = None,
    tokens: int = 150,
    command: str = "",
    progress: Progress = silent,
) -> EvalResult:
    """Reads answers with the model's probe.

    Args:
        model: With a probe.
        traced: Answers whose score is drawn at every token.
        ranked: Harmful and benign answers, ranked by their highest score at the checks of the schedule.
        seed: Of the resampling.
        schedule: Whose threshold is marked, and whose checks are ranked.
        tokens: Answers are read up to here.
        command: What reproduces it.
        progress: Told of each answer.

    Raises:
        ConfigError: The model has no probe, or `ranked` has one class only.
    """
    started = time.perf_counter()
    if model.probe is None:
        raise ConfigError("traces need a probe: give --probe FILE")
    schedule = schedule or Schedule()
    threshold = model.probe.calibration.threshold_for(schedule)
    total = len(traced) + len(ranked)
    series = []
    for number, row in enumerate(traced):
        progress("traces", number, total)
        label = "harmful" if row.harmful else "benign"
        place = 1 + sum(before.harmful is row.harmful for before in traced[:number])
        trace = _trace(model, model.probe, row, f"{label} {place}", schedule, threshold, tokens)
        if all(map(isfinite, trace.y)):
            series.append(trace)
    highest, harmful, missing = [], [], 0
    for number, row in enumerate(ranked, start=len(traced)):
        progress("traces", number, total)
        ids = encode_text(model.tokenizer, row.response)[:tokens]
        scores = _scores(model, model.probe, row, ids, due_depths(schedule, len(ids)))
        if not scores or not all(map(isfinite, scores.values())):
            missing += 1
            continue
        highest.append(max(scores.values()))
        harmful.append(row.harmful)
    progress("traces", total, total)
    if len(set(harmful)) < 2:
        raise ConfigError("traces need harmful and benign responses that the probe gives scores for")
    curve, figures = _ranking(np.asarray(highest), np.asarray(harmful), seed)
    return EvalResult(
        evaluation="traces",
        title="The probe's scores",
        command=command,
        model=model.name,
        settings={"tokens": tokens, "threshold": threshold, "interval_tokens": schedule.interval_tokens},
        seed=seed,
        data={"traced": rows_digest(traced), "ranked": rows_digest(ranked), "model": model_digest(model)},
        seconds=time.perf_counter() - started,
        versions=library_versions(),
        quantities=tuple(figures),
        series=(*series, curve),
        notes=_notes(harmful, missing),
    )


def _trace(
    model: LocalModel,
    probe: StateProbe,
    row: LabelledResponse,
    name: str,
    schedule: Schedule,
    threshold: float,
    tokens: int,
) -> Series:
    ids = encode_text(model.tokenizer, row.response)[:tokens]
    scores = _scores(model, probe, row, ids, range(1, len(ids) + 1))
    cut = next((depth for depth in due_depths(schedule, len(ids)) if scores[depth] >= threshold), None)
    return Series(
        name=name,
        figure="trace",
        x_label="depth [tokens]",
        y_label="harm probability",
        x=tuple(map(float, scores)),
        y=tuple(scores.values()),
        marks={} if cut is None else {"cut": float(cut)},
        levels={"threshold": threshold},
    )


def _scores(
    model: LocalModel, probe: StateProbe, row: LabelledResponse, ids: Sequence[int], depths: Iterable[int]
) -> dict[int, float]:
    point = probe.hook_point
    found = states_at_depths(model, row.messages, ids, depths, [point])
    device = model.model.device
    return {depth: probe.harm_probability(states[point.layer].to(device)) for depth, states in found}


def _notes(harmful: Sequence[bool], missing: int) -> tuple[str, ...]:
    benign = harmful.count(False)
    said = [
        "Traces: the harm probability at every token; the dashed line is the threshold, the dotted one the check that "
        "cuts the stream. ROC: a response counts by its highest score at any check.",
        f"{harmful.count(True)} harmful and {benign} benign responses. Intervals are resampled; where the two kinds do "
        "not overlap there is none.",
    ]
    if benign < 1 / _FPR:
        said.append(f"With {benign} benign responses a false-positive rate of at most {_FPR:.0%} is one of none.")
    if missing:
        said.append(f"{missing} responses have no score: they are missing.")
    return tuple(said)


def _ranking(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], harmful: np.ndarray[tuple[int], np.dtype[np.bool_]], seed: int
) -> tuple[Series, list[Quantity]]:
    false, true = roc(scores, harmful)
    found = (
        ("AUROC, by response", auroc(scores, harmful)),
        (f"harmful found at a false-positive rate of {_FPR:.0%}, by response", tpr_at_fpr(scores, harmful, _FPR)),
    )
    # Where the kinds do not overlap every resample says the same: that would be an interval of no width.
    overlap = scores[~harmful].max() >= scores[harmful].min()
    ends = _resampled(scores, harmful, seed) if overlap else [(None, None)] * len(found)
    figures = [
        Quantity(what=what, system="probe", value=value, low=low, high=high, n=len(scores))
        for (what, value), (low, high) in zip(found, ends, strict=True)
    ]
    curve = Series(
        name="probe",
        figure="roc",
        x_label="benign responses with any flag",
        y_label="harmful responses with any flag",
        x=tuple(map(float, false)),
        y=tuple(map(float, true)),
    )
    return curve, figures


def _resampled(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], harmful: np.ndarray[tuple[int], np.dtype[np.bool_]], seed: int
) -> list[tuple[float | None, float | None]]:
    """95 % intervals of both figures, by resampling each kind. Source: Efron's percentile bootstrap."""
    rng = np.random.default_rng(seed)
    bad, good = scores[harmful], scores[~harmful]
    labels = np.arange(len(scores)) < len(bad)
    made = []
    for _ in range(_RESAMPLED):
        drawn = np.concatenate([rng.choice(bad, len(bad)), rng.choice(good, len(good))])
        made.append((auroc(drawn, labels), tpr_at_fpr(drawn, labels, _FPR)))
    low, high = np.quantile(np.asarray(made), [0.025, 0.975], axis=0)
    return [(float(low[i]), float(high[i])) for i in range(2)]
