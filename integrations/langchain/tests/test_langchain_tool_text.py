"""Tool calls as families of models write them: found wherever the text is split, and never made of half of one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny_models
from langchain_core.messages import AIMessageChunk

from langchain_ada_guard.tool_text import CallReader, call_chunk

TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
    for name in ("weather", "add")
]
ARGUMENTS = {"city": 'Köln {a} "b"', "days": [1, 2]}
OBJECT = json.dumps({"name": "weather", "arguments": ARGUMENTS}, ensure_ascii=False)
LLAMA = json.dumps({"name": "weather", "parameters": ARGUMENTS})
PLAIN = tiny_models.tokenizer()


def with_special(*tokens: str) -> Any:
    tokenizer = tiny_models.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def read(text: str, *, tokenizer: Any = PLAIN, size: int = 3, prompt: Any = ()) -> tuple[str, str, AIMessageChunk]:
    """What is shown at once, what at the end, and the message with the calls."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    reader = CallReader(tokenizer, TOOLS, prompt=prompt)
    early = "".join(reader.push(shown[at : at + size]) for at in range(0, len(shown), size))
    rest = reader.finish(ids)
    message = AIMessageChunk(content="")
    for index, call in enumerate(rest.calls):
        message += call_chunk(call, index)
    return early, rest.text, message


def named(message: AIMessageChunk) -> list[tuple[str, Any]]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("before", "written"),
    [
        ("Let me look.\n", f"<tool_call>\n{OBJECT}\n</tool_call>"),
        ("", f"<tool_call>{OBJECT}</tool_call>"),
        ("", f"<tool_call>{OBJECT}"),
        ("Let me look.", f"[TOOL_CALLS][{OBJECT}]"),
        ("Let me look.", f"[TOOL_CALLS] {OBJECT}"),
        ("", f"[TOOL_CALLS]weather[ARGS]{json.dumps(ARGUMENTS)}"),
        ("", f"[TOOL_CALLS]weather{json.dumps(ARGUMENTS)}"),
        ("", f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{json.dumps(ARGUMENTS)}"),
        ("", LLAMA),
        ("", "\n" + LLAMA),
        ("", f"<|python_tag|>{LLAMA}"),
    ],
)
def test_a_call_is_found_and_the_text_before_it_is_shown_at_once(before: str, written: str, size: int) -> None:
    early, late, message = read(before + written, size=size)
    assert early == before
    assert late == ""
    assert named(message) == [("weather", ARGUMENTS)]
    assert message.tool_calls[0]["id"]


@pytest.mark.parametrize(
    "written",
    [
        f'<tool_call>{OBJECT}</tool_call>\n<tool_call>{{"name": "add", "arguments": {{}}}}</tool_call>',
        f'[TOOL_CALLS][{OBJECT}, {{"name": "add", "arguments": {{}}, "id": "123456789"}}]',
        f"[TOOL_CALLS]weather[ARGS]{json.dumps(ARGUMENTS)}[TOOL_CALLS]add[ARGS]{{}}",
        f'{LLAMA}; {{"name": "add", "parameters": {{}}}}',
        f'[{OBJECT}, {{"name": "add"}}]',
    ],
)
def test_several_calls_are_found_in_order(written: str) -> None:
    early, late, message = read(written)
    assert (early, late) == ("", "")
    assert named(message) == [("weather", ARGUMENTS), ("add", {})]


def test_an_id_that_the_model_wrote_is_kept() -> None:
    _, _, message = read('[TOOL_CALLS][{"name": "add", "arguments": {}, "id": "123456789"}]')
    assert message.tool_calls[0]["id"] == "123456789"
    _, _, message = read("[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{}")
    assert message.tool_calls[0]["id"] == "abcdefghi"


def test_arguments_that_are_written_as_a_text_are_read() -> None:
    _, _, message = read('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>')
    assert named(message) == [("add", {"a": 1})]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("marker", "written"),
    [
        (["[TOOL_CALLS]"], f"[TOOL_CALLS][{OBJECT}]"),
        (["[TOOL_CALLS]", "[ARGS]"], f"[TOOL_CALLS]weather[ARGS]{json.dumps(ARGUMENTS)}"),
        (["<|python_tag|>"], f"<|python_tag|>{LLAMA}"),
        (["<tool_call>", "</tool_call>"], f"<tool_call>{OBJECT}</tool_call>"),
    ],
)
def test_a_marker_that_decoding_drops_is_found_by_its_id(marker: list[str], written: str, size: int) -> None:
    early, late, message = read(f"Let me look. {written}", tokenizer=with_special(*marker), size=size)
    assert early + late == "Let me look. "
    assert named(message) == [("weather", ARGUMENTS)]


