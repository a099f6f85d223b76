"""Calls an LLM's methods by name, so that a test is written once for sync and async code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.llms import LLM

__all__ = ["all_of", "first_of", "whole"]


def whole(llm: LLM, name: str, *args: Any, **kwargs: Any) -> Any:
    """What a method gives that does not stream."""
    method = getattr(llm, name)
    if not name.startswith("a"):
        return method(*args, **kwargs)

    async def call() -> Any:
        return await method(*args, **kwargs)

    return asyncio.run(call())


def all_of(llm: LLM, name: str, *args: Any, **kwargs: Any) -> list[Any]:
    """What a method streams, all of it. It must be a real generator, or async generator."""
    return _streamed(llm, name, None, *args, **kwargs)


def first_of(llm: LLM, name: str, *args: Any, **kwargs: Any) -> list[Any]:
    """The first of what a method streams; the stream is closed then."""
    return _streamed(llm, name, 1, *args, **kwargs)


def _streamed(llm: LLM, name: str, most: int | None, *args: Any, **kwargs: Any) -> list[Any]:
    method, found = getattr(llm, name), []
    if not name.startswith("a"):
        stream = method(*args, **kwargs)
        assert isinstance(stream, Generator), f"{name} gave a {type(stream).__name__}, not a generator"
        with closing(stream):
            for response in stream:
                found.append(response)
                if len(found) == most:
                    break
        return found

    async def call() -> None:
        stream = await method(*args, **kwargs)
        assert isinstance(stream, AsyncGenerator), f"{name} gave a {type(stream).__name__}, not an async generator"
        async with aclosing(stream):
            async for response in stream:
                found.append(response)
                if len(found) == most:
                    break

    asyncio.run(call())
    return found
