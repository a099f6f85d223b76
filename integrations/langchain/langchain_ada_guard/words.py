"""Which texts in the nested values of a message somebody could read. Knows no guard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["arguments_text", "is_code", "is_technical", "repeats", "words"]

_TECHNICAL = frozenset(
    {
        *("type", "id", "index", "role", "phase", "status", "outcome", "format", "language", "mime_type", "media_type"),
        *("signature", "thought_signature", "data", "base64", "bytes", "encrypted_content", "encrypted_index"),
        *("encrypted_stdout", "call_id", "item_id", "tool_use_id", "tool_call_id", "file_id", "container_id"),
        *("cache_control", "source_type", "finish_reason", "stop_reason", "system_fingerprint", "model", "caller"),
    }
)
"""Keys whose texts nobody reads, in what is known."""
_CODES = frozenset(
    {"type", "index", "role", "source_type", "mime_type", "media_type"}
    | {"finish_reason", "stop_reason", "system_fingerprint"}
)
"""Keys that anywhere hold a code, as long as it is one."""
_BYTES = frozenset({"data", "base64", "bytes"})
"""Keys that anywhere hold encoded bytes, as long as they are."""
_OPAQUE = re.compile(r"(?:.*_)?ids?_*|.*signatures?_*|encrypted_.*|cache_control|__openai_role__")
"""Keys of ids, signatures and encrypted bytes, whoever sends them."""
_ARGUMENTS = frozenset({"input", "args", "arguments"})
"""Keys of what a model wrote with keys of its own choice."""
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,[\w+/=-]*", re.ASCII)
_CODE = re.compile(r"[\w./:+-]{1,64}", re.ASCII)
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]+={1,2}|[A-Za-z0-9+/_-]{64,}")
_FIELD_NAME = re.compile(r"[a-z][A-Za-z0-9_]{0,39}", re.ASCII)


def words(value: object, *, known: bool = True) -> Iterator[str]:
    """The texts in a nested value.

    Args:
        value: What to look through.
        known: Whether it is of a kind that is known. Otherwise only ids, signatures and encrypted bytes are left out,
            and keys that are no names of fields are texts too.
    """
    if isinstance(value, str):
        if value and not _DATA_URL.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not known and not (isinstance(key, str) and _FIELD_NAME.fullmatch(key)) and not _is_opaque(key):
                yield str(key)
            if key in _ARGUMENTS and isinstance(inner, Mapping | list):
                yield from [arguments_text(inner)] if inner else []
            elif not is_technical(key, inner, known=known):
                yield from words(inner, known=known)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from words(inner, known=known)
    elif isinstance(value, BaseModel):
        yield from words(value.model_dump(), known=known)


def is_technical(key: object, value: object, *, known: bool) -> bool:
    """Whether nobody reads what stands under a key."""
    if known:
        return key in _TECHNICAL
    if key in _BYTES and isinstance(value, str) and _ENCODED.fullmatch(value):
        return True
    return _is_opaque(key) or (key in _CODES and is_code(value))


def _is_opaque(key: object) -> bool:
    """Whether a key is that of an id, of a signature or of encrypted bytes."""
    return isinstance(key, str) and _OPAQUE.fullmatch(key) is not None


def is_code(value: object) -> bool:
    """Whether a value is a short code, such as a finish reason or a model's name, and no text."""
    return not isinstance(value, str) or not value or _CODE.fullmatch(value) is not None


def arguments_text(arguments: object) -> str:
    """Arguments of a tool call as JSON text."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)


def repeats(value: Any, said: str) -> bool:
    """Whether every text in a value stands in what was said, as it is or as JSON has it."""
    return all(
        word in said or any(json.dumps(word, ensure_ascii=ascii_)[1:-1] in said for ascii_ in (True, False))
        for word in words(value, known=False)
    )
