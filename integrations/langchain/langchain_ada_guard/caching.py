"""What of guarded answers LangChain's cache may keep. Knows no guard: the messages say what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation

from langchain_ada_guard.cut import cut_of, replacement_only

__all__ = ["LastingAnswers", "cache_in_use", "without_prefix"]


def cache_in_use(own: BaseCache | bool | None) -> BaseCache | None:
    """The cache that LangChain would use for a model.

    Args:
        own: The model's ``cache``.
    """
    if own is False:
        return None
    return own if isinstance(own, BaseCache) else get_llm_cache()


def without_prefix(generation: Generation) -> Generation:
    """The same; if it was cut, the replacement alone."""
    if not isinstance(generation, ChatGeneration) or not isinstance(generation.message, AIMessage):
        return generation
    kept = replacement_only(generation.message)
    return generation if kept is generation.message else ChatGeneration(message=kept)


class LastingAnswers(BaseCache):
    """Another cache without what must not be found in it: answers that were cut because a check could not be made.

    Asked again, those may pass. Of an answer that was flagged it keeps the replacement.

    Args:
        cache: Where they are kept.
    """

    def __init__(self, cache: BaseCache) -> None:
        self._cache = cache

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """As the other cache."""
        return self._cache.lookup(prompt, llm_string)

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """As `lookup`, for async code."""
        return await self._cache.alookup(prompt, llm_string)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keeps an answer, if it lasts."""
        if _lasts(return_val):
            self._cache.update(prompt, llm_string, [without_prefix(generation) for generation in return_val])

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """As `update`, for async code."""
        if _lasts(return_val):
            await self._cache.aupdate(prompt, llm_string, [without_prefix(generation) for generation in return_val])

    def clear(self, **kwargs: Any) -> None:
        """As the other cache."""
        self._cache.clear(**kwargs)


def _lasts(generations: Sequence[Generation]) -> bool:
    cuts = [cut_of(generation.message) for generation in generations if isinstance(generation, ChatGeneration)]
    # Where the replacement could not be made, an error is owed that a cache would not raise again.
    return all(cut is None or (cut["verdict"] == "flag" and cut.get("raises") != "replacement") for cut in cuts)
