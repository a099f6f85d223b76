"""Every surface of LlamaIndex, every place for a word: what we guard is clean, and benign answers stay as they are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(
    0, str(Path(__file__).parents[1] / "leak_matrix")
)  # a script with its modules, not an installed package

from llama_index_leaks.llm_surfaces import LLM_SURFACES
from llama_index_leaks.matrix import BrokenCellError, Cell, Outcome, arun_cell, outcomes, run_sync_cell, sound
from llama_index_leaks.plants import BENIGN, IN_ERROR, PLANTS
from llama_index_leaks.positions import OURS, POSITIONS, Position, RaisingHandler, scripted_guard
from llama_index_leaks.surface import Surface
from llama_index_leaks.table import (
    DOCS,
    PLANT_SURFACES,
    SURFACES,
    block,
    recorded_versions,
    replaced,
    tables,
    versions,
)

from ada_guard import ContentFlaggedError
from ada_guard.errors import GenerationError
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
BUILT_TODAY = [position for position in POSITIONS if position.name in ("wrapper in the app", "event handler")]
OBSERVED_LLMS = {
    surface.name
    for surface in LLM_SURFACES
    if surface.name not in ("chat", "stream_chat", "complete", "stream_complete", "predict_and_call")
}
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
OUTCOMES: dict[tuple[str, str, str], dict[str, Outcome]] = {}
"""What the cells that were run came to, by surface, position, plant and way: the table needs them all once more."""
RUN_ON = {"tool name": 2}
"""Plant -> answers that run on where observers are told of two chats and two completions: completions have no calls."""
JUDGED_AT_THE_END = ("tool arguments", IN_ERROR)
"""Plants whose answer has ended when there is something to judge: a complete call, or an error."""
BENIGN_PLANTS = ("text", "thinking block", "tool arguments", "message kwargs", "response kwargs", "logprobs")
SWALLOWING = "sub-question"
"""Engines that go on without an answer where making it raised."""


def cells(
    positions: Sequence[Position], plants: Sequence[str] = tuple(PLANTS), names: Sequence[str] | None = None
) -> list[Any]:
    """Surface, position, plant and way, for each cell in which the word would be seen if nobody guarded.

    Args:
        positions: Columns.
        plants: Where the word may stand.
        names: Rows; None for all.
    """
    return [
        pytest.param(surface, position, plant, way, id=f"{surface.name}-{position.name}-{plant}-{way}")
        for surface in SURFACES
        for position in positions
        for plant in plants
        if surface.can_tell(position, plant)
        if names is None or surface.name in names
        for way, use in (("sync", surface.use), ("async", surface.ause))
        if use is not None
    ]


def run(surface: Surface, position: Position, plant: str, way: str, word: str = UNSAFE) -> Cell:
    if way == "sync":
        cell = run_sync_cell(surface, position, plant, word)
    else:
        cell = asyncio.run(arun_cell(surface, position, plant, word))
    if word == UNSAFE and position in POSITIONS:
        with suppress(BrokenCellError):  # whoever needs the outcome runs the cell again, and is told
            outcome = sound(cell, surface, position, plant, way).outcome
            OUTCOMES.setdefault((surface.name, position.name, plant), {})[way] = outcome
    return cell


def outcomes_known(surface: Surface, position: Position, plant: str) -> dict[str, Outcome]:
    """The outcomes that other tests of this run have come to; what is missing is run now."""
    known = OUTCOMES.get((surface.name, position.name, plant), {})
    ways = [way for way, use in (("sync", surface.use), ("async", surface.ause)) if use is not None]
    return {way: known[way] for way in ways} if set(ways) == set(known) else outcomes(surface, position, plant)


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
def test_a_cut_word_is_found_nowhere_and_its_llm_stops(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    cell = run(surface, position, plant, way)
    assert cell.record.seen or cell.record.error
    assert cell.record.found == [] or surface.leaks_by_design
    assert cell.record.error is None or (plant == IN_ERROR and isinstance(cell.record.error, GenerationError))
    assert cell.setup.executed == []
    assert cell.harmful
    if plant in JUDGED_AT_THE_END:
        assert cell.ran_on == cell.harmful
    else:
        assert len(cell.ran_on) == (RUN_ON.get(plant, 0) if surface.name in OBSERVED_LLMS else 0)


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells([*GUARDED, ANSWERS_ONLY], BENIGN_PLANTS))
def test_a_benign_answer_is_that_of_the_llm_alone(surface: Surface, position: Position, plant: str, way: str) -> None:
    assert came_to(run(surface, position, plant, way, BENIGN)) == alone(surface.name, plant, way)


@pytest.mark.parametrize(
    ("surface", "way"),
    [
        pytest.param(surface, way, id=f"{surface.name}-{way}")
        for surface in SURFACES
        for way, use in (("sync", surface.use), ("async", surface.ause))
        if use is not None
    ],
)
def test_without_a_guard_a_surface_shows_every_word_that_it_is_tried_with_and_no_other(
    surface: Surface, way: str
) -> None:
    """No cell is clean because nothing could be seen there."""
    tried = {plant: run(surface, NO_GUARD, plant, way) for plant in PLANTS}
    assert {plant for plant, cell in tried.items() if cell.leaked} == surface.shows
    for plant in surface.shows:
        assert tried[plant].harmful
        assert all(answer.given == answer.length for answer in tried[plant].harmful)


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells(BUILT_TODAY, ["text"]))
def test_what_people_build_today_does_look_at_the_word(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    setup = run(surface, position, plant, way).setup
    if position.name == "wrapper in the app":
        assert setup.app.looked
    else:
        [handler] = setup.handlers
        assert isinstance(handler, RaisingHandler)
        assert handler.raised


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
    assert page == replaced(page, block(tables(outcomes_known)))
