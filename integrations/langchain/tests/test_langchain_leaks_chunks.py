"""However an answer is cut into chunks, and whatever else they hold: the same is shown, and nothing from a cut on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk

from ada_guard.policy import DEFAULT_REPLACEMENT
from ada_guard.testing import UNSAFE
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.testing import ScriptedChatModel, word_chunks
from leak_matrix.plants import BENIGN, TOOL, said
from leak_matrix.positions import PASSED, scripted_guard
from leak_matrix.record import plain, texts

UNTIMED = settings(deadline=None)


def chunked(text: str, ends: Sequence[int], *, listed: bool) -> list[AIMessageChunk]:
    """A text in chunks that end where told, with a last one as a provider sends it."""
    edges = [0, *sorted(ends), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    contents: list[Any] = [[{"type": "text", "text": piece, "index": 0}] if listed else piece for piece in pieces]
    last = word_chunks("")[-1]
    return [*(AIMessageChunk(content=content, id="scripted-1") for content in contents), last]


ANSWER = {word: "".join(said(word)) for word in (UNSAFE, BENIGN)}
ENDS = st.lists(st.integers(0, len(ANSWER[UNSAFE])), max_size=60)


def streamed(model: Any) -> tuple[list[AIMessageChunk], Any]:
    chunks = list(model.stream("Tell me."))
    return chunks, plain(sum(chunks[1:], start=chunks[0]))


async def astreamed(model: Any) -> tuple[list[AIMessageChunk], Any]:
    chunks = [chunk async for chunk in model.astream("Tell me.")]
    return chunks, plain(sum(chunks[1:], start=chunks[0]))


def models(word: str, ends: Sequence[int], *, listed: bool) -> tuple[Any, Any]:
    """A model that says an answer in such chunks, and the same one guarded."""
    model = ScriptedChatModel(script=lambda _: chunked(ANSWER[word], ends, listed=listed))
    return model, ChatAdaGuard(inner=model, guard=scripted_guard())


@UNTIMED
@given(ends=ENDS, listed=st.booleans())
def test_what_is_shown_before_a_cut_does_not_depend_on_chunks(ends: list[int], listed: bool) -> None:
    chunks, _ = streamed(models(UNSAFE, ends, listed=listed)[1])
    assert "".join(str(chunk.text) for chunk in chunks) == PASSED + DEFAULT_REPLACEMENT
    assert not any(UNSAFE in text for text in texts(chunks))


@UNTIMED
@given(ends=ENDS, listed=st.booleans())
async def test_what_is_shown_before_a_cut_does_not_depend_on_chunks_in_async_code(
    ends: list[int], listed: bool
) -> None:
    chunks, _ = await astreamed(models(UNSAFE, ends, listed=listed)[1])
    assert "".join(str(chunk.text) for chunk in chunks) == PASSED + DEFAULT_REPLACEMENT
    assert not any(UNSAFE in text for text in texts(chunks))


@UNTIMED
@given(ends=ENDS, listed=st.booleans())
def test_a_benign_stream_adds_up_to_the_same_in_any_chunks(ends: list[int], listed: bool) -> None:
    model, guarded = models(BENIGN, ends, listed=listed)
    assert streamed(guarded)[1] == streamed(model)[1]
    assert plain(guarded.invoke("Tell me.")) == plain(model.invoke("Tell me."))


@UNTIMED
@given(ends=ENDS, listed=st.booleans())
async def test_a_benign_stream_adds_up_to_the_same_in_any_chunks_in_async_code(ends: list[int], listed: bool) -> None:
    model, guarded = models(BENIGN, ends, listed=listed)
    assert (await astreamed(guarded))[1] == (await astreamed(model))[1]
    assert plain(await guarded.ainvoke("Tell me.")) == plain(await model.ainvoke("Tell me."))


KINDS = ("text", "reasoning_content", "refusal", "thinking", "call", "empty", "usage")
PIECES = st.lists(st.tuples(st.sampled_from(KINDS), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40)
"""Kind of chunk, whether it mirrors its words, and how many of the words before."""


def mixed(pieces: Sequence[tuple[str, bool, int]], unsafe_at: int | None, *, listed: bool) -> list[AIMessageChunk]:
    """An answer whose chunks are of several kinds, with side fields that mirror words."""
    spoken = [f" <{at}>" if at != unsafe_at else f" {UNSAFE}" for at in range(len(pieces))]
    chunks = []
    for at, (kind, mirrors, before) in enumerate(pieces):
        word, fields = spoken[at], dict[str, Any](content=[] if listed else "")
        if kind == "text":
            fields["content"] = [{"type": "text", "text": word, "index": 0}] if listed else word
        elif kind == "thinking":
            fields["content"] = [{"type": "thinking", "thinking": word, "index": 1}] if listed else word
        elif kind == "call":
            fields["tool_call_chunks"] = [{"name": TOOL, "args": f'{{"query": "{word}"}}', "id": str(at), "index": at}]
        elif kind == "usage":
            fields["usage_metadata"] = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        elif kind != "empty":
            fields["additional_kwargs"] = {kind: word}
        if mirrors and kind not in ("empty", "usage"):
            fields["response_metadata"] = {"logprobs": {"content": [{"token": word}]}}
        elif mirrors:
            fields["response_metadata"] = {"raw": {"words": spoken[max(0, at - before) : at]}}
        chunks.append(AIMessageChunk(id="scripted-1", **fields))
    return [*chunks, word_chunks("")[-1]]


@UNTIMED
@given(pieces=PIECES, listed=st.booleans())
def test_a_benign_stream_of_mixed_chunks_adds_up_to_the_same(pieces: list[tuple[str, bool, int]], listed: bool) -> None:
    model = ScriptedChatModel(script=lambda _: mixed(pieces, None, listed=listed))
    guarded = ChatAdaGuard(inner=model, guard=scripted_guard())
    assert streamed(guarded)[1] == streamed(model)[1]
    assert plain(guarded.invoke("Tell me.")) == plain(model.invoke("Tell me."))


@UNTIMED
@given(pieces=PIECES, listed=st.booleans(), data=st.data())
def test_no_word_of_mixed_chunks_is_seen_from_a_harmful_one_on(
    pieces: list[tuple[str, bool, int]], listed: bool, data: st.DataObject
) -> None:
    speaking = [at for at, (kind, _, _) in enumerate(pieces) if kind not in ("empty", "usage")]
    assume(speaking)
    unsafe_at = data.draw(st.sampled_from(speaking))
    model = ScriptedChatModel(script=lambda _: mixed(pieces, unsafe_at, listed=listed))
    guarded = ChatAdaGuard(inner=model, guard=scripted_guard())
    for seen in (*streamed(guarded), guarded.invoke("Tell me.")):
        found = list(texts(seen))
        gone = [UNSAFE, *(f"<{at}>" for at in range(unsafe_at + 1, len(pieces)))]
        assert not any(word in text for word in gone for text in found)
