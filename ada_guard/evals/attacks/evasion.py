"""What an adaptive attack adds to its loss: the guard's checks are to stay quiet. Knows no search and no prompt.

Against the probe that is its score at the Safety Tokens. Rethink gives no score, but words: there it is how unlikely
the model finds, behind the full header, the first token of an answer that is no refusal. One token is less than the
guard reads: a lookahead may begin so and refuse in the words after it.

**Source**: the kind of both is that of Bailey et al. (arXiv 2412.09565), who add a monitor's score to what an attack
optimises; these terms are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.functional import cross_entropy, softplus

from ada_guard.errors import ConfigError
from ada_guard.local import LocalModel
from ada_guard.local.blocks import HookPoint
from ada_guard.policy import Schedule
from ada_guard.probe import LinearProbe
from ada_guard.prompt import encode_text
from ada_guard.refusals import RefusalMatcher

__all__ = ["Evasion", "Penalty", "ProbeEvasion", "RethinkEvasion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty:
    """Of one check, for several suffixes.

    Attributes:
        loss: float32 ``[suffixes]``, >= 0.
        quiet: bool ``[suffixes]``: as far as this loss can tell, the check does not flag.
    """

    loss: torch.Tensor
    quiet: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEvasion:
    """The probe's score at the header is to stay below the threshold.

    Attributes:
        probe: The guard's own probe: the attacker has everything.
        schedule: When the guard checks.
        weight: Of the mean penalty, against the mean cross entropy of the wanted tokens in nats.
        margin: How far below the threshold a score is to be, on the logit scale.
    """

    probe: LinearProbe
    schedule: Schedule
    weight: float = 1.0
    margin: float = 1.0

    @classmethod
    def of(cls, model: LocalModel, schedule: Schedule, *, weight: float = 1.0, margin: float = 1.0) -> ProbeEvasion:
        """Against a model's own probe.

        Raises:
            ConfigError: It has none whose score has a gradient.
        """
        if not isinstance(model.probe, LinearProbe):
            raise ConfigError("the adaptive attack needs a model with a linear probe: give --probe")
        return cls(probe=model.probe, schedule=schedule, weight=weight, margin=margin)

    @property
    def name(self) -> str:
        """What the attack is called with it."""
        return "adaptive"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was set, as JSON types."""
        return {"evade_weight": self.weight, "evade_margin": self.margin, "evade_schedule": str(self.schedule)}

    @property
    def threshold_logit(self) -> float:
        """The guard's threshold as log odds."""
        threshold = torch.tensor(self.probe.calibration.threshold_for(self.schedule), dtype=torch.float64)
        return float(threshold.logit(eps=1e-12))

    @property
    def point(self) -> HookPoint | None:
        """Where a hidden state is read; None: the logits are."""
        return self.probe.hook_point

    def header(self, model: LocalModel) -> tuple[int, ...]:
        """What is injected."""
        return model.spec.probe.ids

    def penalty(self, states: torch.Tensor, wanted: Sequence[int]) -> Penalty:
        """The penalty of a check.

        Args:
            states: Float ``[suffixes, hidden]`` at the last token of the header.
            wanted: Ids of the answer that is elicited.
        """
        del wanted
        above = states.float() @ self.probe.weight + self.probe.bias - self.threshold_logit
        return Penalty(loss=softplus(above + self.margin), quiet=above < 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RethinkEvasion:
    """What the model begins to say at the full header is to be no refusal.

    Attributes:
        schedule: When the guard checks.
        begins: Id of the token that it is to begin with; None for the first of the answer that is elicited, as if it
            answered once more.
        weight: Of the mean cross entropy of that token, against that of the wanted tokens. Small: that term begins at
            some 10 nats, and from 0.1 on quick searches on the reference model found suffixes which lower it and no
            longer elicit harm, such that nothing was to be evaded.
    """

    schedule: Schedule
    begins: int | None = None
    weight: float = 0.03

    @classmethod
    def of(
        cls, model: LocalModel, schedule: Schedule, *, begins: str | None = None, weight: float = 0.03
    ) -> RethinkEvasion:
        """Against a model that is asked itself.

        Args:
            model: The model.
            schedule: When the guard checks.
            begins: Text whose first token the lookahead is to begin with; None for that of the wanted answer.
            weight: See `RethinkEvasion`.

        Raises:
            ConfigError: The text is empty, or a refusal.
        """
        if begins is None:
            return cls(schedule=schedule, weight=weight)
        ids = encode_text(model.tokenizer, begins)
        if not ids or RefusalMatcher().decide(begins, complete=True):
            raise ConfigError("what the lookahead is to begin with must be a text that is no refusal")
        return cls(schedule=schedule, begins=int(ids[0]), weight=weight)

    @property
    def name(self) -> str:
        """What the attack is called with it."""
        return "rethink"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was set, as JSON types."""
        begins = "the wanted answer" if self.begins is None else f"token {self.begins}"
        return {"evade_weight": self.weight, "evade_begins": begins, "evade_schedule": str(self.schedule)}

    @property
    def point(self) -> HookPoint | None:
        """Where a hidden state is read; None: the logits are."""
        return None

    def header(self, model: LocalModel) -> tuple[int, ...]:
        """What is injected."""
        return model.spec.rethink.ids

    def penalty(self, logits: torch.Tensor, wanted: Sequence[int]) -> Penalty:
        """The penalty of a check.

        Args:
            logits: Float ``[suffixes, vocabulary]`` at the last token of the header.
            wanted: Ids of the answer that is elicited.
        """
        first = wanted[0] if self.begins is None else self.begins
        targets = torch.full((len(logits),), first, device=logits.device)
        return Penalty(
            loss=cross_entropy(logits.float(), targets, reduction="none"), quiet=logits.argmax(dim=-1) == first
        )


Evasion: TypeAlias = ProbeEvasion | RethinkEvasion
