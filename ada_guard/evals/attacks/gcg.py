"""GCG: a suffix to the request that makes the model begin the wanted answer, found along the gradient.

Against the model alone, or adaptively against the guarded one: then the loss holds a term of the checks as well, so
that the suffix is to elicit the answer and to keep them quiet while it is written. Against the probe that is its score;
against rethink, which gives none, how likely the lookahead begins as something else than a refusal.

The loop is our own and the smallest that does this. nanogcg 0.2.3 was tried with transformers 5.23: its prefix cache
subscripts the KV cache, which the new cache classes do not allow; without that it runs, but has no place for a term of
the probe's score, encodes the prompt by other rules than the guard's sources do (so that a suffix found may not be the
one that is sent), checks the suffix's encoding without its surroundings, and sets the global seed and determinism of
the whole process.

**Source**: Zou et al. (arXiv 2307.15043), algorithm 1; for the adaptive terms see `ada_guard.evals.attacks.evasion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ada_guard.errors import ConfigError
from ada_guard.evals.attacks.attempt import Attempt
from ada_guard.evals.attacks.evasion import Evasion
from ada_guard.evals.attacks.goals import Goal
from ada_guard.evals.attacks.suffix_loss import SuffixLoss, SuffixPlace
from ada_guard.local import LocalModel, LocalStream
from ada_guard.steps import run

__all__ = [
    "FULL_ADAPTIVE_SEARCH",
    "FULL_SEARCH",
    "QUICK_ADAPTIVE_SEARCH",
    "QUICK_RETHINK_SEARCH",
    "QUICK_SEARCH",
    "GCGAttack",
    "GCGSettings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GCGSettings:
    """How long and how wide is searched.

    Attributes:
        steps: At most so many; the search ends early once the wanted tokens are the likeliest and no check flags.
        width: Candidates tried in each step.
        top_k: Of how many replacements, best by gradient, a candidate's is drawn.
        suffix_tokens: Length of the suffix.
        wanted_tokens: How much of the answer is elicited.
        given_tokens: How much of that the rows give; the rest the model itself writes behind it, greedily. Its own
            words need no suffix, which is then free to evade; and they are what it goes on with.
        batch: Sequences in one forward pass.
    """

    steps: int = 250
    width: int = 512
    top_k: int = 256
    suffix_tokens: int = 20
    wanted_tokens: int = 24
    given_tokens: int = 24
    batch: int = 64

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise ConfigError("all settings of the suffix search are whole numbers >= 1")

    def with_steps(self, steps: int | None) -> GCGSettings:
        """The same with another number of steps; None leaves it."""
        return self if steps is None else replace(self, steps=steps)


FULL_SEARCH = GCGSettings()
"""Steps, width, top-k and length as in the paper, with its target length left to the rows."""
QUICK_SEARCH = GCGSettings(steps=30, width=48, top_k=48, suffix_tokens=10, wanted_tokens=16, given_tokens=16)
FULL_ADAPTIVE_SEARCH = replace(FULL_SEARCH, wanted_tokens=52, given_tokens=9)
"""Elicits past the default schedule's check at depth 50, so that it has that one to evade as well."""
QUICK_ADAPTIVE_SEARCH = replace(QUICK_SEARCH, wanted_tokens=26, given_tokens=9)
"""Likewise past depth 25. With the rows' words alone it broke fewer prompts of the guarded
reference model: the suffix was spent on eliciting them."""
QUICK_RETHINK_SEARCH = replace(QUICK_ADAPTIVE_SEARCH, width=32)
"""Narrower, so that all evaluations together stay within ten minutes."""


