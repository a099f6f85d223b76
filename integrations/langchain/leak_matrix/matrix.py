"""Runs a cell of the matrix: one surface, one position, one plant."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ada_guard.testing import UNSAFE
from leak_matrix.agent_surfaces import AGENT_SURFACES
from leak_matrix.model_surfaces import MODEL_SURFACES
from leak_matrix.observer_surfaces import OBSERVER_SURFACES
from leak_matrix.positions import Position, Setup
from leak_matrix.record import Record
from leak_matrix.surface import Surface

__all__ = ["SURFACES", "Cell", "arun_cell", "run_cell", "run_sync_cell"]

SURFACES: list[Surface] = [*MODEL_SURFACES, *OBSERVER_SURFACES, *AGENT_SURFACES]
"""All rows of the matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What became of the word.

    Attributes:
        record: What was found, and what came out.
        setup: The model with what stood around it.
    """

    record: Record
    setup: Setup

    @property
    def leaked(self) -> bool:
        """Whether a consumer could read it."""
        return bool(self.record.found)

    @property
    def stopped(self) -> bool:
        """Whether generation ended before the model had said everything."""
        return self.setup.speaker.given < self.setup.speaker.length

    @property
    def generated(self) -> int:
        """Chunks that the model gave, of the answer of which it gave most."""
        return self.setup.speaker.longest


def run_sync_cell(surface: Surface, position: Position, plant: str, word: str = UNSAFE) -> Cell:
    """Uses a surface from sync code."""
    assert surface.use is not None
    setup, record = position.setup(plant, word, **surface.settings()), Record(UNSAFE)
    with record.watching():
        surface.use(setup, record)
    return Cell(record=record, setup=setup)


async def arun_cell(surface: Surface, position: Position, plant: str, word: str = UNSAFE) -> Cell:
    """Uses a surface from async code."""
    assert surface.ause is not None
    setup, record = position.setup(plant, word, **surface.settings()), Record(UNSAFE)
    with record.watching():
        await surface.ause(setup, record)
    return Cell(record=record, setup=setup)


def run_cell(surface: Surface, position: Position, plant: str, word: str = UNSAFE) -> dict[str, Cell]:
    """Uses a surface in every way there is: ``"sync"``, ``"async"``."""
    cells = {} if surface.use is None else {"sync": run_sync_cell(surface, position, plant, word)}
    if surface.ause is not None:
        cells["async"] = asyncio.run(arun_cell(surface, position, plant, word))
    return cells
