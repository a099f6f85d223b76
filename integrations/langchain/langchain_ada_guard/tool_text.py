"""Tool calls that a local model wrote, as LangChain streams them."""

from __future__ import annotations

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk

from ada_guard.tool_forms import WrittenCall, call_id

__all__ = ["call_chunk"]

_MALFORMED = "malformed: "
"""Stands before arguments that are no JSON object: LangChain repairs what begins like one, into a call that runs."""


def call_chunk(call: WrittenCall, index: int, *, broken_off: bool = False) -> AIMessageChunk:
    """A call as LangChain streams it. Arguments that are no JSON object make it an invalid one, which nothing runs.

    Args:
        call: The call.
        index: Its place among the calls of the answer.
        broken_off: Whether more of it might have come: no arguments are no whole ones then.
    """
    whole = call.values is not None and not (broken_off and not call.arguments.strip())
    arguments = (call.arguments.strip() or "{}") if whole else _MALFORMED + call.arguments
    return AIMessageChunk(
        content="",
        tool_call_chunks=[tool_call_chunk(name=call.name, args=arguments, id=call_id(call), index=index)],
    )
