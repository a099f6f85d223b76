"""What a cut inside an agent leaves behind: which error the agent raises once its model step is over.

A guarded model inside an agent raises nothing for flagged text: a middleware that retries, or falls back to another
model, would take that for a failure and ask again. The message that takes the place of the answer says what is owed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from ada_guard import AdaGuardError, ContentFlaggedError, Decision, Policy, Verdict
from ada_guard.policy import DEFAULT_REPLACEMENT
from langchain_ada_guard.cut import METADATA_KEY, cut_of, refusal_error, replacement_only

__all__ = ["OWED_KEY", "AnswerCut", "Owed", "kept_message", "owing", "raise_owed"]

OWED_KEY = "raises"
"""Key in the message's entry about the cut: the error that the agent raises after the model's step."""
Owed = Literal["flagged", "replacement", "refusal"]
"""``"flagged"``: `ContentFlaggedError`, with ``on_flag="raise"``; ``"replacement"``: the policy's replacement function
failed; ``"refusal"``: there is no structured output."""


class AnswerCut(BaseException):
    """An answer that was to be parsed was cut; on its way from the model to the guard's middleware.

    Not an `Exception`: the middlewares in between must not retry, replace or parse it.
    """

    def __init__(self, message: AIMessage) -> None:
        super().__init__("the answer was cut by ada-guard")
        self.message = message

    @classmethod
    def first_of(cls, group: BaseExceptionGroup[AnswerCut]) -> AnswerCut:
        """One of a group, as a group of tasks makes them."""
        found: BaseException = group
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        assert isinstance(found, cls)
        return found


def kept_message(message: AIMessage, policy: Policy) -> AIMessage:
    """The message for the agent's state: after a cut the replacement alone. Another one is returned as it is."""
    kept, entry = replacement_only(message), cut_of(message)
    if entry is None or entry.get(OWED_KEY) != "flagged" or entry["replacement_chars"]:
        return kept
    text = _replacement(policy, _verdict(entry)) or DEFAULT_REPLACEMENT
    kept.content = text
    kept.response_metadata[METADATA_KEY] = {**entry, "replacement_chars": len(text)}
    return kept


def owing(message: AIMessage, owed: Owed) -> AIMessage:
    """The same message with an error that the agent is to raise; one that it owes already comes first."""
    entry = {OWED_KEY: owed, **(cut_of(message) or {})}
    return message.model_copy(update={"response_metadata": {**message.response_metadata, METADATA_KEY: entry}})


def raise_owed(messages: Sequence[BaseMessage]) -> None:
    """Raises what the answer at the end of a conversation owes, if it owes anything.

    Raises:
        ContentFlaggedError: It was flagged, and the policy says ``on_flag="raise"``.
        AdaGuardError: The policy's replacement function failed.
        ModelRefusalError: It was cut where the agent owes its caller structured output;
            `langchain_ada_guard.StructuredOutputCutError` on a langchain-core that has no such error.
    """
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            return
        if isinstance(message, AIMessage):
            entry = cut_of(message) or {}
            if entry.get(OWED_KEY) == "flagged":
                raise ContentFlaggedError(_verdict(entry))
            if entry.get(OWED_KEY) == "replacement":
                raise AdaGuardError(entry["error"])
            if entry.get(OWED_KEY) == "refusal":
                raise refusal_error(message)
            return


def _replacement(policy: Policy, verdict: Verdict) -> str:
    try:
        return policy.replacement_for(verdict)
    except Exception:  # noqa: BLE001  # a function of the user's: ContentFlaggedError is raised, whatever becomes of it
        return DEFAULT_REPLACEMENT


def _verdict(entry: dict[str, Any]) -> Verdict:
    """The verdict without the text that it may have held."""
    return Verdict(
        decision=Decision.FLAG,
        checker=str(entry.get("checker")),
        depth=int(entry["depth"]),
        harm_probability=entry.get("harm_probability"),
        threshold=entry.get("threshold"),
        reason=entry.get("reason"),
        lookahead_tokens=int(entry.get("lookahead_tokens", 0)),
        partial_view=bool(entry.get("partial_view")),
    )
