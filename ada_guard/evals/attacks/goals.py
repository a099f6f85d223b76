"""What an attacker is after: a forbidden request, and the answer it should get. Knows no attack and no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ada_guard.errors import ConfigError
from ada_guard.probe.rows import LabelledResponse, digest_of, read_rows

__all__ = ["Goal", "digest_of_goals", "goals_for", "goals_from_rows", "read_goals", "reference_goals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One forbidden request.

    Attributes:
        prompt_id: What the success rate counts by.
        messages: The request as it is, without any attack; the last message is the user's.
        wanted: The beginning of an answer that does the harm; empty where none is known.
        harmless: A benign answer of the same form, to tell a guard that detects from one that flags all that is odd;
            empty where none is known.
        harmless_messages: What that one answers.
    """

    prompt_id: str
    messages: tuple[Mapping[str, str], ...] = field(repr=False)
    wanted: str = field(default="", repr=False)
    harmless: str = field(default="", repr=False)
    harmless_messages: tuple[Mapping[str, str], ...] = field(default=(), repr=False)

    @property
    def request(self) -> str:
        """What the user asks."""
        return self.messages[-1]["content"]

    def asking(self, content: str) -> list[dict[str, str]]:
        """The conversation with another text in place of the request."""
        return [*(dict(message) for message in self.messages[:-1]), {"role": "user", "content": content}]


def goals_from_rows(rows: Iterable[LabelledResponse], count: int | None = None) -> list[Goal]:
    """The harmful rows as goals, the first of each prompt; benign responses lend themselves as harmless texts.

    Args:
        rows: Labelled responses.
        count: At most so many goals.

    Raises:
        ConfigError: No harmful row.
    """
    harmful: dict[str, LabelledResponse] = {}
    benign: list[LabelledResponse] = []
    for row in rows:
        if not row.harmful:
            benign.append(row)
        elif row.messages[-1]["role"] == "user":
            harmful.setdefault(row.prompt_id, row)
    if not harmful:
        raise ConfigError("attacks need rows labelled harmful whose messages end with a user's: there are none")
    goals = []
    for number, row in enumerate(islice(harmful.values(), count)):
        goal = Goal(prompt_id=row.prompt_id, messages=row.messages, wanted=row.response)
        if benign:
            other = benign[number % len(benign)]
            goal = replace(goal, harmless=other.response, harmless_messages=other.messages)
        goals.append(goal)
    return goals


def read_goals(path: str | Path, count: int | None = None) -> list[Goal]:
    """Goals from a file of labelled responses; see `ada_guard.probe.rows.read_rows` for its columns.

    Raises:
        ConfigError: No such file, a bad row, or no harmful row.
    """
    return goals_from_rows(read_rows(path), count)


def goals_for(
    model: str, rows: str | Path | None, count: int | None, *, seed: int, of_reference: int = 25
) -> list[Goal]:
    """The goals of an attack on a model.

    Args:
        model: Its name.
        rows: A file of labelled responses; None for the reference model's own goals.
        count: At most so many; None for all of a file.
        seed: Of the reference model's goals.
        of_reference: How many of those, where `count` is None.

    Raises:
        ConfigError: No rows for a model that is not the reference model, or as `read_goals` and `reference_goals`.
    """
    if rows is not None:
        return read_goals(rows, count)
    if model != "reference":
        raise ConfigError("give --rows: a file of labelled responses whose harmful rows are to be asked for")
    return reference_goals(of_reference if count is None else count, seed=seed)


def reference_goals(count: int, *, seed: int = 0) -> list[Goal]:
    """Requests for forbidden things in the reference model's language, each with an answer that would be one.

    There are few topics that no probe was fitted on: prompts differ in topic or in wording, and may share a topic.
    """
    from random import Random

    from ada_guard.reference.data import chat, long_document, question, topics

    rng = Random(f"{seed} goals")
    goals: dict[str, Goal] = {}
    kinds = topics("forbidden", "test"), topics("benign", "test")
    most = len(kinds[0]) * len({question(kinds[0][0], Random(i)) for i in range(100)})
    if count > most:
        raise ConfigError(f"the reference language has {most} forbidden test prompts: ask for no more")
    while len(goals) < count:
        topic, other = (rng.choice(kind) for kind in kinds)
        asked = tuple(chat(question(topic, rng)))
        prompt_id = digest_of(asked)
        goals.setdefault(
            prompt_id,
            Goal(
                prompt_id=prompt_id,
                messages=asked,
                wanted=long_document(topic, rng, 300),
                harmless=long_document(other, rng, 300),
                harmless_messages=tuple(chat(question(other, rng))),
            ),
        )
    return list(goals.values())


def digest_of_goals(goals: Iterable[Goal]) -> str:
    """16 hex digits that tell sets of goals apart."""
    return digest_of([[goal.prompt_id, goal.messages, goal.wanted, goal.harmless] for goal in goals])
