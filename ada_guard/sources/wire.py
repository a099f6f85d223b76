"""Checks of parsed JSON from outside: the type that is expected, or an error that names the field only."""

from __future__ import annotations

from typing import Any

from ada_guard.errors import GenerationError

__all__ = ["index_of", "ints_of", "items_of", "mapping_of", "text_of", "unreadable"]


def unreadable(why: str) -> GenerationError:
    """The error of a chunk that is not what the API promises. `why` holds names of fields, no content."""
    return GenerationError(f"the endpoint sent a chunk that cannot be read: {why}")


def mapping_of(value: Any, field: str) -> dict[str, Any]:
    """The value as an object."""
    if not isinstance(value, dict):
        raise unreadable(f"field '{field}' is not of its type")
    return value


def items_of(holder: dict[str, Any], field: str) -> list[Any]:
    """A list field; empty where it is missing or null."""
    value = holder.get(field)
    if value is None:
        return []
    if not isinstance(value, list):
        raise unreadable(f"field '{field}' is not of its type")
    return value


def text_of(holder: dict[str, Any], field: str) -> str:
    """A string field; empty where it is missing or null.

    JSON may escape half of a UTF-16 pair, which is no character and cannot be encoded again: halves that stand
    together are joined, others become U+FFFD.
    """
    value = holder.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise unreadable(f"field '{field}' is not of its type")
    if any("\ud800" <= character <= "\udfff" for character in value):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


def index_of(holder: dict[str, Any], field: str, *, default: int) -> int:
    """A whole number of at least 0; `default` where it is missing or null."""
    value = holder.get(field)
    if value is None:
        return default
    if type(value) is not int or value < 0:
        raise unreadable(f"field '{field}' is not of its type")
    return value


def ints_of(holder: dict[str, Any], field: str) -> tuple[int, ...]:
    """A list of token ids; empty where it is missing or null."""
    values = items_of(holder, field)
    if any(type(value) is not int or value < 0 for value in values):
        raise unreadable(f"field '{field}' is not of its type")
    return tuple(values)
