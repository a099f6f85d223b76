"""Finds a chat model inside a runnable and puts another in its place. Knows no guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableSerializable
from langchain_core.runnables.configurable import RunnableConfigurableFields

from ada_guard import ConfigError

__all__ = ["swap_models"]


def swap_models(
    runnable: Runnable[Any, Any], swap: Callable[[BaseChatModel], Runnable[Any, Any]]
) -> Runnable[Any, Any]:
    """The same runnable with every chat model in it swapped; the runnable itself if there is none.

    Looks into whatever is made of runnables: bindings, sequences, parallels, branches, fallbacks, alternatives. A model
    inside a function or a graph is not found.

    Args:
        runnable: What to look through.
        swap: Chat model -> what takes its place.

    Raises:
        ConfigError: A model in it has fields that a call configures, which what takes its place does not have.
    """
    changed: Runnable[Any, Any] = _swapped(runnable, swap)
    return changed


def _swapped(value: Any, swap: Callable[[BaseChatModel], Runnable[Any, Any]]) -> Any:
    if isinstance(value, BaseChatModel):
        return swap(value)
    if isinstance(value, list | tuple):
        items = [_swapped(item, swap) for item in value]
        same = all(after is before for after, before in zip(items, value, strict=True))
        return value if same else tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        entries = {key: _swapped(item, swap) for key, item in value.items()}
        return value if all(entries[key] is value[key] for key in value) else entries
    if not isinstance(value, RunnableSerializable):
        return value
    fields = {name: getattr(value, name) for name in type(value).model_fields}
    changed = {name: after for name, before in fields.items() if (after := _swapped(before, swap)) is not before}
    if changed and isinstance(value, RunnableConfigurableFields):
        raise ConfigError("fields of a model that a call configures: guard the model itself, and give it to the call")
    # Not validated again: some models bind with a class of their own.
    return value.model_copy(update=changed) if changed else value
