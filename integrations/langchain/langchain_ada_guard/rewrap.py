"""Finds a chat model inside a runnable and puts another in its place. Knows no guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableSerializable
from langchain_core.runnables.configurable import RunnableConfigurableAlternatives, RunnableConfigurableFields
from langchain_core.runnables.fallbacks import RunnableWithFallbacks

from ada_guard import ConfigError

__all__ = ["swap_models"]


def swap_models(
    runnable: Runnable[Any, Any], swap: Callable[[BaseChatModel], Runnable[Any, Any]]
) -> Runnable[Any, Any]:
    """The same runnable with every chat model in it swapped; the runnable itself if there is none.

    Looks into whatever is made of runnables: bindings, sequences, parallels, branches, fallbacks, alternatives. An
    alternative that is made when it is chosen is looked through then. A model inside a function or a graph is not
    found.

    Args:
        runnable: What to look through.
        swap: Chat model -> what takes its place.

    Raises:
        ConfigError: Beside a chat model there is one that cannot be swapped: a model with fields that a call
            configures, a model of plain text, a fallback or an alternative in which there is no chat model.
    """
    looking = _Looking(swap)
    changed: Runnable[Any, Any] = looking.through(runnable)
    if changed is not runnable and looking.other is not None:
        raise ConfigError(f"there is a {looking.other} beside the chat model, which cannot be guarded with it")
    return changed


class _Looking:
    """One look through a runnable.

    Attributes:
        other: The type of a model that is no chat model, if there is one.
    """

    def __init__(self, swap: Callable[[BaseChatModel], Runnable[Any, Any]]) -> None:
        self.other: str | None = None
        self._swap = swap

    def through(self, value: Any) -> Any:
        if isinstance(value, BaseChatModel):
            return self._swap(value)
        if isinstance(value, list | tuple):
            items = [self.through(item) for item in value]
            same = all(after is before for after, before in zip(items, value, strict=True))
            return value if same else tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, Mapping):
            entries = {key: self.through(item) for key, item in value.items()}
            return value if all(entries[key] is value[key] for key in value) else entries
        if _is_model(value):
            self.other = type(value).__name__
            return value
        if not isinstance(value, RunnableSerializable):
            return value
        if isinstance(value, RunnableConfigurableAlternatives):
            return self._alternatives(value)
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: after for name, before in fields.items() if (after := self.through(before)) is not before}
        if changed and isinstance(value, RunnableConfigurableFields):
            raise ConfigError(
                "fields of a model that a call configures: guard the model itself, and give it to the call"
            )
        if changed and isinstance(value, RunnableWithFallbacks):
            after = {**fields, **changed}
            _require_all([value.runnable, *value.fallbacks], [after["runnable"], *after["fallbacks"]])
        # Not validated again: some models bind with a class of their own.
        return value.model_copy(update=changed) if changed else value

    def _alternatives(self, value: RunnableConfigurableAlternatives[Any, Any]) -> Any:
        ready = {key: entry for key, entry in value.alternatives.items() if isinstance(entry, Runnable)}
        before = [value.default, *ready.values()]
        after = [self.through(entry) for entry in before]
        has_model = any(found is not entry for found, entry in zip(after, before, strict=True))
        if has_model:
            _require_all(before, after)
        entries: dict[str, Any] = dict(zip(ready, after[1:], strict=True))
        made = {
            key: self._when_made(entry, required=has_model)
            for key, entry in value.alternatives.items()
            if not isinstance(entry, Runnable)
        }
        if not has_model and not made:
            return value
        return value.model_copy(update={"default": after[0], "alternatives": {**entries, **made}})

    def _when_made(self, make: Callable[[], Runnable[Any, Any]], *, required: bool) -> Callable[[], Runnable[Any, Any]]:
        def made() -> Runnable[Any, Any]:
            runnable = make()
            changed = swap_models(runnable, self._swap)
            if required:
                _require_all([runnable], [changed])
            return changed

        return made


def _is_model(value: Any) -> bool:
    """Whether it is a model that is no chat model by its type: one of plain text, or one that a call makes."""
    return isinstance(value, BaseLanguageModel) or (isinstance(value, Runnable) and hasattr(type(value), "bind_tools"))


def _require_all(before: list[Any], after: list[Any]) -> None:
    """Refuses what stands in for a chat model and holds none."""
    for entry, changed in zip(before, after, strict=True):
        if changed is entry:
            raise ConfigError(
                f"there is no chat model in a {type(entry).__name__} that is a fallback or an alternative of one: it "
                "would answer unguarded"
            )
