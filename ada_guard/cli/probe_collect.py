"""``ada-guard probe collect``, ``rows`` and ``recipes``: labelled responses, and the states a model has of them."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ada_guard.cli import options as opt
from ada_guard.cli.loading import busy, is_here, quiet, require_meant
from ada_guard.cli.progress import progress_bar
from ada_guard.cli.view import hanging, note
from ada_guard.errors import ConfigError

if TYPE_CHECKING:
    from ada_guard.local import LocalModel
    from ada_guard.probe.generate import Asked, Sampling
    from ada_guard.probe.rows import LabelledResponse

__all__ = ["collect", "next_step", "recipes", "rows"]

Generate = Annotated[
    bool,
    typer.Option(
        "--generate",
        help="Let the model answer the requests too, without a guard: benign responses in its own words. Of its "
        "answers to harmful requests only refusals are kept.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="A copy of the recipe's data set, where there is no network."),
]
RowSeed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Of the choice of rows, and of the model's answers.")
]
_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Of benign responses with any flag: those that a fit is proposed with."""


def collect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="ROWS|RECIPE",
            help="JSONL or Parquet file of labelled responses, a recipe (see ada-guard probe recipes), or the id of a "
            "data set on the hub with the columns of such a file.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the states; an interrupted one goes on.")
    ],
    model: opt.Model = "reference",
    layers: Annotated[
        str, typer.Option("--layers", metavar="WHICH", help="all, a range as 8-20, a list as 8,12,16, or every:N.")
    ] = "all",
    depths: Annotated[
        str, typer.Option("--depths", metavar="WHEN", help="Depths to read at, as --schedule of ada-guard run.")
    ] = "every:25",
    benign_depths: Annotated[
        str | None,
        typer.Option(
            "--benign-depths",
            metavar="WHEN",
            help="Likewise, for benign responses; every:5 calibrates for denser checks. Default: as --depths, and at "
            "the early depths 5, 10, 15 of a guard's default schedule.",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Of a response; what is longer is cut.")
    ] = 500,
    generate: Generate = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Most rows, drawn by --seed.")
    ] = None,
    data: Data = None,
    seed: RowSeed = 0,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", metavar="N", min=1, help="Tokens in one forward pass, about.")
    ] = 4096,
    device: opt.Device = None,
    dtype: opt.Dtype = "auto",
) -> None:
    """Read the hidden states a probe is fitted on, into a folder."""
    require_meant(model)
    with busy("importing torch"):
        quiet()
        from ada_guard.probe import collect as collecting
        from ada_guard.probe.claim import OWN_ANSWERS, claimed
        from ada_guard.probe.generate import Sampling
    try:
        # From the start: nothing is loaded, and no answer generated, for a folder that cannot be had.
        with claimed(out):
            given, asked = _source(source, limit=limit, seed=seed, data=data, generate=generate)
            loaded = _model(model, device=device, dtype=dtype)
            settings: dict[str, Any] = {
                "layers": collecting.parse_layers(layers, loaded),
                "schedule": depths,
                "benign_schedule": benign_depths,
                "max_tokens": max_tokens,
            }
            with progress_bar() as progress:
                if generate:
                    sampling = Sampling(max_new_tokens=max_tokens, seed=seed)
                    given += _own(loaded, source, asked, out / OWN_ANSWERS, sampling, limit, progress)
                _warn_of_one_class(given)
                guess = collecting.estimate(loaded, given, out, **settings)
                note(f"{len(given)} rows, about {guess.states} readings: {_size(guess.disk_bytes)} in {out}")
                if guess.disk_bytes > guess.free_bytes:
                    note(f"only {_size(guess.free_bytes)} are free there: fewer --layers or wider --depths take less")
                store = collecting.collect(
                    loaded, given, out, batch_tokens=batch_tokens, seed=seed, progress=progress, notice=note, **settings
                )
    except KeyboardInterrupt:
        note(f"stopped; what was read is in {out}, the same command goes on from there")
        raise
    print(f"{store.readings()} readings of {len(store.rows)} rows, {len(store.about.points)} layers, in {out}")
    if len({row.harmful for row in store.rows}) == 2:
        print(next_step(store.rows, out))


def rows(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="See ada-guard probe recipes.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSONL file to write.")],
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="Most rows; default: all.")] = None,
    seed: RowSeed = 0,
    generate: Generate = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Of an answer of the model's.")
    ] = 512,
    data: Data = None,
    model: opt.Model = "reference",
    device: opt.Device = None,
    dtype: opt.Dtype = "auto",
) -> None:
    """Write the labelled responses of a recipe to a file, to look at or to change before they are collected."""
    with busy("importing torch"):
        quiet()
        from ada_guard.probe.generate import Sampling
        from ada_guard.probe.rows import write_rows
    given, asked = _source(recipe, limit=count, seed=seed, data=data, generate=generate)
    if generate:
        loaded = _model(model, device=device, dtype=dtype)
        answers = out.with_name(out.name + ".own_answers")
        with progress_bar() as progress:
            sampling = Sampling(max_new_tokens=max_new_tokens, seed=seed)
            given += _own(loaded, recipe, asked, answers, sampling, count, progress)
        written = write_rows(out, given)
        answers.unlink(missing_ok=True)
    else:
        written = write_rows(out, given)
    harmful = sum(row.harmful for row in given)
    print(f"{written} rows in {out}: {harmful} harmful, {written - harmful} benign")


