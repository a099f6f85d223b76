"""Every attack by name, with small settings for a first look and full ones for a figure to cite. Runs them; no more.

`quick` is made for the reference model on two cores. Its rates have wide intervals, which the results say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ada_guard.errors import ConfigError
from ada_guard.evals.attacks.attempt import Attack, Progress, evaluate_attack
from ada_guard.evals.attacks.autodan import FULL_BREEDING, QUICK_BREEDING, AutoDANAttack
from ada_guard.evals.attacks.decoding import FULL_GRID, QUICK_GRID, DecodingAttack
from ada_guard.evals.attacks.evasion import ProbeEvasion, RethinkEvasion
from ada_guard.evals.attacks.forged import ForgedAttack
from ada_guard.evals.attacks.gcg import (
    FULL_ADAPTIVE_SEARCH,
    FULL_SEARCH,
    QUICK_ADAPTIVE_SEARCH,
    QUICK_RETHINK_SEARCH,
    QUICK_SEARCH,
    GCGAttack,
)
from ada_guard.evals.attacks.goals import Goal, goals_for
from ada_guard.evals.attacks.long_context import LongContextAttack
from ada_guard.evals.attacks.obfuscation import ObfuscatedRequests, evaluate_obfuscated_answers
from ada_guard.evals.attacks.recorded import read_recorded, reference_recorded
from ada_guard.evals.attacks.style import StyleAttack
from ada_guard.evals.judges import Judge, NotRefusedJudge, ReferenceJudge
from ada_guard.evals.result import EvalResult
from ada_guard.evals.targets import Target, guard_targets
from ada_guard.local import LocalModel
from ada_guard.policy import Policy

__all__ = ["ATTACKS", "QUICK_PROMPTS", "AttackName", "AttackRun", "PresetName", "default_judge", "evaluate_named"]

AttackName: TypeAlias = Literal[
    "recorded",
    "decoding",
    "gcg",
    "gcg-adaptive",
    "gcg-rethink",
    "autodan",
    "style",
    "forged",
    "obfuscation",
    "obfuscated-answers",
    "long-context",
]
PresetName: TypeAlias = Literal["quick", "full"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
QUICK_PROMPTS: Mapping[AttackName, int] = {
    "recorded": 4,
    "decoding": 4,
    "gcg": 5,
    "gcg-adaptive": 5,
    "gcg-rethink": 5,
    "autodan": 3,
    "style": 3,
    "forged": 4,
    "obfuscation": 4,
    "obfuscated-answers": 6,
    "long-context": 3,
}
"""Prompts of each attack under the preset ``"quick"``."""
_FULL_PROMPTS_OF_REFERENCE = 25
_QUICK_LENGTHS = (0, 500, 2000)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRun:
    """What an attack is run with.

    Attributes:
        model: The model that answers and is attacked.
        rows: A file of labelled responses whose harmful rows are the goals; None: the reference model's own goals.
        recorded: A file of recorded attacks; None: those of the reference model.
        prompts: At most so many; None: as the preset has it.
        preset: Small settings or full ones.
        policy: Of the guards.
        judge: None: the reference words for the reference model, else not refused.
        targets: None: the model without a guard and with each checker it can have.
        generation: Of all answers, over the attacks' own.
        seed: Of everything random.
        command: What reproduces the result.
        steps: Of a suffix search, or generations of AutoDAN, over the preset's.
    """

    model: LocalModel
    rows: str | Path | None = None
    recorded: str | Path | None = None
    prompts: int | None = None
    preset: PresetName = "quick"
    policy: Policy = field(default_factory=Policy)
    judge: Judge | None = None
    targets: Sequence[Target] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    command: str = ""
    steps: int | None = None

    def count(self, name: AttackName) -> int | None:
        """At most so many prompts for an attack; None for all there are."""
        if self.prompts is not None:
            return self.prompts
        return QUICK_PROMPTS[name] if self.preset == "quick" else None

    def goals(self, name: AttackName) -> list[Goal]:
        """The goals of an attack.

        Raises:
            ConfigError: No rows for a model that is not the reference model.
        """
        return goals_for(self.model.name, self.rows, self.count(name), seed=self.seed)


def default_judge(model: LocalModel) -> Judge:
    """The judge that needs no further model."""
    return ReferenceJudge() if model.name == "reference" else NotRefusedJudge()


def evaluate_named(name: AttackName, run: AttackRun, progress: Progress = lambda *_: None) -> EvalResult:
    """Runs an attack by its name.

    Args:
        name: One of `ATTACKS`.
        run: With what.
        progress: Told how far it is.

    Raises:
        ConfigError: What the attack needs is not there: rows, a probe, room in the context.
    """
    targets = guard_targets(run.model, run.policy) if run.targets is None else run.targets
    asked: dict[str, Any] = {
        "seed": run.seed,
        "model": run.model.name,
        "command": run.command or f"ada-guard eval attack {name} --model {run.model.name} --seed {run.seed}",
        "progress": progress,
    }
    if name == "obfuscated-answers":
        return evaluate_obfuscated_answers(run.goals(name), targets, **asked)
    if name == "recorded":
        attack, goals = _recorded(run)
    else:
        attack, goals = _attack(name, run), run.goals(name)
    judge = default_judge(run.model) if run.judge is None else run.judge
    return evaluate_attack(attack, goals, targets, judge, generation=run.generation, **asked)


def _recorded(run: AttackRun) -> tuple[Attack, list[Goal]]:
    count = run.count("recorded")
    if run.recorded is not None:
        return read_recorded(run.recorded, count)
    if run.model.name != "reference":
        raise ConfigError("give --file: a JSONL file of recorded attacks")
    return reference_recorded(_FULL_PROMPTS_OF_REFERENCE if count is None else count, seed=run.seed)


def _attack(name: AttackName, run: AttackRun) -> Attack:
    quick = run.preset == "quick"
    match name:
        case "decoding":
            return DecodingAttack(QUICK_GRID if quick else FULL_GRID)
        case "gcg":
            return GCGAttack(run.model, (QUICK_SEARCH if quick else FULL_SEARCH).with_steps(run.steps))
        case "gcg-adaptive":
            search = QUICK_ADAPTIVE_SEARCH if quick else FULL_ADAPTIVE_SEARCH
            evasion = ProbeEvasion.of(run.model, run.policy.schedule)
            return GCGAttack(run.model, search.with_steps(run.steps), evasion=evasion)
        case "gcg-rethink":
            search = QUICK_RETHINK_SEARCH if quick else FULL_ADAPTIVE_SEARCH
            heard = RethinkEvasion.of(run.model, run.policy.schedule)
            return GCGAttack(run.model, search.with_steps(run.steps), evasion=heard)
        case "autodan":
            breeding = QUICK_BREEDING if quick else FULL_BREEDING
            return AutoDANAttack(run.model, breeding if run.steps is None else replace(breeding, generations=run.steps))
        case "style":
            return StyleAttack()
        case "forged":
            return ForgedAttack(run.model.spec)
        case "obfuscation":
            return ObfuscatedRequests()
        case "long-context":
            return LongContextAttack(run.model, lengths=_QUICK_LENGTHS) if quick else LongContextAttack(run.model)
        case _:
            raise ConfigError(f"unknown attack {name!r}: use {', '.join(ATTACKS)}")
