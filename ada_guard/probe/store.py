"""Collected hidden states on disk: a folder of safetensors shards with the rows they were read from. Knows no model.

``about.json`` says what was collected and is written first; ``rows.jsonl`` holds the rows; ``shards/00000.safetensors``
and so on hold states, each appearing only once it is whole. A collection that was interrupted goes on with the rows
that no shard names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ada_guard.errors import ConfigError
from ada_guard.probe.rows import LabelledResponse, digest_of, read_rows, write_rows
from ada_guard.probe.states import PLACES, About, Place, Shard, States

__all__ = ["PLACES", "About", "Place", "Shard", "StateStore", "States", "rows_digest"]


class _Written(BaseModel):
    """What the header of a shard says."""

    model_config = ConfigDict(frozen=True)

    done: list[int]
    rows: str
    unsafe_from_depth: dict[int, int]


class StateStore:
    """A collection on disk. Make one with `create`, open one with `open`.

    Attributes:
        folder: Where it is.
        about: What it is of.
        rows: The rows, numbered from 0 as shards name them.
    """

    def __init__(self, folder: Path, about: About, rows: Sequence[LabelledResponse]) -> None:
        self.folder = folder
        self.about = about
        self.rows = rows

    @classmethod
    def create(cls, folder: str | Path, about: About, rows: Sequence[LabelledResponse]) -> Self:
        """A new collection, or the interrupted one of the same rows, model and settings in that folder.

        Raises:
            ConfigError: The folder holds a collection of something else, other rows, or nothing can be written there.
        """
        folder = Path(folder)
        if (folder / "about.json").exists():
            before = cls.open(folder)
            if before.about != about:
                raise ConfigError(
                    f"{str(folder)!r} holds states of other rows, another model or other settings: use another folder"
                )
            return before
        _require_same_rows(folder, about)
        try:
            (folder / "shards").mkdir(parents=True, exist_ok=True)
            write_rows(folder / "rows.jsonl", rows)
            _write(folder / "about.json", about.model_dump_json(indent=1))
        except OSError as error:
            (folder / "about.json.partial").unlink(missing_ok=True)
            raise _no_room(folder, error) from None
        return cls(folder, about, rows)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """A collection, complete or not.

        Raises:
            ConfigError: There is none, or it is damaged.
        """
        folder = Path(folder)
        try:
            about = About.model_validate_json((folder / "about.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no collected states in {str(folder)!r}: run ada-guard probe collect first") from None
        except NotADirectoryError:
            raise ConfigError(f"{str(folder)!r} is a file, not a folder of ada-guard probe collect") from None
        except (OSError, UnicodeDecodeError, ValidationError):
            raise ConfigError(f"{str(folder)!r} does not hold states of this version of ada-guard") from None
        rows = list(read_rows(folder / "rows.jsonl", source=""))
        if rows_digest(rows) != about.rows:
            raise ConfigError(f"the rows in {str(folder)!r} are not those its states were read from")
        return cls(folder, about, rows)

    @property
    def shards(self) -> list[Path]:
        """The files that hold states, in order."""
        return sorted((self.folder / "shards").glob("*.safetensors"))

    def done(self) -> set[int]:
        """Numbers of the rows that were read. Removes files that a crash left half-written.

        Raises:
            ConfigError: A shard is damaged, or a row was read twice.
        """
        for partial in (self.folder / "shards").glob("*.partial"):
            partial.unlink(missing_ok=True)
        done: set[int] = set()
        for shard in self.shards:
            rows = self._written(shard).done
            if not done.isdisjoint(rows):
                raise ConfigError(
                    f"{shard.name} in {str(self.folder)!r} holds rows that another file holds too, as if two commands "
                    "had filled the folder at once: delete it and collect again"
                )
            done.update(rows)
        return done

    def is_complete(self) -> bool:
        """Whether every row was read."""
        return len(self.done()) == len(self.rows)

    def readings(self) -> int:
        """At how many depths of all rows there are states.

        Raises:
            ConfigError: A shard is damaged.
        """
        found = 0
        for path in self.shards:
            try:
                with safe_open(str(path), framework="pt") as file:
                    found += int(file.get_slice("rows").get_shape()[0])
            except (OSError, SafetensorError):
                raise self._damaged(path) from None
        return found

    def append(self, shard: Shard) -> Path:
        """Writes a shard; the file appears only once it is whole and on disk.

        Raises:
            ConfigError: The disk is full. What was written before stays, and a later run goes on from there.
        """
        # Behind the last one, not as many as there are: a damaged one may have been deleted.
        number = max((int(path.stem) for path in self.shards), default=-1) + 1
        path = self.folder / "shards" / f"{number:05d}.safetensors"
        partial = path.with_suffix(".partial")
        tensors = {f"{place}/{layer}": state.contiguous() for (place, layer), state in shard.states.items()}
        tensors |= {"rows": shard.rows, "depths": shard.depths}
        if shard.chars is not None:
            tensors["chars"] = shard.chars
        metadata = {
            "done": json.dumps(list(shard.done)),
            "rows": self.about.rows,
            "unsafe_from_depth": json.dumps({str(row): depth for row, depth in shard.unsafe_from_depth.items()}),
        }
        try:
            save_file(tensors, partial, metadata=metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise _no_room(self.folder, error) from None
        return path

    def states(self, place: Place, layer: int) -> States:
        """All states of one place and layer, in the order of the shards.

        Raises:
            ConfigError: They were not collected, a shard is damaged, or a state is not finite.
        """
        if place not in self.about.places or layer not in self.about.points:
            raise ConfigError(f"no states of {place}, layer {layer} were collected")
        rows, depths, values, chars = [], [], [], []
        for path in self.shards:
            try:
                with safe_open(str(path), framework="pt") as file:
                    rows.append(file.get_tensor("rows"))
                    depths.append(file.get_tensor("depths"))
                    values.append(file.get_tensor(f"{place}/{layer}").float())
                    if "chars" in file.keys():  # noqa: SIM118  # a safetensors file is no mapping
                        chars.append(file.get_tensor("chars"))
            except (OSError, SafetensorError):
                raise self._damaged(path) from None
        if not values:
            raise ConfigError(f"{str(self.folder)!r} holds no states yet: run ada-guard probe collect")
        found = States(
            rows=torch.cat(rows),
            depths=torch.cat(depths),
            values=torch.cat(values),
            chars=torch.cat(chars) if len(chars) == len(values) else None,
        )
        if not found.values.isfinite().all():
            raise ConfigError(
                f"states of layer {layer} are not finite: collect again with the model in bfloat16 or float32"
            )
        return found

    def unsafe_from_depth(self) -> dict[int, int]:
        """Row -> the depth from which on a reading of it counts as harmful; earlier ones are in neither class.

        Only rows with `LabelledResponse.unsafe_from_chars`: all readings of the others have the row's label.

        Raises:
            ConfigError: A shard is damaged.
        """
        found: dict[int, int] = {}
        for path in self.shards:
            found |= self._written(path).unsafe_from_depth
        return found

    def _written(self, path: Path) -> _Written:
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
            written = _Written(
                done=json.loads(metadata["done"]),
                rows=metadata["rows"],
                unsafe_from_depth=json.loads(metadata.get("unsafe_from_depth", "{}")),
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            raise self._damaged(path) from None
        if written.rows != self.about.rows:
            raise self._damaged(path)
        return written

    def _damaged(self, path: Path) -> ConfigError:
        return ConfigError(
            f"{path.name} in {str(self.folder)!r} is damaged: delete it and collect again, only its rows are missing"
        )


def rows_digest(rows: Iterable[LabelledResponse]) -> str:
    """16 hex digits that tell lists of rows apart."""
    return digest_of([row.as_json for row in rows])


def _require_same_rows(folder: Path, about: About) -> None:
    """Rows without ``about.json`` are those of a collection that broke off between the two, or someone's own file."""
    try:
        there = rows_digest(read_rows(folder / "rows.jsonl", source=""))
    except ConfigError:
        there = None
    if (folder / "rows.jsonl").exists() and there != about.rows:
        raise ConfigError(f"{str(folder / 'rows.jsonl')!r} holds other rows: states need a folder of their own")


def _no_room(folder: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return ConfigError(
        f"cannot write to {str(folder)!r} ({reason}): make room and run the command again, it goes on from here"
    )


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