class GCGAttack:
    """Searches a suffix for every goal.

    Args:
        model: The model; its weights are open to the attacker.
        settings: Of the search.
        evasion: Makes the attack adaptive.
    """

    def __init__(
        self, model: LocalModel, settings: GCGSettings = FULL_SEARCH, *, evasion: Evasion | None = None
    ) -> None:
        self._model = model
        self._search = settings
        self._evasion = evasion
        self.solved = 0
        """Searches so far that ended with a suffix which does, by its loss, all that it should."""

    @property
    def name(self) -> str:
        """See `Attack.name`."""
        return "gcg" if self._evasion is None else f"gcg-{self._evasion.name}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Attack.settings`."""
        adaptive = {} if self._evasion is None else self._evasion.settings
        return {**asdict(self._search), **adaptive, "solved": self.solved}

    def attempts(self, goal: Goal, *, seed: int) -> Sequence[Attempt]:
        """See `Attack.attempts`: the one suffix that did best by its loss."""
        own = self._search
        goal = self._in_own_words(goal)
        place = SuffixPlace.found(self._model, goal, suffix_tokens=own.suffix_tokens, wanted_tokens=own.wanted_tokens)
        suffix = self._searched(place, seed)
        return [Attempt(messages=place.messages(suffix))]

    def _in_own_words(self, goal: Goal) -> Goal:
        """The goal with an answer that the model itself goes on with behind the given tokens."""
        missing = self._search.wanted_tokens - self._search.given_tokens
        if missing < 1 or not goal.wanted:
            return goal
        model = self._model
        given = model.encode([*goal.messages, {"role": "assistant", "content": goal.wanted}]).prefill_ids
        begun = model.tokenizer.decode(given[: self._search.given_tokens], clean_up_tokenization_spaces=False)
        prompt = model.encode([*goal.messages, {"role": "assistant", "content": begun}])
        stream = LocalStream(model, prompt, max_new_tokens=missing + 1, temperature=0.0)
        ids: list[int] = []
        while (delta := run(stream.pull())) is not None:
            ids += delta.token_ids
        whole = [*prompt.prefill_ids, *ids]
        text = model.tokenizer.decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return replace(goal, wanted=text)

    def _searched(self, place: SuffixPlace, seed: int) -> tuple[int, ...]:
        loss = SuffixLoss(place, self._evasion, batch=self._search.batch)
        random = torch.Generator().manual_seed(seed)
        current = best = place.start
        least = float(loss.of([current]).total[0])
        for _ in range(self._search.steps):
            candidates = self._candidates(place, current, loss.token_gradient(current), random)
            if not candidates:
                continue  # all of this step's replacements would be encoded otherwise: draw again
            found = loss.of(candidates)
            chosen = int(found.total.argmin())
            # As in the paper: the next step goes on from the best candidate, even where it is worse than the last one.
            current = candidates[chosen]
            if float(found.total[chosen]) < least:
                least, best = float(found.total[chosen]), current
            if found.solved[chosen]:
                self.solved += 1
                return current
        return best

    def _candidates(
        self, place: SuffixPlace, current: Sequence[int], gradient: torch.Tensor, random: torch.Generator
    ) -> list[tuple[int, ...]]:
        """Suffixes with one token replaced, that a user could type."""
        gradient = gradient.masked_fill(~self._typed[: gradient.shape[1]], float("inf"))
        top = (-gradient).topk(min(self._search.top_k, int(self._typed.sum())), dim=1).indices
        positions = torch.randint(len(current), (self._search.width,), generator=random)
        ranks = torch.randint(top.shape[1], (self._search.width,), generator=random)
        made = dict.fromkeys(
            (*current[:at], int(top[at, rank]), *current[at + 1 :])
            for at, rank in zip(positions.tolist(), ranks.tolist(), strict=True)
        )
        return [candidate for candidate in made if candidate != tuple(current) and place.fits(candidate)]

    @cached_property
    def _typed(self) -> torch.Tensor:
        """Which ids are printable ASCII and no control tokens: bool ``[vocabulary]``."""
        tokenizer = self._model.tokenizer
        rows = int(self._model.model.get_input_embeddings().num_embeddings)
        closed = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        texts = tokenizer.batch_decode([[i] for i in range(min(rows, len(tokenizer)))])
        typed = [bool(t.strip()) and t.isascii() and t.isprintable() and i not in closed for i, t in enumerate(texts)]
        return torch.tensor(typed + [False] * (rows - len(typed)))
