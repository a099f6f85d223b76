"""Reads prompts, prefills and message files, and says in one line what is wrong with them. Knows no model.

Errors name the file and the place in it, never what stands there.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ada_guard.errors import ConfigError

__all__ = ["checked_text", "conversation"]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


_MESSAGES = TypeAdapter(list[_Message])


def conversation(
    *, prompt: str | None, messages: Path | None, system: str | None, prefill: str | None
) -> list[dict[str, Any]] | None:
    """The messages that the options describe; None where they give no prompt.

    Raises:
        ConfigError: Options that exclude each other, a file that cannot be read or is not what it should be.
    """
    if prompt is not None and messages is not None:
        raise ConfigError("--prompt and --messages exclude each other")
    if system is not None and messages is not None:
        raise ConfigError("--system goes with --prompt; a messages file has its own system message")
    if prompt is None and messages is None:
        if prefill is not None:
            raise ConfigError("--prefill needs --prompt or --messages")
        return None
    talk: list[dict[str, Any]] = []
    if messages is not None:
        talk = _read_messages(messages)
    else:
        if system is not None:
            talk.append({"role": "system", "content": checked_text(system, "--system")})
        talk.append({"role": "user", "content": checked_text(prompt or "", "--prompt")})
    if prefill is not None:
        if talk[-1]["role"] == "assistant":
            raise ConfigError("--prefill: the messages already end in an assistant message, which is a prefill")
        text = _read(Path(prefill[1:]), "--prefill") if prefill.startswith("@") else prefill
        talk.append({"role": "assistant", "content": checked_text(text, "--prefill")})
    return talk


def checked_text(text: str, option: str) -> str:
    """A text of the command line, checked."""
    if not text.strip():
        raise ConfigError(f"{option} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8 arrive as lone surrogates
        raise ConfigError(f"{option} is not valid UTF-8") from None
    return text


def _read(path: Path, option: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{option}: {str(path)!r} is not valid UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise ConfigError(f"{option}: cannot read {str(path)!r}: {why}") from None


def _read_messages(path: Path) -> list[dict[str, Any]]:
    text = _read(path, "--messages")
    try:
        messages = _MESSAGES.validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"--messages: {str(path)!r} {_problem(error)}") from None
    if not messages:
        raise ConfigError(f"--messages: {str(path)!r} holds no message")
    for number, (one, other) in enumerate(pairwise(messages), start=2):
        if one.role == other.role and one.role in ("user", "assistant"):
            raise ConfigError(
                f"--messages: {str(path)!r} message {number} repeats its role: user and assistant alternate"
            )
    return [message.model_dump(exclude_none=True) for message in messages]


def _problem(error: ValidationError) -> str:
    """The first finding, without its input and without names that come from the file."""
    finding = error.errors(include_input=False, include_url=False, include_context=False)[0]
    kind, place = finding["type"], finding["loc"]
    if kind == "json_invalid":
        return "is not JSON"
    if not place:
        return "must hold a JSON list of messages"
    where = f"message {int(place[0]) + 1}"
    field = str(place[1]) if len(place) > 1 and place[1] in _Message.model_fields else None
    if kind == "extra_forbidden" and field is None:
        return f"{where} has an unknown field; known are {', '.join(_Message.model_fields)}"
    if field is None:
        return f"{where} must be an object with role and content"
    if kind == "missing":
        return f"{where} has no {field}"
    return f"{where} has a {field} of the wrong type"
