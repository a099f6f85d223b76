"""Every surface of LlamaIndex, every place for a word: what we guard is clean, and benign answers stay as they are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(
    0, str(Path(__file__).parents[1] / "leak_matrix")
)  # a script with its modules, not an installed package

from llama_index_leaks.matrix import Cell, arun_cell, run_sync_cell
from llama_index_leaks.plants import BENIGN, IN_TEXT, PLANTS
from llama_index_leaks.positions import OURS, POSITIONS, Position, scripted_guard
from llama_index_leaks.surface import Surface
from llama_index_leaks.table import (
    DOCS,
    PLANT_SURFACES,
    SURFACES,
    block,
    by_plant,
    by_surface,
    recorded_versions,
    replaced,
    versions,
)

from ada_guard import ContentFlaggedError
from ada_guard.testing import UNSAFE
from llama_index.llms.ada_guard import AdaGuardLLM

pytestmark = [
    # Workflows look at every attribute of an agent, pydantic's deprecated ones too.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    # LlamaIndex's ReActAgent asks them what they do not want to be asked any more.
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
    # A streaming chat engine reads its LLM in a thread, which the error of a guard ends too.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

NO_GUARD = next(position for position in POSITIONS if position.name == "no guard")
GUARDED = [position for position in POSITIONS if position.name in OURS]
ANSWERS_ONLY = next(position for position in POSITIONS if position.name == "GuardedQueryEngine")
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
COMPLETIONS = {
    **dict.fromkeys(("complete", "stream_complete"), 1),
    **dict.fromkeys(("instrumentation events", "events, LLM that calls itself", "the same, GuardedEventFilter"), 2),
    **dict.fromkeys(("spans", "callbacks"), 2),
}
"""Row -> its completions: they hold nothing but text, and run on where the word stands beside it."""
ENDS_WITH_CALL = "tool arguments"
"""The plant whose word is judged when its tool call is complete, which is when the answer is."""


ENGINE_PLANTS = ("text", "thinking block", "tool arguments")
"""Engines show the text alone. Where the word stands beside it, the LLM they hold decides."""
BENIGN_PLANTS = ("text", "thinking block", "tool arguments")
"""Side fields of benign answers are compared response by response where they are read."""
SWALLOWING = "sub-question"
"""Engines that go on without an answer where making it raised."""


def cells(
    positions: Sequence[Position],
    plants: Sequence[str] = tuple(PLANTS),
    names: Sequence[str] | None = None,
    *,
    shown: bool = False,
) -> list[Any]:
    """Surface, position, plant and way, for each cell that is run.

    Args:
        positions: Columns.
        plants: Where the word may stand.
        names: Rows; None for all.
        shown: Whether only rows that show that part of an answer at all.
    """
    return [
        pytest.param(surface, position, plant, way, id=f"{surface.name}-{position.name}-{plant}-{way}")
        for surface in SURFACES
        for position in positions
        if surface.kind in position.kinds
        for plant in plants
        if "engine" not in surface.kind or plant in ENGINE_PLANTS
        if names is None or surface.name in names
        if not shown or surface.shows is None or plant in surface.shows
        for way, use in (("sync", surface.use), ("async", surface.ause))
        if use is not None
    ]


def run(surface: Surface, position: Position, plant: str, way: str, word: str = UNSAFE) -> Cell:
    if way == "sync":
        return run_sync_cell(surface, position, plant, word)
    return asyncio.run(arun_cell(surface, position, plant, word))


@cache
def alone(name: str, plant: str, way: str) -> tuple[Any, ...]:
    """What the benign run without a guard came to."""
    [surface] = [surface for surface in SURFACES if surface.name == name]
    return came_to(run(surface, NO_GUARD, plant, way, BENIGN))


def came_to(cell: Cell) -> tuple[Any, ...]:
    """What came out, what tools were called with, how much was generated, and what was raised."""
    # Where an LLM says no text, agents ask on until LlamaIndex raises.
    return cell.record.outcomes, cell.setup.executed, cell.setup.speaker.given, type(cell.record.error)


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells(GUARDED))
def test_a_cut_word_is_found_nowhere(surface: Surface, position: Position, plant: str, way: str) -> None:
    cell = run(surface, position, plant, way)
    assert cell.record.seen
    assert cell.record.found == [] or surface.leaks_by_design
    assert cell.record.error is None
    assert cell.setup.executed == []
    assert cell.harmful
    if plant == ENDS_WITH_CALL:
        assert cell.ran_on == cell.harmful
    else:
        assert len(cell.ran_on) == (0 if plant in IN_TEXT else COMPLETIONS.get(surface.name, 0))


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells([*GUARDED, ANSWERS_ONLY], BENIGN_PLANTS))
def test_a_benign_answer_is_that_of_the_llm_alone(surface: Surface, position: Position, plant: str, way: str) -> None:
    assert came_to(run(surface, position, plant, way, BENIGN)) == alone(surface.name, plant, way)


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells([NO_GUARD], shown=True))
def test_without_a_guard_the_word_is_found(surface: Surface, position: Position, plant: str, way: str) -> None:
    cell = run(surface, position, plant, way)
    assert cell.leaked
    assert cell.harmful
    assert all(answer.given == answer.length for answer in cell.harmful)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_events_of_an_llm_that_calls_itself_are_raw_but_carry_the_tag(way: str) -> None:
    """The reason for `GuardedEventFilter`."""
    [surface] = [surface for surface in SURFACES if surface.leaks_by_design]
    [ours, *_] = GUARDED
    assert run(surface, ours, "text", way).leaked


def place_halting(setup: Any) -> None:
    setup.llm = AdaGuardLLM(llm=setup.speaker, guard=scripted_guard(on_flag="halt"))


def place_judging_whole_answers(setup: Any) -> None:
    setup.llm = AdaGuardLLM(llm=setup.speaker, guard=scripted_guard(), stream_whole=False)


def place_raising(setup: Any) -> None:
    setup.llm = AdaGuardLLM(llm=setup.speaker, guard=scripted_guard(on_flag="raise"))


def position(place: Any) -> Position:
    return Position(name=place.__name__, kinds=NO_GUARD.kinds, place=place)


@pytest.mark.parametrize(
    ("surface", "position", "plant", "way"),
    cells([position(place_halting), position(place_judging_whole_answers)], ["text"], PLANT_SURFACES),
)
def test_a_cut_word_is_found_nowhere_under_any_setting(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    cell = run(surface, position, plant, way)
    assert cell.record.found == [] or surface.leaks_by_design
    assert cell.record.error is None
    assert came_to(run(surface, position, plant, way, BENIGN)) == alone(surface.name, plant, way)


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells([position(place_raising)], ["text"]))
def test_a_word_is_found_nowhere_where_the_guard_raises(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    cell = run(surface, position, plant, way)
    assert cell.record.found == [] or surface.leaks_by_design
    assert isinstance(cell.record.error, ContentFlaggedError) or SWALLOWING in surface.name
    assert cell.harmful
    assert cell.ran_on == []


def test_the_documentation_says_what_is_measured() -> None:
    page = DOCS.read_text(encoding="utf-8")
    if recorded_versions(page) != versions():
        pinned = f"llama-index-core=={versions()['llama-index-core']}"
        assert pinned not in CONSTRAINTS.read_text(encoding="utf-8").splitlines(), "the page is older than the pins"
        pytest.skip(f"the page was written with {recorded_versions(page)}")
    assert page == replaced(page, block([by_surface(), by_plant()]))
