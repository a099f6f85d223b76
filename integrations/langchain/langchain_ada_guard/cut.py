"""What a cut leaves in LangChain: the message that stands in the place of the answer, and the errors that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core import exceptions
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk

from ada_guard import ConfigError, Event, Replace
from ada_guard.delta import Usage
from ada_guard.errors import AdaGuardError
from ada_guard.policy import DEFAULT_REPLACEMENT
from ada_guard.relay import cut_entry

__all__ = [
    "METADATA_KEY",
    "StructuredOutputCutError",
    "cut_chunk",
    "cut_of",
    "refusal_error",
    "replacement_only",
    "usage_after",
]

METADATA_KEY = "ada_guard"
"""Under it ``response_metadata`` says what a cut was."""


def cut_chunk(
    events: Sequence[Event],
    usage: UsageMetadata | None,
    *,
    message_id: str | None = None,
    model_name: str | None = None,
    block: int | None = None,
) -> ChatGenerationChunk:
    """The chunk that ends a stream that was cut: the replacement, and what the cut was.

    Args:
        events: Those of the stream, its texts aside.
        usage: What makes the sum over all chunks right.
        message_id: That of the chunks before.
        model_name: Of the model; None where a chunk before has said it, since names that are merged become one.
        block: Where the chunks before hold content blocks, the number of the next one.
    """
    metadata: dict[str, Any] = {"finish_reason": "content_filter", METADATA_KEY: cut_entry(events)}
    if model_name:
        metadata["model_name"] = model_name
    text = "".join(event.text for event in events if isinstance(event, Replace))
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=text if block is None else [{"type": "text", "text": text, "index": block}],
            id=message_id,
            response_metadata=metadata,
            usage_metadata=usage,
            chunk_position="last",
        )
    )


def cut_of(message: BaseMessage) -> dict[str, Any] | None:
    """What a message's metadata say of a cut; None if the guard did not cut it."""
    entry = message.response_metadata.get(METADATA_KEY)
    return entry if isinstance(entry, dict) else None


def replacement_only(message: AIMessage) -> AIMessage:
    """A message for a history: after a cut the replacement alone, without the text that a stream had shown before it.

    `invoke` gives such messages by itself. Chunks of a stream that were added up hold released text and replacement:
    pass the sum through here before it is kept. A message that was not cut is returned as it is.

    Args:
        message: What the guarded model answered.

    Raises:
        ConfigError: It is no message.
    """
    if not isinstance(message, BaseMessage):
        raise ConfigError(f"replacement_only takes a message, not a {type(message).__name__}")
    entry = cut_of(message)
    if entry is None:
        return message
    characters = entry.get("replacement_chars", 0)
    kept = str(message.text)[-characters:] if characters else ""
    kept = kept or DEFAULT_REPLACEMENT  # a turn without content is refused by many providers
    return AIMessage(
        content=[{"type": "text", "text": kept}] if message.response_metadata.get("output_version") == "v1" else kept,
        id=message.id,
        name=message.name,
        response_metadata={
            # What else is nested there, such as log probabilities, belongs to the text that is gone.
            key: value
            for key, value in message.response_metadata.items()
            if key == METADATA_KEY or not isinstance(value, list | dict)
        }
        | {"finish_reason": "content_filter"},  # some providers say a reason with every chunk, and the sum has them all
        usage_metadata=message.usage_metadata,
    )


def refusal_error(message: BaseMessage) -> Any:
    """What a caller gets who asked for structured output, after a cut.

    langchain-core's own ``ModelRefusalError`` where it has one (1.7.5 and later), `StructuredOutputCutError` elsewhere.
    """
    said = "the answer was cut by ada-guard: there is no structured output"
    standard = getattr(exceptions, "ModelRefusalError", None)
    return StructuredOutputCutError(said) if standard is None else standard(said, raw_message=message)


class StructuredOutputCutError(AdaGuardError):
    """The answer was cut, so that there is no structured output. On langchain-core without `ModelRefusalError`."""


def usage_after(shown: UsageMetadata | None, stated_input: int, counted: Usage | None) -> UsageMetadata:
    """The usage of the last chunk of a stream that was cut: what makes the sum over all chunks right.

    Args:
        shown: The sum over the chunks that have passed.
        stated_input: Input tokens as the model inside stated them; 0 if it did not.
        counted: The guard's own count.
    """
    before_in = shown["input_tokens"] if shown else 0
    before_out = shown["output_tokens"] if shown else 0
    input_tokens = max(0, (stated_input or (counted.prompt_tokens if counted else 0) or 0) - before_in)
    output_tokens = max(0, (counted.completion_tokens if counted else 0) - before_out)
    return UsageMetadata(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens
    )
