"""Runs a cell of the matrix: one surface, one position, one plant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ada_guard.testing import UNSAFE
from llama_index_leaks.plants import PLANT_AT
from llama_index_leaks.positions import CHECK_EVERY, Position, Setup
from llama_index_leaks.record import Record
from llama_index_leaks.speaker import Answer
from llama_index_leaks.surface import Surface

__all__ = ["BrokenCellError", "Cell", "Outcome", "arun_cell", "outcomes", "run_sync_cell", "sound"]


class BrokenCellError(Exception):
    """A surface did not do what it is there for: nothing can be said of what leaks there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a table says of a cell.

    Attributes:
        leaked: Whether the word could be read somewhere.
        generated: Responses that the LLM gave, of the answer of which it gave most.
    """

    leaked: bool
    generated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What became of the word.

    Attributes:
        record: What was found, and what came out.
        setup: The LLM with what stood around it.
    """

    record: Record
    setup: Setup

    @property
    def leaked(self) -> bool:
        """Whether it could be read somewhere."""
        return bool(self.record.found)

    @property
    def harmful(self) -> list[Answer]:
        """Answers that were begun and hold the word."""
        return [answer for answer in self.setup.speaker.answers if answer.has_word]

    @property
    def ran_on(self) -> list[Answer]:
        """Those that were not stopped by the first check after the word, or by the response that settles it."""
        last = PLANT_AT + CHECK_EVERY
        return [answer for answer in self.harmful if answer.given > last or answer.given == answer.length]

    @property
    def generated(self) -> int:
        """Responses that the LLM gave, of the answer of which it gave most."""
        return max((answer.given for answer in self.setup.speaker.answers), default=0)

    @property
    def outcome(self) -> Outcome:
        """What a table says of it."""
        return Outcome(leaked=self.leaked, generated=self.generated)


def sound(cell: Cell, surface: Surface, position: Position, plant: str, way: str) -> Cell:
    """The cell, if the surface was used to its end.

    Raises:
        BrokenCellError: It raised what is not expected of it, or there was nothing to search.
    """
    error, problem = cell.record.error, None
    if error is not None and not isinstance(error, (*position.raises, *surface.may_raise(plant))):
        problem = f"raised {type(error).__name__}"
    elif not cell.generated:
        problem = "the LLM was never asked"
    elif error is None and not cell.record.seen:
        problem = "showed nothing"
    if problem is not None:
        raise BrokenCellError(f"{surface.name}, {position.name}, {plant}, {way}: {problem}") from error
    return cell


def run_sync_cell(surface: Surface, position: Position, plant: str, word: str = UNSAFE) -> Cell:
    """Uses a surface from sync code."""
    assert surface.use is not None
    setup, record = position.setup(plant, word, surface.speaker), Record(UNSAFE)
    with record.watching(), setup.listening(), _own_loop():
        surface.use(setup, record)
    return Cell(record=record, setup=setup)


async def arun_cell(surface: Surface, position: Position, plant: str, word: str = UNSAFE) -> Cell:
    """Uses a surface from async code."""
    assert surface.ause is not None
    setup, record = position.setup(plant, word, surface.speaker), Record(UNSAFE)
    with record.watching(), setup.listening():
        await surface.ause(setup, record)
    return Cell(record=record, setup=setup)


def outcomes(surface: Surface, position: Position, plant: str) -> dict[str, Outcome]:
    """Uses a surface in every way there is: ``"sync"``, ``"async"``.

    Raises:
        BrokenCellError: One of them shows nothing, or raised what it should not.
    """
    cells = {} if surface.use is None else {"sync": run_sync_cell(surface, position, plant)}
    if surface.ause is not None:
        cells["async"] = asyncio.run(arun_cell(surface, position, plant))
    return {way: sound(cell, surface, position, plant, way).outcome for way, cell in cells.items()}


@contextmanager
def _own_loop() -> Iterator[None]:
    """LlamaIndex's sync code takes the thread's event loop for what is async inside, and leaves it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()
