"""Collects hidden states of labelled responses into a folder. Resumable, in bounded memory. Knows no estimator."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from random import Random
from typing import TypeAlias

import torch

from ada_guard.errors import ConfigError
from ada_guard.local.blocks import HookPoint, decoder_blocks
from ada_guard.local.model import LocalModel
from ada_guard.policy import Schedule
from ada_guard.probe.cached_pass import hook_points, states_at_depths
from ada_guard.probe.claim import claimed
from ada_guard.probe.encoding import EncodedRow, RowEncoder, benign_schedule_for, random_ids
from ada_guard.probe.readers import choose_reader
from ada_guard.probe.rows import LabelledResponse
from ada_guard.probe.shard_writer import ShardWriter
from ada_guard.probe.states import PLACES, About, Place
from ada_guard.probe.store import StateStore, rows_digest
from ada_guard.probe.tree_pass import ReadStates, StateReader

__all__ = ["DEFAULT_SCHEDULE", "Estimate", "collect", "estimate", "hook_points", "parse_layers", "states_at_depths"]

DEFAULT_SCHEDULE = "every:25"
"""Source: Zhang et al. (ICLR 2026) and ``ada/probe/collect.py`` of javyduck/any-depth-alignment: depths 25 to 500."""
DEFAULT_MAX_TOKENS = 500
DEFAULT_BATCH_TOKENS = 4096
_SAMPLED_ROWS = 100
"""Rows that are encoded for an estimate."""
_TRIAL_ROWS = 8
"""Rows of which the shortest and the longest are read in both ways, to choose one."""

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a collection will take.

    Attributes:
        states: Readings, of all layers and places each, about.
        disk_bytes: On disk, about.
        free_bytes: What is free there.
    """

    states: int
    disk_bytes: int
    free_bytes: int


def parse_layers(text: str, model: LocalModel) -> list[int]:
    """0-based layers from a text: ``all``, ``a-b`` (both included), ``a,b,c`` or ``every:N``.

    Raises:
        ConfigError: Another text, or a layer that the model has not.
    """
    count = len(decoder_blocks(model.model))
    try:
        if text == "all":
            found = list(range(count))
        elif text.startswith("every:"):
            found = list(range(0, count, int(text.removeprefix("every:"))))
        elif "-" in text:
            first, last = (int(part) for part in text.split("-"))
            found = list(range(first, last + 1))
        else:
            found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError("layers are all, a range as 8-20, a list as 8,12,16, or every:N") from None
    if not found or not 0 <= min(found) <= max(found) < count:
        raise ConfigError(f"this model has layers 0 to {count - 1}")
    return found


def estimate(
    model: LocalModel,
    rows: Sequence[LabelledResponse],
    folder: str | Path,
    *,
    layers: Sequence[int] | None = None,
    schedule: str = DEFAULT_SCHEDULE,
    benign_schedule: str | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    places: Sequence[Place] = PLACES,
) -> Estimate:
    """What a collection of these rows will take on disk, from a sample of them; arguments as `collect` takes them."""
    encoder = _encoder(model, schedule, benign_schedule or benign_schedule_for(schedule), max_tokens)
    # Drawn, since files often alternate between kinds of rows, and one in so many would be of one kind.
    numbers = sorted(Random("estimate").sample(range(len(rows)), min(_SAMPLED_ROWS, len(rows))))
    read = [encoder.encode(number, rows[number]).response for number in numbers]
    states = round(sum(len(response.depths) for response in read if response) * len(rows) / max(1, len(numbers)))
    count = len(layers) if layers is not None else len(decoder_blocks(model.model))
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    return Estimate(
        states=states,
        disk_bytes=states * count * len(places) * _hidden_size(model) * model.model.dtype.itemsize,
        free_bytes=shutil.disk_usage(there).free,
    )