def recipes() -> None:
    """List the public data sets there are recipes for, their licences, and what they are good for."""
    from ada_guard.probe.recipes import recipes as known

    width = min(shutil.get_terminal_size().columns, 110)
    entries = {
        "reference": "the reference model's invented language; nothing to download, harmless, with --generate on-policy"
    } | {
        name: f"{each.good_for}. {each.licence}{', gated' if each.gated else ''}; {each.id}"
        for name, each in known().items()
    }
    for name, text in entries.items():
        print(hanging(name, text, indent=17, width=width))


def _source(
    source: str, *, limit: int | None, seed: int, data: Path | None, generate: bool
) -> tuple[list[LabelledResponse], list[Asked]]:
    """The rows of a file, recipe or data set, and the requests in them."""
    from ada_guard.probe import recipes as table
    from ada_guard.probe.generate import asked_in
    from ada_guard.probe.rows import read_rows

    if source == "reference":
        from ada_guard.probe.reference_recipe import reference_recipe

        # With --generate they are made once the model is there: its answers are rows of their own kinds.
        return ([] if generate else reference_recipe(count=limit or 600, seed=seed)), []
    if source in table.recipes():
        chosen = table.recipe(source)
        if not chosen.has_responses and not generate:
            raise ConfigError(
                f"{chosen.title} has requests only: add --generate, or collect a file with responses to them"
            )
        note(f"{chosen.title}: {chosen.licence}; {chosen.good_for}")
        with busy(f"loading {chosen.id}"):
            taken = list(table.take(chosen, count=limit, seed=seed, data=data))
        return [each.row for each in taken if each.row is not None], [each.asked for each in taken]
    if data is not None:
        raise ConfigError("--data belongs to a recipe")
    if "/" in source and not Path(source).suffix:
        with busy(f"loading {source}"):
            found = list(table.public_rows(source, count=limit, seed=seed))
    elif not Path(source).exists() and not Path(source).suffix:
        raise ConfigError(f"no file and no recipe of that name: there are reference, {', '.join(table.recipes())}")
    else:
        found = list(read_rows(source))
        if limit is not None and limit < len(found):
            found = [found[place] for place in sorted(Random(seed).sample(range(len(found)), limit))]
    return found, asked_in(found) if generate else []


def _model(model: str, *, device: str | None, dtype: str) -> LocalModel:
    from ada_guard.local import LocalModel

    if not is_here(model):
        return LocalModel.from_pretrained(model, device=device, dtype=dtype)
    with busy(f"loading {model}"):
        return LocalModel.from_pretrained(model, device=device, dtype=dtype)


def _own(
    model: LocalModel,
    source: str,
    asked: list[Asked],
    file: Path,
    sampling: Sampling,
    limit: int | None,
    progress: Any,
) -> list[LabelledResponse]:
    """The model's own answers; for the reference recipe all of its rows."""
    from ada_guard.probe.generate import own_answers

    if source == "reference":
        from ada_guard.probe.reference_recipe import reference_recipe

        return reference_recipe(count=limit or 600, seed=sampling.seed, model=model, sampling=sampling)
    file.parent.mkdir(parents=True, exist_ok=True)
    answers = own_answers(model, asked, file, sampling=sampling, progress=progress)
    kept = [each.row for each in answers if each.row is not None]
    cut = sum(each.was_cut for each in answers)
    note(
        f"{len(kept)} answers of the model's own; {len(answers) - len(kept)} left out (empty, too long a prompt, or no "
        f"refusal of a harmful request); {cut} were cut at {sampling.max_new_tokens} tokens"
    )
    return kept


def _warn_of_one_class(given: list[LabelledResponse]) -> None:
    if not given:
        raise ConfigError("there are no rows to read")
    if len({row.harmful for row in given}) == 1:
        kind = "harmful" if given[0].harmful else "benign"
        note(f"all rows are {kind}: a probe needs both kinds")


def next_step(rows: Sequence[LabelledResponse], states: Path) -> str:
    """What to do with the states: a fit, with the lowest of some usual rates that these rows can show."""
    from ada_guard.probe.splits import divide

    command = f"ada-guard probe fit {shlex.quote(str(states))} --out probe.safetensors"
    try:
        from ada_guard.probe.rates import fewest_for
    except ImportError:
        return f"next: pip install 'ada-guard[train]', then {command}"
    try:
        splits = divide(rows)  # as the fit does by default
    except ConfigError as error:
        return f"too few rows for a fit: {error}"
    benign = sum(split == "validation" and not row.harmful for row, split in zip(rows, splits, strict=True))
    for rate in _RATES:
        if fewest_for(rate) <= benign:
            return f"next: {command} --target-fpr {rate}"
    return (
        f"too few rows for a fit: {benign} benign responses are left to set a threshold on, and to show that at most "
        f"5 % of them are flagged takes {fewest_for(0.05)}"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
