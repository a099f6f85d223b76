"""A checker that asks what a client's checker asks, and keeps the answers for it. It decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ada_guard.checkers import RethinkChecker
from ada_guard.checking import Ask, AskLookahead, AskProbe, Calibration, CheckContext, Checking, Lookahead
from ada_guard.errors import CheckError
from ada_guard.policy import Schedule
from ada_guard.sidecar.questions import AnswerMessage, LookaheadAnswer, LookaheadAsk, ProbeAnswer, ProbeAsk
from ada_guard.verdict import Decision, Verdict

__all__ = ["AskedChecker"]


class AskedChecker:
    """Made for one check.

    Its verdict is always to abstain: whether the text passed is the client's to say, so nothing of it is kept here for
    a next turn.

    Args:
        questions: What to ask, in order.
        asks: The kinds of requests that the stream's checks may make.

    Attributes:
        answers: To the questions, once the check is made.
    """

    name = "asked"

    def __init__(self, questions: Sequence[ProbeAsk | LookaheadAsk], asks: frozenset[type[Ask]]) -> None:
        self._questions = questions
        # All of them, not those of this check: the same tokens are then injected as for a checker in this process.
        self.asks = asks
        self.answers: list[AnswerMessage] = []

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> AskedChecker:
        """Needs nothing."""
        del calibration, schedule
        return self

    def check(self, context: CheckContext) -> Checking:
        """Asks. May be begun again where the model's memory was needed for others."""
        answers: list[AnswerMessage] = []
        for question in self._questions:
            if isinstance(question, ProbeAsk):
                answers.append(_harm_probability((yield AskProbe())))
            else:
                texts: list[str] = []
                ahead: Lookahead = yield _recorded(question, context, texts)
                if len(texts) < ahead.tokens:  # a lookahead of full length is not asked about its last token
                    texts.append(ahead.text)
                if len(texts) != ahead.tokens:
                    raise CheckError("the lookahead cannot be followed")
                answers.append(LookaheadAnswer.of(texts, ended=ahead.ended))
        self.answers = answers
        return Verdict(decision=Decision.ABSTAIN, checker=self.name, depth=context.depth)


def _recorded(question: LookaheadAsk, context: CheckContext, texts: list[str]) -> AskLookahead:
    """The client's request, which notes the text after each token."""
    own: AskLookahead | None = None
    if question.at_refusals:
        asked: Any = next(RethinkChecker(lookahead_tokens=question.max_tokens).check(context))
        own = asked

    def undecided(text: str) -> bool:
        texts.append(text)
        return own is None or own.undecided(text)

    return AskLookahead(max_tokens=question.max_tokens, undecided=undecided)


def _harm_probability(value: object) -> ProbeAnswer:
    """JSON has no NaN: what is no probability is a failed check already here."""
    if not isinstance(value, float) or not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise CheckError("the probe's score is not a probability")
    return ProbeAnswer(kind="probe", harm_probability=value)
