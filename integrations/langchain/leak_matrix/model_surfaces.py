"""What a caller of a model or a chain can read."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from leak_matrix.plants import ARGUMENTS
from leak_matrix.positions import Setup
from leak_matrix.record import Record
from leak_matrix.surface import ASK, Surface, chain_of, config_of, takes_v3, without_beta_warnings

__all__ = ["MODEL_SURFACES"]


def _invoke(setup: Setup, record: Record) -> None:
    record.end(setup.model.invoke(ASK, config_of(setup)))


async def _ainvoke(setup: Setup, record: Record) -> None:
    record.end(await setup.model.ainvoke(ASK, config_of(setup)))


def _stream(setup: Setup, record: Record) -> None:
    whole: Any = None
    for chunk in setup.model.stream(ASK, config_of(setup)):
        record.see("a chunk", chunk)
        whole = chunk if whole is None else whole + chunk
    record.end(whole)


async def _astream(setup: Setup, record: Record) -> None:
    whole: Any = None
    async for chunk in setup.model.astream(ASK, config_of(setup)):
        record.see("a chunk", chunk)
        whole = chunk if whole is None else whole + chunk
    record.end(whole)


def _batch(setup: Setup, record: Record) -> None:
    record.end(*setup.model.batch([ASK, ASK], config_of(setup) | {"max_concurrency": 1}))


async def _abatch(setup: Setup, record: Record) -> None:
    # One after the other, as above: the speaker numbers its answers.
    record.end(*await setup.model.abatch([ASK, ASK], config_of(setup) | {"max_concurrency": 1}))


def _chain_stream(setup: Setup, record: Record) -> None:
    said = []
    for piece in chain_of(setup).stream({"ask": ASK}, config_of(setup)):
        record.see("a piece", piece)
        said.append(piece)
    record.end("".join(said))


async def _chain_astream(setup: Setup, record: Record) -> None:
    said = []
    async for piece in chain_of(setup).astream({"ask": ASK}, config_of(setup)):
        record.see("a piece", piece)
        said.append(piece)
    record.end("".join(said))


async def _events_v2(setup: Setup, record: Record) -> None:
    said, ends = "", []
    async for event in chain_of(setup).astream_events({"ask": ASK}, config_of(setup), version="v2"):
        record.see(event["event"], event)
        if event["event"] == "on_chat_model_stream":
            said += str(event["data"]["chunk"].text)
        if event["event"] == "on_chat_model_end":
            ends.append(event["data"]["output"])
    record.end(said, *ends)


@without_beta_warnings
def _events_v3(setup: Setup, record: Record) -> None:
    model: Any = setup.model
    stream = model.stream_events(ASK, config_of(setup), version="v3")
    for event in stream:
        record.see(event["event"], event)
    record.see("text", str(stream.text))
    record.see("reasoning", str(stream.reasoning))
    record.end(stream.output)


@without_beta_warnings
async def _aevents_v3(setup: Setup, record: Record) -> None:
    model: Any = setup.model
    stream = await model.astream_events(ASK, config_of(setup), version="v3")
    async for event in stream:
        record.see(event["event"], event)
    record.see("text", await stream.text)
    record.see("reasoning", await stream.reasoning)
    record.end(await stream.output)


def _structured(setup: Setup, record: Record) -> None:
    model: Any = setup.model
    record.end(model.with_structured_output(ARGUMENTS, include_raw=True).invoke(ASK, config_of(setup)))


async def _astructured(setup: Setup, record: Record) -> None:
    model: Any = setup.model
    record.end(await model.with_structured_output(ARGUMENTS, include_raw=True).ainvoke(ASK, config_of(setup)))


def _generate(setup: Setup, record: Record) -> None:
    model: Any = setup.model
    result = model.generate([[HumanMessage(ASK)]], **config_of(setup))
    record.see("the result", result)
    record.end(result.generations[0][0].message)


async def _agenerate(setup: Setup, record: Record) -> None:
    model: Any = setup.model
    result = await model.agenerate([[HumanMessage(ASK)]], **config_of(setup))
    record.see("the result", result)
    record.end(result.generations[0][0].message)


MODEL_SURFACES: list[Surface] = [
    Surface(name="invoke", kind="chain", use=_invoke, ause=_ainvoke),
    Surface(name="generate", kind="chat model", use=_generate, ause=_agenerate),
    Surface(name="stream", kind="chain", use=_stream, ause=_astream),
    Surface(name="batch", kind="chain", use=_batch, ause=_abatch),
    Surface(name="chain.stream", kind="chain", use=_chain_stream, ause=_chain_astream),
    Surface(name="astream_events v2", kind="chain", use=None, ause=_events_v2),
    *(
        [Surface(name="stream_events v3", kind="chat model", use=_events_v3, ause=_aevents_v3)]
        if takes_v3(BaseChatModel)
        else []
    ),
    Surface(name="with_structured_output", kind="chat model", use=_structured, ause=_astructured),
]
