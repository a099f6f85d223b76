"""Which LLMs an engine holds, and what in it may hold one that cannot be seen. Knows no question and no policy."""

from __future__ import annotations

import inspect
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from logging import Logger
from types import AsyncGeneratorType, CodeType, CoroutineType, FunctionType, GeneratorType
from typing import Any

from llama_index.core import Settings
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.multi_modal_llms import MultiModalLLM
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.storage.index_store.types import BaseIndexStore
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index_instrumentation.dispatcher import Dispatcher

from ada_guard import Guard
from llama_index.llms.ada_guard.walk import Graph

__all__ = ["asking_settings", "held_llms", "is_guarded", "unseen"]

_DATA = (
    BaseNode,
    NodeWithScore,
    ChatMessage,
    IndexStruct,
    BaseChatStore,
    BaseDocumentStore,
    BaseIndexStore,
    BaseKVStore,
    BasePydanticVectorStore,
)
_KNOWN = (*_DATA, LLM, Guard)
_CLOSED = (BaseEmbedding, CallbackManager, Dispatcher, Guard, Logger, *_DATA)
_CLOSED_LIBRARIES = frozenset({"numpy", "sqlalchemy", "tiktoken", "tokenizers", "torch", "transformers"})
"""Large, and no LLM of LlamaIndex's is kept in them."""
_LOOKED_THROUGH = ("ada_guard", "llama_index_instrumentation", "pydantic", "pydantic_core", "workflows")
_LOOKED_THROUGH_PACKAGES = ("llama_index.core", "llama_index.llms.ada_guard")
"""Code that is known to take its LLMs from the objects it is given, short of `_ASKING_SETTINGS`."""
_INSTALLED = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_GENERATING = (
    *("chat", "complete", "completion", "completions", "create_chat_completion", "generate", "generate_content"),
    *("invoke", "messages", "responses"),
)
"""What things that write text are asked with elsewhere."""
_INSIDE = ("fget", "func", "__func__", "__wrapped__")
_OUT_OF_REACH = (GeneratorType, AsyncGeneratorType, CoroutineType, ContextVar, threading.local)
_CONSTRUCTING = ("__init__", "__new__", "__post_init__", "model_post_init")
"""What these took from anywhere is in the object by now."""
_ASKING_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "AutoPrevNextNodePostprocessor": lambda thing: thing.llm is None,
    "ComposableGraphQueryEngine": lambda thing: "llm" not in getattr(thing, "_kwargs", {}),
    "LoadAndSearchToolSpec": lambda thing: True,
    "OnDemandLoaderTool": lambda thing: True,
    "RetrySourceQueryEngine": lambda thing: True,
}
"""Classes of LlamaIndex that take the LLM of `Settings` while they run, and whether one of their objects does.

Source: llama-index-core 0.14.25; ``Settings.llm``, ``as_query_engine()`` or ``RetrieverQueryEngine(retriever)`` outside
of a constructor.
"""


def held_llms(engine: Any) -> Graph:
    """All that an engine holds; `Graph.wanted` are the LLMs that no guard stands around."""
    return Graph(engine, wanted=_is_bare, closed=_is_closed)


def is_guarded(thing: Any) -> bool:
    """Whether it is an LLM that a guard stands around already."""
    return isinstance(thing, BaseLLM) and isinstance(getattr(thing, "guard", None), Guard)


def unseen(held: Graph) -> list[str]:
    """Names of classes, and of functions, that may hold an LLM where it cannot be seen, or not be replaced."""
    search = _Search()
    # What an engine around another one guards, is guarded whatever says it.
    within = {id(engine) for thing in held.seen if (engine := _answering_for(thing)) is not None}
    names = {name for thing in held.seen for name in search.unseen(thing, leads=id(thing) in held.leading)}
    return sorted(names | {type(thing).__name__ for thing in held.seen if id(thing) not in within and _is_mute(thing)})


def asking_settings(held: Graph) -> list[str]:
    """Names of the classes in an engine that ask LlamaIndex's `Settings` for an LLM while they run."""
    if is_guarded(Settings._llm):
        return []
    return sorted({type(thing).__name__ for thing in held.seen if _asks_settings(thing)})


def _is_bare(thing: Any) -> bool:
    # What a structured LLM says, it is told by the one inside; engines look at its class.
    return isinstance(thing, LLM) and not isinstance(thing, StructuredLLM) and not is_guarded(thing)


def _is_closed(thing: Any) -> bool:
    return isinstance(thing, _CLOSED) or is_guarded(thing) or _library(type(thing)) in _CLOSED_LIBRARIES


def _answering_for(thing: Any) -> Any:
    """The engine inside of a `GuardedQueryEngine`."""
    own = vars(thing) if isinstance(thing, BaseQueryEngine) else {}
    return own.get("_engine") if isinstance(own.get("_guard"), Guard) else None


