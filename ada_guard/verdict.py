"""What a check says. Knows nothing of how a check is made or of what happens then."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Decision", "Verdict"]


class Decision(StrEnum):
    """A checker's decision. Only `PASS` clears text for release."""

    PASS = "pass"
    FLAG = "flag"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One checker's answer for one depth.

    Attributes:
        decision: Pass, flag or abstain.
        checker: Who decided: ``"probe"``, ``"rethink"``, or a name of the user's own checker.
        depth: Assistant tokens (prefill + generated) that were in the context when the check was made.
        harm_probability: P(harmful) in [0, 1] where the checker has one.
        threshold: The harm probability in [0, 1] from which on the checker flags.
        reason: A word from the checker's fixed vocabulary, for example ``"refused"`` or ``"already_refusing"``;
            never text of the user or the model.
        lookahead_tokens: Greedy tokens the check generated after the Safety Tokens and threw away.
        partial_view: Whether the conversation held something the sidecar could not be shown, such as an image.
        refusal: The sentence with which the model itself refused in the lookahead. Model text: kept out of ``repr``.
    """

    decision: Decision
    checker: str
    depth: int
    harm_probability: float | None = None
    threshold: float | None = None
    reason: str | None = None
    lookahead_tokens: int = 0
    partial_view: bool = False
    refusal: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        p = self.harm_probability
        if p is not None and not (math.isfinite(p) and 0.0 <= p <= 1.0):
            raise ValueError("harm_probability must be a number in [0, 1]")

    @property
    def flagged(self) -> bool:
        """Whether the decision is `Decision.FLAG`."""
        return self.decision is Decision.FLAG

    @property
    def passed(self) -> bool:
        """Whether the decision is `Decision.PASS`."""
        return self.decision is Decision.PASS