def collect(
    model: LocalModel,
    rows: Iterable[LabelledResponse],
    folder: str | Path,
    *,
    layers: Sequence[int] | None = None,
    schedule: str = DEFAULT_SCHEDULE,
    benign_schedule: str | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    places: Sequence[Place] = PLACES,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    shard_rows: int | None = None,
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
    notice: Callable[[str], None] = lambda line: None,
) -> StateStore:
    """Reads the states of all rows that the folder does not hold yet.

    Whatever ends it, a crash, a full disk or Ctrl-C: the same call goes on from there.

    Args:
        model: The model the probe is for.
        rows: Labelled responses.
        folder: Where states are kept; made if it is not there.
        layers: 0-based blocks; None for all.
        schedule: At which depths responses are read, as `Schedule.parse` takes it.
        benign_schedule: Likewise, benign ones; None for what `benign_schedule_for` says.
        max_tokens: Of a response; what is longer is cut there.
        places: Which tokens to read at.
        batch_tokens: Tokens in one forward pass, about.
        shard_rows: Rows in one file; None for as many as fill 256 MiB or come in two minutes.
        seed: Of the ids that are injected as a control.
        progress: Told ``"reading"``, the rows done and their number.
        notice: Told in one line what a user should know.

    Raises:
        ConfigError: No rows, a folder of another collection, with other files or that another command fills, a row the
            model's chat template does not take, states that are not finite, a full disk, or too many tokens a pass for
            the device.
    """
    known = list(rows)
    if not known:
        raise ConfigError("there are no rows to read")
    if batch_tokens < 1 or (shard_rows is not None and shard_rows < 1):
        raise ConfigError("batch_tokens and shard_rows must be >= 1")
    benign_schedule = benign_schedule or benign_schedule_for(schedule)
    encoder = _encoder(model, schedule, benign_schedule, max_tokens)
    points = hook_points(model, range(len(decoder_blocks(model.model))) if layers is None else sorted(set(layers)))
    about = About(
        model=model.name,
        revision=getattr(model.model.config, "_commit_hash", None),
        fingerprint=model.fingerprint,
        header_text=model.spec.probe.text,
        header_ids=model.spec.probe.ids,
        random_ids=random_ids(model, seed=seed) if "random_tokens" in places else (),
        points={point.layer: point.position for point in points},
        places=tuple(places),
        hidden_size=_hidden_size(model),
        dtype=str(model.model.dtype).removeprefix("torch."),
        schedule=schedule,
        benign_schedule=benign_schedule,
        max_tokens=max_tokens,
        rows=rows_digest(known),
        versions={
            "ada_guard": version("ada-guard"),
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
        },
    )
    with claimed(folder):
        store = StateStore.create(folder, about, known)
        _fill(store, model, encoder, points, batch_tokens, shard_rows, progress, notice)
    return store


def _fill(
    store: StateStore,
    model: LocalModel,
    encoder: RowEncoder,
    points: Sequence[HookPoint],
    batch_tokens: int,
    shard_rows: int | None,
    progress: Progress,
    notice: Callable[[str], None],
) -> None:
    """Reads the rows that a store lacks; arguments as `collect` takes them."""
    done, known = store.done(), store.rows
    progress("reading", len(done), len(known))
    if len(done) == len(known):
        return
    encoded = (encoder.encode(number, row) for number, row in enumerate(known) if number not in done)
    first = _first(encoded)
    reader = _reader(model, points, store.about, first, notice)
    writer = ShardWriter(store, shard_rows=shard_rows)
    try:
        for batch in _batches(chain(first, encoded), reader, batch_tokens):
            writer.add(batch, _read(reader, batch))
            progress("reading", len(done) + writer.rows_seen, len(known))
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()


def _encoder(model: LocalModel, schedule: str, benign_schedule: str, max_tokens: int) -> RowEncoder:
    return RowEncoder(
        model,
        schedule=Schedule.parse(schedule),
        benign_schedule=Schedule.parse(benign_schedule),
        max_tokens=max_tokens,
    )


def _hidden_size(model: LocalModel) -> int:
    return int(model.model.config.get_text_config(decoder=True).hidden_size)


def _first(encoded: Iterator[EncodedRow]) -> list[EncodedRow]:
    """Rows until some of them can be read; all, if none can."""
    found: list[EncodedRow] = []
    readable = 0
    for row in encoded:
        found.append(row)
        readable += row.response is not None
        if readable == _TRIAL_ROWS:
            break
    return found


def _reader(
    model: LocalModel,
    points: Sequence[HookPoint],
    about: About,
    first: Sequence[EncodedRow],
    notice: Callable[[str], None],
) -> StateReader | None:
    """The way to read; None where no row is long enough to be read."""
    responses = sorted((row.response for row in first if row.response), key=lambda response: len(response.trunk))
    if not responses:
        return None
    injected: dict[Place, Sequence[int]] = {"safety_tokens": about.header_ids, "random_tokens": about.random_ids}
    samples = responses if len(responses) == 1 else [responses[-1], responses[0]]
    with _enough_memory():
        chosen = choose_reader(model, points, about.places, injected, samples)
    if chosen.why_cached is not None:
        notice(
            f"{model.name} cannot be read at all depths in one pass ({chosen.why_cached}): one depth after the other"
        )
    return chosen.reader


def _batches(
    rows: Iterable[EncodedRow], reader: StateReader | None, batch_tokens: int
) -> Iterator[Sequence[EncodedRow]]:
    """Rows that go through the model together: as many as the tokens allow, at least one that is read."""
    batch: list[EncodedRow] = []
    tokens = 0
    for row in rows:
        count = reader.tokens(row.response) if reader is not None and row.response is not None else 0
        if tokens and tokens + count > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += count
    if batch:
        yield batch


def _read(reader: StateReader | None, batch: Sequence[EncodedRow]) -> Sequence[ReadStates]:
    responses = [row.response for row in batch if row.response is not None]
    if reader is None or not responses:
        return []
    with _enough_memory():
        return reader.read(responses)


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise ConfigError(
            "the device has no room for so many tokens in one pass: lower batch_tokens (--batch-tokens)"
        ) from None
