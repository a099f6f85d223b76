"""ada-guard for LangChain. Holds no guard logic.

What is where: `chat_models`, `huggingface` and `endpoint` are the guarded models, on `guarded` (what they share),
`relay` (what passes of a model inside) and `spoken` (what passes of a guard's own source). `fragments`, `calls` and
`words` say what of a provider's messages the guard must see, `cut` what a cut leaves, `unobserved` and `failures`
keep raw text from those who look on. `middleware` and the modules named ``agent_...`` are for agents; `callbacks`
with `counts` and `followed` is the audit; `runnable` with `items` the step of a chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_ada_guard.callbacks import AdaGuardCallbackHandler, CallbackLeakWarning
from langchain_ada_guard.chat_models import ChatAdaGuard, guard_model
from langchain_ada_guard.counts import GuardCounts
from langchain_ada_guard.cut import StructuredOutputCutError, replacement_only
from langchain_ada_guard.endpoint import ChatAdaGuardEndpoint
from langchain_ada_guard.huggingface import ChatAdaGuardHuggingFace
from langchain_ada_guard.messages import guard_messages, guard_tools
from langchain_ada_guard.runnable import RunnableAdaGuard

if TYPE_CHECKING:
    from langchain_ada_guard.middleware import AdaGuardMiddleware

__all__ = [
    "AdaGuardCallbackHandler",
    "AdaGuardMiddleware",
    "CallbackLeakWarning",
    "ChatAdaGuard",
    "ChatAdaGuardEndpoint",
    "ChatAdaGuardHuggingFace",
    "GuardCounts",
    "RunnableAdaGuard",
    "StructuredOutputCutError",
    "guard_messages",
    "guard_model",
    "guard_tools",
    "replacement_only",
]


def __getattr__(name: str) -> Any:
    """The middleware on use: agents are an extra."""
    if name != "AdaGuardMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from langchain_ada_guard.middleware import AdaGuardMiddleware
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("langchain", "langgraph"):
            raise
        raise ImportError("AdaGuardMiddleware needs an extra: pip install 'langchain-ada-guard[agents]'") from None
    return AdaGuardMiddleware
