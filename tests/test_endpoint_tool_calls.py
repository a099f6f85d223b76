"""Tool calls of the OpenAI API and its dialects: which call a fragment belongs to."""

from __future__ import annotations

from typing import Any

from ada_guard.sources.tool_calls import ToolCalls


def calls(*deltas: Any) -> list[tuple[int, str | None, str | None, str]]:
    """Index, id, name and text of each fragment."""
    reader = ToolCalls()
    found = [fragment for delta in deltas for fragment in reader.read(delta)]
    return [(f.call.index, f.call.id, f.call.name, f.text) for f in found if f.call is not None]


def call(index: int | None = None, id_: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    return {"tool_calls": [{"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}]}


def test_a_tool_call_announced_then_filled() -> None:
    assert calls(call(0, "a", "f", ""), call(0, arguments='{"x"'), call(0, arguments=": 1}")) == [
        (0, "a", "f", ""),
        (0, "a", "f", '{"x"'),
        (0, "a", "f", ": 1}"),
    ]


def test_id_and_name_repeated_with_every_fragment() -> None:
    assert calls(call(0, "a", "f", "1"), call(0, "a", "f", "2")) == [(0, "a", "f", "1"), (0, "a", "f", "2")]


def test_a_name_in_two_pieces() -> None:
    assert calls(call(0, "a", "get_"), call(0, name="kite"), call(0, arguments="{}"))[-1] == (0, "a", "get_kite", "{}")


def test_two_calls_interleaved() -> None:
    assert calls(call(0, "a", "f", "1"), call(1, "b", "g", "2"), call(0, arguments="3"), call(1, arguments="4")) == [
        (0, "a", "f", "1"),
        (1, "b", "g", "2"),
        (0, "a", "f", "3"),
        (1, "b", "g", "4"),
    ]


def test_no_index_but_ids() -> None:
    assert calls(call(None, "a", "f", "1"), call(None, "b", "g", "2"), call(None, "a", arguments="3")) == [
        (0, "a", "f", "1"),
        (1, "b", "g", "2"),
        (0, "a", "f", "3"),
    ]


def test_neither_index_nor_id() -> None:
    assert calls(call(name="f", arguments="1"), call(arguments="2"), call(name="g", arguments="3")) == [
        (0, None, "f", "1"),
        (0, None, "f", "2"),
        (1, None, "g", "3"),
    ]


def test_every_call_under_number_0() -> None:
    assert calls(call(0, "a", "f", "{}"), call(0, "b", "g", "{}"), call(0, "b", arguments=" ")) == [
        (0, "a", "f", "{}"),
        (1, "b", "g", "{}"),
        (1, "b", "g", " "),
    ]


def test_an_id_that_changes_with_every_fragment_is_no_new_call() -> None:
    assert calls(call(0, "a", "f", "1"), call(0, "b", arguments="2")) == [(0, "a", "f", "1"), (0, "a", "f", "2")]


def test_numbers_that_do_not_begin_at_0_become_places() -> None:
    assert [c[0] for c in calls(call(7, "a", "f", "1"), call(9, "b", "g", "2"), call(7, arguments="3"))] == [0, 1, 0]


def test_arguments_as_an_object() -> None:
    assert calls(call(0, "a", "f", {"x": "é"})) == [(0, "a", "f", '{"x": "é"}')]


def test_legacy_function_call() -> None:
    legacy = [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}]
    assert calls(*legacy) == [(0, None, "f", ""), (0, None, "f", "{}")]
