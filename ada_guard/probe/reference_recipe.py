"""The recipe that needs no download: rows in the reference model's language, with its own answers if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ada_guard.local import LocalModel
from ada_guard.probe.generate import Sampling, answer
from ada_guard.probe.rows import LabelledResponse, Split
from ada_guard.reference.data import strays
from ada_guard.reference.rows import Answering, reference_rows
from ada_guard.refusals import RefusalMatcher

__all__ = ["reference_answering", "reference_recipe"]

_SHARES: dict[Split, float] = {"fit": 0.5, "validation": 0.25, "test": 0.25}
_KINDS, _OWN_KINDS = 4, 2
"""Of rows that `reference_rows` gives: without the model, and in addition with it."""


def reference_recipe(
    *, count: int = 600, seed: int = 0, model: LocalModel | None = None, sampling: Sampling | None = None
) -> list[LabelledResponse]:
    """About so many rows of all kinds: half for the fit, a quarter for the validation, a quarter for the test.

    Args:
        count: Rows; at least one of each kind and split.
        seed: Of topics, wordings, texts and answers.
        model: The reference model; writes answers and refusals of its own.
        sampling: How these are sampled.
    """
    kinds = _KINDS if model is None else _KINDS + _OWN_KINDS
    answering = None if model is None else reference_answering(model, sampling or Sampling())
    rows: list[LabelledResponse] = []
    for split, share in _SHARES.items():
        of_each = max(1, round(share * count / kinds))
        rows += reference_rows(split, count=of_each, seed=seed, answering=answering)
    return rows


def reference_answering(model: LocalModel, sampling: Sampling, *, greedy_every: int | None = None) -> Answering:
    """Lets the reference model answer; what is neither a refusal nor free of forbidden words is not benign.

    Args:
        model: The reference model.
        sampling: How answers are sampled; the seed comes with each request.
        greedy_every: Answers to seeds that are a multiple of it are greedy; None for none.
    """
    matcher = RefusalMatcher()
    greedy = replace(sampling, temperature=0.0)

    def answering(messages: Sequence[Any], seed: int) -> str | None:
        how = greedy if greedy_every is not None and seed % greedy_every == 0 else sampling
        text, _ = answer(model, model.encode(messages), how, seed=seed)
        return text if text.strip() and (matcher.is_all_refusal(text) or not strays(text)) else None

    return answering
