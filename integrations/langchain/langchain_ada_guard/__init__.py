"""ada-guard for LangChain. Holds no guard logic."""

from langchain_ada_guard.chat_models import ChatAdaGuard, guard_model
from langchain_ada_guard.cut import StructuredOutputCutError, replacement_only
from langchain_ada_guard.messages import guard_messages, guard_tools

__all__ = [
    "ChatAdaGuard",
    "StructuredOutputCutError",
    "guard_messages",
    "guard_model",
    "guard_tools",
    "replacement_only",
]
