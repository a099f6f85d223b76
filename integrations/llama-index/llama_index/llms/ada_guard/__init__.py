"""ada-guard for LlamaIndex. Holds no guard logic."""

from llama_index.llms.ada_guard.cut import cut_of
from llama_index.llms.ada_guard.endpoint import AdaGuardEndpointLLM
from llama_index.llms.ada_guard.engines import Context, NotGuardedWarning, guard_chat_engine, guard_query_engine
from llama_index.llms.ada_guard.huggingface import AdaGuardHuggingFaceLLM
from llama_index.llms.ada_guard.inner import INNER_TAG, GuardedEventFilter, GuardedSpanFilter
from llama_index.llms.ada_guard.judged import judged_against
from llama_index.llms.ada_guard.llm import AdaGuardLLM
from llama_index.llms.ada_guard.messages import guard_messages
from llama_index.llms.ada_guard.query_engine import GuardedQueryEngine

__all__ = [
    "INNER_TAG",
    "AdaGuardEndpointLLM",
    "AdaGuardHuggingFaceLLM",
    "AdaGuardLLM",
    "Context",
    "GuardedEventFilter",
    "GuardedQueryEngine",
    "GuardedSpanFilter",
    "NotGuardedWarning",
    "cut_of",
    "guard_chat_engine",
    "guard_messages",
    "guard_query_engine",
    "judged_against",
]