def test_ids_of_another_tokenizer_are_not_read() -> None:
    tokenizer = with_special("[TOOL_CALLS]")
    reader = CallReader(tokenizer, TOOLS)
    early = reader.push(f"For example [{OBJECT}]")
    rest = reader.finish(tokenizer.encode("[TOOL_CALLS]add{}", add_special_tokens=False))
    assert early + rest.text == f"For example [{OBJECT}]"
    assert not rest.calls


def test_a_stop_string_in_the_ids_is_not_read() -> None:
    tokenizer = with_special("[TOOL_CALLS]")
    ids = tokenizer.encode(f"Look.[TOOL_CALLS][{OBJECT}]STOP", add_special_tokens=False)
    reader = CallReader(tokenizer, TOOLS)
    assert reader.push(f"Look.[{OBJECT}]") == "Look."
    rest = reader.finish(ids)
    assert (rest.text, [call.name for call in rest.calls]) == ("", ["weather"])


def test_without_the_marker_what_looks_like_a_call_is_text() -> None:
    said = f"Here is an example: [{OBJECT}] and weather{{}} too."
    early, late, message = read(said, tokenizer=with_special("[TOOL_CALLS]"))
    assert early == "Here is an example: "
    assert early + late == said
    assert not message.tool_calls


@pytest.mark.parametrize(
    "said",
    [
        "A plain answer.",
        "",
        " ",
        "Half a marker: <tool_",
        "a < b and [1, 2] and {x}",
        "Use the <tool_call> tag, and close it with </tool_call>.",
        "</tool_call> closes it.",
        '{"answer": 42}',
        "[1, 2, 3]",
        '{"name": "Ada", "parameters": {}}',
        '{"name": "Ada"',
        f"{LLAMA} is how a call looks.",
        "{not json",
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_an_answer_without_a_call_is_shown_whole(said: str, size: int) -> None:
    early, late, message = read(said, size=size)
    assert early + late == said
    assert not message.tool_call_chunks


def test_text_behind_a_call_is_kept() -> None:
    early, late, message = read(f"Before. <tool_call>{OBJECT}</tool_call> After.")
    assert (early, late) == ("Before. ", " After.")
    assert len(message.tool_calls) == 1


def test_text_about_markers_before_a_call_is_kept() -> None:
    early, late, message = read(f"The <tool_call> tag: <tool_call>{OBJECT}</tool_call>")
    assert early + late == "The <tool_call> tag: "
    assert len(message.tool_calls) == 1


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (f"<tool_call>{OBJECT[:-3]}", "weather"),
        ('<tool_call>{"name": "weather", "arguments": {"city": "K', "weather"),
        ('<tool_call>{"name": "weather", "arguments": {"city": "K}}</tool_call>', "weather"),
        ('<tool_call>{"arguments": {}}</tool_call>', None),
        ('<tool_call>{"name": "weather", "arguments": [1]}</tool_call>', "weather"),
        ('[TOOL_CALLS]weather[ARGS]{"city": "K', "weather"),
        ('[TOOL_CALLS][{"name": "weather", "arguments": {}}', "weather"),
        ('{"name": "weather", "parameters": {"city": ', "weather"),
    ],
)
def test_half_a_call_is_an_invalid_one_that_nothing_repairs(written: str, name: str | None) -> None:
    _, _, message = read(written)
    assert not message.tool_calls
    [invalid] = message.invalid_tool_calls
    assert invalid["name"] == name
    last = message + AIMessageChunk(content="", chunk_position="last")
    assert not last.tool_calls
    assert last.invalid_tool_calls


RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "thinking": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}


def test_a_tokenizer_with_a_template_for_responses_reads_them_itself() -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.response_template = RESPONSE_TEMPLATE
    prompt = tokenizer.encode("<|im_start|>assistant\n")
    said = f"<think>Hm.</think>Let me look.<call>{OBJECT}</call>"
    early, late, message = read(said, tokenizer=tokenizer, prompt=prompt)
    assert (early, late) == ("", "Let me look.")
    assert named(message) == [("weather", ARGUMENTS)]
    assert read("A plain answer.", tokenizer=tokenizer, prompt=prompt)[1] == "A plain answer."
    broken = f"<call>{OBJECT[:-4]}</call>"
    assert read(broken, tokenizer=tokenizer, prompt=prompt)[1] == broken
