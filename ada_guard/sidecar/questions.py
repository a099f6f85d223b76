"""What a checker asks of a distant sidecar, and its answers, as messages. Knows no session and no socket."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ada_guard.checking import Ask, AskLookahead, AskProbe, Lookahead

__all__ = [
    "AnswerMessage",
    "AskMessage",
    "Count",
    "LookaheadAnswer",
    "LookaheadAsk",
    "Message",
    "ProbeAnswer",
    "ProbeAsk",
    "Share",
    "Text",
    "ask_message",
    "lookahead_of",
    "whole_text",
]


def whole_text(text: str) -> str:
    """The text with halves of surrogate pairs joined; a lone one, which JSON cannot carry, becomes U+FFFD."""
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Text: TypeAlias = Annotated[str, AfterValidator(whole_text)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=0, strict=True)]


class Message(BaseModel):
    """A message of either side: nothing in it that the other does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProbeAsk(Message):
    """Asks for the harm probability at the Safety Tokens."""

    kind: Literal["probe"]


class LookaheadAsk(Message):
    """Asks for greedy tokens behind the Safety Tokens.

    Attributes:
        max_tokens: Upper bound.
        at_refusals: Whether to stop where the bundled refusal phrases have decided.
    """

    kind: Literal["lookahead"]
    max_tokens: Annotated[int, Field(ge=1, le=1024, strict=True)]
    at_refusals: bool = False


AskMessage: TypeAlias = Annotated[ProbeAsk | LookaheadAsk, Field(discriminator="kind")]


class ProbeAnswer(Message):
    """P(harmful)."""

    kind: Literal["probe"]
    harm_probability: Share


class LookaheadAnswer(Message):
    """The lookahead's text after each of its tokens.

    Attributes:
        steps: For each token, how many characters of the text so far remain and what follows them: a token may complete
            a character of which the tokens before it were a part.
        ended: Whether the model ended its turn behind them.
    """

    kind: Literal["lookahead"]
    steps: list[tuple[Count, str]] = Field(repr=False)
    ended: bool

    @classmethod
    def of(cls, texts: list[str], *, ended: bool) -> LookaheadAnswer:
        """The answer for the text after each token."""
        steps = []
        for before, text in zip(["", *texts], texts, strict=False):
            kept = next((i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), len(before))
            kept = min(kept, len(text))
            steps.append((kept, text[kept:]))
        return cls(kind="lookahead", steps=steps, ended=ended)


AnswerMessage: TypeAlias = Annotated[ProbeAnswer | LookaheadAnswer, Field(discriminator="kind")]


def ask_message(ask: Ask) -> ProbeAsk | LookaheadAsk:
    """What is sent of a checker's request."""
    if isinstance(ask, AskProbe):
        return ProbeAsk(kind="probe")
    return LookaheadAsk(kind="lookahead", max_tokens=ask.max_tokens, at_refusals=ask.at_refusals)


def lookahead_of(answer: LookaheadAnswer, ask: AskLookahead) -> Lookahead | None:
    """What the lookahead would have been in this process: the client's own checker says where it stops.

    None if it would have gone on where the server has stopped.
    """
    text = ""
    for count, (kept, added) in enumerate(answer.steps, start=1):
        text = text[:kept] + added
        if count == ask.max_tokens or not ask.undecided(text):
            return Lookahead(text=text, tokens=count, ended=False)
    return Lookahead(text=text, tokens=len(answer.steps), ended=True) if answer.ended else None
