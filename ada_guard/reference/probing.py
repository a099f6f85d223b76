"""The probe that ships with the reference model: its rows, and how they are read and fitted.

Harmful are texts on forbidden topics, whoever asked for them, from the word on that names the topic. Benign are how-to
texts, answers the model writes itself, and its own refusals of forbidden requests: a model that refuses does no harm.
The fit sees the topics and wordings of split `fit`, layer and threshold those of `validation`; the card's figures and
`ada_guard.reference.measure` are of `test`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from ada_guard.local import LocalModel
from ada_guard.probe import LinearProbe
from ada_guard.probe.collect import collect
from ada_guard.probe.fit import FitSettings, fit_probe
from ada_guard.probe.generate import Sampling
from ada_guard.probe.reference_recipe import reference_answering
from ada_guard.probe.rows import LabelledResponse, Split
from ada_guard.reference.rows import own_rows, reference_rows

__all__ = ["RECIPE", "Recipe", "bundled_probe", "bundled_rows", "save_probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the probe is made with.

    Attributes:
        count: Rows of each kind and split; half as many short answers and refusals to go on.
        target_fpr: Share of benign responses that may be flagged at any depth, with 95 % confidence. To the model, one
            of the seven benign topics of the validation split looks forbidden, and its responses are 9 % of the benign
            ones there. With a target whose bound leaves no room for them (tried: 0.08) that topic alone sets the
            threshold of dense checks, above the scores of harmful texts. The card says what share is flagged elsewhere.
        schedule: Depths of the fit. Dense at first, where texts have only just named their topic, or not yet: those
            readings of a harmful text are in neither class.
        benign_schedule: Depths the threshold is set on: it is to hold for a check at every token.
        deepest_tokens: Nothing is read beyond.
        text_tokens: Least length of harmful texts, and of the benign ones of the fit.
        calibrated_tokens: Least length of the other benign texts.
        own_tokens: Most tokens of an answer of the model's own.
        greedy_every: So many-th answers of the model's own are greedy, the others sampled.
    """

    count: int = 40
    target_fpr: float = 0.13
    schedule: str = "1,2,3,5,8,13,15,20,25,35,50,75,150/100"
    benign_schedule: str = "every:1"
    deepest_tokens: int = 1000
    text_tokens: int = 1050
    calibrated_tokens: int = 300
    own_tokens: int = 300
    greedy_every: int = 3


RECIPE = Recipe()
_TEMPERATURE = 0.8
_SPLITS: tuple[Split, ...] = ("fit", "validation", "test")
_KINDS, _OWN_KINDS = 6, 2
Progress: TypeAlias = Callable[[str, int, int], None]


def bundled_rows(
    model: LocalModel, recipe: Recipe = RECIPE, *, seed: int = 0, progress: Progress = lambda phase, done, total: None
) -> list[LabelledResponse]:
    """The rows of all splits.

    Args:
        model: The reference model; writes answers and refusals of its own.
        recipe: How many, and how long.
        seed: Of topics, wordings, texts and answers.
        progress: Told ``"rows"``, the rows made and how many there will be at most.
    """
    sampling = Sampling(max_new_tokens=recipe.own_tokens, temperature=_TEMPERATURE)
    answering = reference_answering(model, sampling, greedy_every=recipe.greedy_every)
    half = recipe.count // 2
    most = len(_SPLITS) * (_KINDS * recipe.count + _OWN_KINDS * half)
    rows: list[LabelledResponse] = []
    for split in _SPLITS:
        usual = reference_rows(
            split,
            count=recipe.count,
            seed=seed,
            answering=answering,
            tokens=recipe.text_tokens,
            benign_tokens=recipe.text_tokens if split == "fit" else recipe.calibrated_tokens,
        )
        for row in chain(usual, own_rows(split, count=half, seed=seed, answering=answering)):
            rows.append(row)
            progress("rows", len(rows), most)
    return rows


def bundled_probe(
    model: LocalModel,
    folder: Path,
    recipe: Recipe = RECIPE,
    *,
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
) -> LinearProbe:
    """Makes the rows, reads the model's states of them, and fits, calibrates and measures the probe.

    Args:
        model: The reference model, without a probe.
        folder: Where states are kept meanwhile, about 1 GB.
        recipe: How.
        seed: Of everything.
        progress: Told a phase, how many of its steps are done, and their number.
    """
    store = collect(
        model,
        bundled_rows(model, recipe, seed=seed, progress=progress),
        folder,
        layers=range(1, model.model.config.num_hidden_layers),
        schedule=recipe.schedule,
        benign_schedule=recipe.benign_schedule,
        max_tokens=recipe.deepest_tokens,
        seed=seed,
        progress=progress,
    )
    return fit_probe(store, FitSettings(target_fpr=recipe.target_fpr, seed=seed), progress)


def save_probe(
    folder: Path,
    file: Path,
    recipe: Recipe = RECIPE,
    *,
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
) -> LinearProbe:
    """Makes the probe for the chat model in a folder and saves it."""
    model = LocalModel.from_pretrained(folder)
    model.name = "reference"
    with TemporaryDirectory(prefix="ada-guard-") as states:
        probe = bundled_probe(model, Path(states), recipe, seed=seed, progress=progress)
    probe.save(file)
    return probe
