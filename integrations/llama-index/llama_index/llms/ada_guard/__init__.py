"""ada-guard for LlamaIndex. Holds no guard logic."""

from llama_index.llms.ada_guard.messages import guard_messages

__all__ = ["guard_messages"]
