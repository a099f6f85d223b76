"""LlamaIndex messages as a guard takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

__all__ = ["guard_messages"]


def guard_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Role/content mappings for `ada_guard.Guard`, the text blocks of each message joined.

    Args:
        messages: LlamaIndex messages in order.
    """
    return [{"role": message.role.value, "content": message.content or ""} for message in messages]
