"""ada-guard for LangChain. Holds no guard logic."""

from langchain_ada_guard.messages import guard_messages

__all__ = ["guard_messages"]
