"""LangChain messages as a guard takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages

__all__ = ["guard_messages"]


def guard_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Role/content mappings for `ada_guard.Guard`; tool calls and tool results keep their place.

    Args:
        messages: LangChain messages in order.
    """
    converted = convert_to_openai_messages(list(messages))
    return [dict(message) for message in (converted if isinstance(converted, list) else [converted])]