def _is_mute(thing: Any) -> bool:
    """Whether it is an engine of somebody's that answers from no LLM that could be found."""
    if not isinstance(thing, (BaseQueryEngine, BaseChatEngine)) or _is_looked_through(type(thing)):
        return False
    held = held_llms(thing)
    return not held.wanted and not any(map(is_guarded, held.seen))


class _Search:
    """Looks for LLMs where a graph does not lead: in global variables that code names, and in classes."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}
        self._kept: list[Any] = []

    def unseen(self, thing: Any, *, leads: bool) -> Iterator[str]:
        if isinstance(thing, FunctionType):
            if self._names_an_llm(thing):
                yield f"function {thing.__name__}"
        elif _is_out_of_reach(thing):
            yield type(thing).__name__
        elif not isinstance(thing, _KNOWN):
            own = [cls for cls in type(thing).__mro__ if not _is_looked_through(cls)]
            if (own and not leads and _generates(thing)) or any(
                self._holds_an_llm(cls) for cls in own if not _is_elsewhere(cls, "")
            ):
                yield type(thing).__name__

    def _holds_an_llm(self, cls: type) -> bool:
        """Whether an LLM is an attribute of a class itself, or of something there, or is named by its methods."""
        return self._once(cls, lambda: any(self._leads_to_an_llm(value) for value in _of_a_class(cls)))

    def _names_an_llm(self, function: FunctionType) -> bool:
        """Whether a function's code names a global variable that leads to a bare LLM, or to `Settings`."""
        if _is_looked_through(function):
            return False
        return self._once(function, lambda: any(self._leads_to_an_llm(value) for value in _named(function)))

    def _leads_to_an_llm(self, value: Any) -> bool:
        if value is Settings:
            return not is_guarded(Settings._llm)
        if isinstance(value, FunctionType):
            return self._names_an_llm(value)
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            return any(map(_is_bare, value.values() if isinstance(value, dict) else value))
        return any(_library(cls) == "llama_index" for cls in type(value).__mro__) and bool(held_llms(value).wanted)

    def _once(self, thing: Any, found: Callable[[], bool]) -> bool:
        if id(thing) not in self._known:
            self._known[id(thing)] = False  # what comes by here again meanwhile, calls itself
            self._kept.append(thing)
            self._known[id(thing)] = found()
        return self._known[id(thing)]


def _is_out_of_reach(thing: Any) -> bool:
    multi_modal = isinstance(thing, (BaseLLM, MultiModalLLM)) and not isinstance(thing, LLM)
    return multi_modal or isinstance(thing, _OUT_OF_REACH)


def _of_a_class(cls: type) -> Iterator[Any]:
    for name, value in vars(cls).items():
        function = _unwrapped(value)
        if isinstance(function, FunctionType):
            if name not in _CONSTRUCTING and not name.startswith("from_"):
                yield function
        elif not name.startswith("__") and not isinstance(value, type):
            yield value


def _unwrapped(value: Any) -> Any:
    """The function behind a property, a class method, a cache and their like."""
    while not isinstance(value, FunctionType):
        inner = [inspect.getattr_static(value, name, None) for name in _INSIDE]
        if all(one is None for one in inner):
            return value
        value = next(getattr(value, name) for name, one in zip(_INSIDE, inner, strict=True) if one is not None)
    return value


def _named(function: FunctionType) -> list[Any]:
    """What a function's code names: global variables, and `Settings` where it imports them."""
    names = _names(function.__code__)
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    if "Settings" in names and any(name.startswith("llama_index") for name in names):
        found.append(Settings)
    return [value for value in found if value is Settings or not _is_elsewhere(value, _library(function))]


def _is_elsewhere(value: Any, library: str) -> bool:
    """Whether it is a function of some other library, which knows nothing of this one's LLMs."""
    function = _unwrapped(value)
    if not isinstance(function, FunctionType):
        # A class or an object of theirs leads far, and to no LLM of this one's.
        cls = value if isinstance(value, type) else type(value)
        file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
        return _library(cls) not in (library, "llama_index") and file.startswith(_INSTALLED)
    return _library(function) != library and function.__code__.co_filename.startswith(_INSTALLED)


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _generates(thing: Any) -> bool:
    from_llama_index = any(_library(cls) == "llama_index" for cls in type(thing).__mro__)
    return not from_llama_index and any(inspect.getattr_static(thing, name, None) is not None for name in _GENERATING)


def _asks_settings(thing: Any) -> bool:
    for cls in type(thing).__mro__:
        if cls.__name__ in _ASKING_SETTINGS and _library(cls) == "llama_index":
            return _ASKING_SETTINGS[cls.__name__](thing)
    return False


def _is_looked_through(thing: Any) -> bool:
    """Whether a class or a function belongs to code that is known, or to Python."""
    module = str(getattr(thing, "__module__", "") or "")
    within = any(f"{module}.".startswith(f"{package}.") for package in _LOOKED_THROUGH_PACKAGES)
    return within or _library(thing) in _LOOKED_THROUGH or _library(thing) in sys.stdlib_module_names


def _library(thing: Any) -> str:
    return str(getattr(thing, "__module__", "") or "").partition(".")[0]
