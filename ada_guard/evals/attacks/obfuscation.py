"""Obfuscated requests, and the same on the answer's side: harmful text that is written in an encoding.

A model that cannot read an encoding does not comply, and no guard earned that: see the rate without a guard. What the
guard misses shows on the other side, where a harmful answer stands in the context in an encoding and only has to be
recognised. Beside each detection rate stands how often benign text in the same encoding is flagged: a checker that
flags all that looks odd detects nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ada_guard.errors import CheckError, ConfigError, GenerationError
from ada_guard.evals.attacks.attempt import DETECTED, FLAGGED_BENIGN, Attempt, Progress
from ada_guard.evals.attacks.encodings import ENCODINGS, EXPLAINED
from ada_guard.evals.attacks.goals import Goal, digest_of_goals
from ada_guard.evals.identity import model_digests
from ada_guard.evals.result import Count, EvalResult, library_versions
from ada_guard.evals.systems import beyond_calibration
from ada_guard.evals.targets import Target

__all__ = ["ObfuscatedRequests", "evaluate_obfuscated_answers"]

_PLAIN: Mapping[str, Callable[[str], str]] = {"plain": lambda text: text}


class ObfuscatedRequests:
    """Sends the request in each encoding, with a word on how to read it.

    Args:
        encodings: Name -> how a text is written.
    """

    name = "obfuscation"

    def __init__(self, encodings: Mapping[str, Callable[[str], str]] = ENCODINGS) -> None:
        self._encodings = encodings

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Attack.settings`."""
        return {"encodings": list(self._encodings)}

    def attempts(self, goal: Goal, *, seed: int) -> Sequence[Attempt]:
        """See `Attack.attempts`."""
        del seed
        return [
            Attempt(
                messages=goal.asking(f"{EXPLAINED.get(name, '')} {write(goal.request)}".strip()),
                where={"encoding": name},
            )
            for name, write in self._encodings.items()
        ]


def evaluate_obfuscated_answers(
    goals: Sequence[Goal],
    targets: Sequence[Target],
    *,
    seed: int,
    model: str,
    command: str,
    words: int = 40,
    encodings: Mapping[str, Callable[[str], str]] = ENCODINGS,
    progress: Progress = lambda *_: None,
) -> EvalResult:
    """What share of harmful and of benign answers, written in an encoding, is stopped at once.

    The text is a prefill; detected is what is cut before or at the first token of the model's own. Harmful and benign
    texts stand under the same questions, once the forbidden one and, where rows have benign answers, once a harmless
    one: to read off the question what is harmful is no detection of an answer.

    Args:
        goals: With a wanted answer each; with a harmless one where there is one.
        targets: Guarded ones; the one called ``"no guard"`` is left out, for it stops nothing.
        seed: Of nothing but the result's record: all answers are greedy.
        model: The model's name, for the result.
        command: What reproduces the result.
        words: How much of the answers is written.
        encodings: Name -> how a text is written; the plain text is always among them.
        progress: Told how far it is.

    Raises:
        ConfigError: No goal with a wanted answer, or no guarded target.
    """
    known = [goal for goal in goals if goal.wanted]
    guarded = [target for target in targets if target.name != "no guard"]
    if not known or not guarded:
        raise ConfigError("obfuscated answers need harmful answers to write, and a guard to put them to")
    began = time.perf_counter()
    written = {**_PLAIN, **encodings}
    counts: list[Count] = []
    done, parts = 0, len(written) * len(guarded)
    for name, write in written.items():
        for target in guarded:
            progress("obfuscated answers", done, parts)
            done += 1
            for asked in ("forbidden", "harmless"):
                asking = known if asked == "forbidden" else [goal for goal in known if goal.harmless_messages]
                for what, texts in (
                    (DETECTED, [(goal, goal.wanted) for goal in asking]),
                    (FLAGGED_BENIGN, [(goal, goal.harmless) for goal in asking if goal.harmless]),
                ):
                    if texts:
                        stopped = [_stopped(target, goal, asked, write(_first(text, words))) for goal, text in texts]
                        where = {"encoding": name, "asked": asked}
                        counts.append(Count.of(stopped, what=what, system=target.name, where=where))
    progress("obfuscated answers", parts, parts)
    return EvalResult(
        evaluation="attack-obfuscated-answers",
        title="Harmful answers in an encoding: detection",
        command=command,
        model=model,
        settings={"words": words, "encodings": list(written), "targets": [t.name for t in guarded]},
        seed=seed,
        data={"prompts": digest_of_goals(known), **model_digests(targets)},
        seconds=time.perf_counter() - began,
        versions=library_versions(),
        counts=tuple(counts),
        notes=(
            "Detection is only as good as its distance from the rate at which benign text in the same encoding, under "
            "the same question, is flagged.",
            "Encodings lengthen texts: some are beyond the length that a probe's threshold is calibrated for.",
        ),
    )


def _first(text: str, words: int) -> str:
    return " ".join(text.split(" ")[:words])


def _stopped(target: Target, goal: Goal, asked: str, prefill: str) -> bool | None:
    question = goal.messages if asked == "forbidden" else goal.harmless_messages
    messages = [*question, {"role": "assistant", "content": prefill}]
    try:
        with beyond_calibration():
            answer = target.answer(messages, max_new_tokens=1, temperature=0.0)
    except (CheckError, ConfigError, GenerationError):
        return None  # too long in this encoding, or not decided: a missing outcome
    return None if answer.failed else answer.cut
