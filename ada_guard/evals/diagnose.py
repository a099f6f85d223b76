"""How deep a model's alignment goes: divergence from its base by token, and what prefixes do to both. Knows no guard.

Source: Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (arXiv 2406.05946), section 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

from ada_guard.errors import ConfigError
from ada_guard.evals.cases import rows_digest
from ada_guard.evals.identity import model_digest
from ada_guard.evals.judges import Judge, NotRefusedJudge
from ada_guard.evals.kl import KLProfiles, Resampled, Values, kl_by_token, require_one_vocabulary
from ada_guard.evals.prefix_sweeps import HARMFUL_PREFILLS, REFUSAL_PREFIXES, sweep_harmful, sweep_refusal
from ada_guard.evals.result import EvalResult, Quantity, Series, library_versions
from ada_guard.local import LocalModel
from ada_guard.probe.rows import LabelledResponse
from ada_guard.refusals import RefusalMatcher

__all__ = ["evaluate_diagnose"]

FIRST_TOKENS = (1, 5, 10)
LATE = (25, 100)
"""0-based positions that stand for the body of an answer."""

Progress = Callable[[str, int, int], None]


def evaluate_diagnose(
    aligned: LocalModel,
    base: LocalModel,
    rows: Iterable[LabelledResponse],
    *,
    judge: Judge,
    seed: int,
    positions: int = 100,
    max_new_tokens: int = 48,
    command: str = "",
    progress: Progress = lambda phase, done, total: None,
) -> EvalResult:
    """Per-token divergence over harmful answers, refusal-prefix and harmful-prefix sweeps, starts of refusals.

    Args:
        aligned: The chat model; its template is applied to both.
        base: The model it was tuned from, as `ada_guard.evals.kl.load_base` loads it.
        rows: Harmful answers to harmful requests; benign answers that are no refusals give a second
            curve to compare with, where there are any.
        judge: Who says what is harmful.
        seed: Of the sampling and the resampling.
        positions: Tokens of each answer that are compared.
        max_new_tokens: Most tokens of each sampled continuation.
        command: What reproduces it.
        progress: Told a phase, how much of it is done, and how much there is.

    Raises:
        ConfigError: Different vocabularies, no harmful row, one model twice, or settings out of range.
    """
    started = time.perf_counter()
    if positions < 1 or max_new_tokens < 1:
        raise ConfigError("positions and max_new_tokens must be at least 1")
    require_one_vocabulary(aligned, base)
    matcher = RefusalMatcher()
    everything = list(rows)
    harmful = [row for row in everything if row.harmful]
    benign = [row for row in everything if not row.harmful and matcher.first_refusal(row.response) is None]
    if not harmful:
        raise ConfigError("diagnose needs harmful rows: answers to harmful requests, labelled harmful")
    notes = [
        "The aligned model's chat template is applied to both models: they see the same tokens.",
        "Intervals of the divergence are bootstrapped over prompts; with few prompts they are too narrow.",
        "Continuations behind a harmful prefill are judged without the prefill.",
    ]
    if base.name == "reference-base":
        notes.append(
            "The reference model's base has never read a refusal, as bases trained on the web have: a refusal's first "
            "words do not stop it from going on."
        )
    if isinstance(judge, NotRefusedJudge):
        notes.append(
            "The judge looks for refusal phrases: behind a refusal prefix it cannot tell, and all are missing."
        )
    groups = {"harmful": harmful, "benign": benign}
    total = sum(map(len, groups.values()))
    series: list[Series] = []
    quantities: list[Quantity] = []
    done = 0
    for label, group in groups.items():
        profiles: list[Values] = []
        prompts: list[str] = []
        for row in group:
            profile = kl_by_token(aligned, base, row.messages, row.response, positions=positions)
            done += 1
            progress("divergence", done, total)
            if len(profile) and np.isfinite(profile).all():
                profiles.append(profile)
                prompts.append(row.prompt_id)
        if missing := len(group) - len(profiles):
            notes.append(f"{missing} of {len(group)} {label} answers gave no finite divergence and are left out.")
        if profiles:
            found = KLProfiles(profiles, prompts, seed=seed)
            if not found.mean.any():
                raise ConfigError("the two models do not differ: give the aligned model and the base it was tuned from")
            series.append(_curve(found, label))
            quantities += _figures(found, label)
    cases = [(row.messages, row.response) for row in harmful]
    steps = len(REFUSAL_PREFIXES) + len(HARMFUL_PREFILLS)
    swept = 0

    def told() -> None:
        nonlocal swept
        swept += 1
        progress("prefixes", swept, steps)

    counts = sweep_refusal(base, cases, judge, max_new_tokens=max_new_tokens, seed=seed, told=told)
    counts += sweep_harmful(aligned, cases, judge, max_new_tokens=max_new_tokens, seed=seed, told=told)
    return EvalResult(
        evaluation="diagnose",
        title="How deep the alignment goes",
        command=command,
        model=aligned.name,
        settings={
            "base": base.name,
            "judge": judge.name,
            "positions": positions,
            "max_new_tokens": max_new_tokens,
            "temperature": 0.9,
            "top_p": 0.6,
        },
        seed=seed,
        data={
            **{label: rows_digest(group) for label, group in groups.items() if group},
            "model": model_digest(aligned),
            "base": model_digest(base),
        },
        seconds=time.perf_counter() - started,
        versions=library_versions(),
        counts=tuple(counts),
        quantities=tuple(quantities),
        series=tuple(series),
        notes=tuple(notes),
    )


def _curve(found: KLProfiles, label: str) -> Series:
    low, high = found.intervals()
    return Series(
        name=f"{label} answers",
        figure="kl",
        x_label="position in the answer [tokens]",
        y_label="KL(aligned || base) [nats]",
        x=tuple(float(position + 1) for position in range(len(found.mean))),
        y=tuple(map(float, found.mean)),
        low=tuple(map(float, low)),
        high=tuple(map(float, high)),
    )


def _figures(found: KLProfiles, label: str) -> list[Quantity]:
    tokens = len(found.mean)

    def quantity(what: str, figure: Resampled, unit: str = "", **where: int) -> Quantity:
        return Quantity(
            what=what,
            system="aligned against base",
            where={"answers": label, **where},
            value=figure.value,
            low=figure.low,
            high=figure.high,
            n=found.n,
            unit=unit,
        )

    of_first = [first for first in FIRST_TOKENS if first < tokens]
    figures = [
        quantity("share of the total KL", found.share_within(first), first_tokens=first, of_tokens=tokens)
        for first in of_first
    ]
    start, stop = LATE[0], min(LATE[1], tokens)
    figures += [
        quantity("mean KL", found.mean_over(0, first), "nats", from_token=1, to_token=first) for first in of_first
    ]
    if start < tokens:
        figures.append(quantity("mean KL", found.mean_over(start, stop), "nats", from_token=start + 1, to_token=stop))
        figures.append(
            quantity(
                "mean KL of the first 5 tokens to that of the late ones",
                found.ratio(5, start, stop),
                from_token=start + 1,
                to_token=stop,
            )
        )
    return figures
