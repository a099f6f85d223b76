"""How well whole prompts do: the loss of the wanted answer behind each, and the probe's score while it is written.

Knows no search. Prompts may differ in length: they are padded on the left, so that the answer stands in the same place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, softplus
from transformers.cache_utils import DynamicCache, DynamicLayer

from ada_guard.errors import ConfigError
from ada_guard.evals.attacks.evasion import ProbeEvasion
from ada_guard.evals.attacks.goals import Goal
from ada_guard.local import LocalModel
from ada_guard.local.blocks import reading

__all__ = ["PromptLoss", "PromptScore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScore:
    """Of one prompt.

    Attributes:
        loss: Mean cross entropy of the wanted tokens in nats, plus the penalty of the checks; infinite for a prompt
            that does not fit the model.
        solved: Each wanted token is the likeliest one, and no check on the way flags.
    """

    loss: float
    solved: bool


class PromptLoss:
    """The loss of prompts for one goal.

    Args:
        model: The model.
        goal: What the prompts ask for.
        wanted_tokens: How much of the wanted answer is elicited.
        evasion: Adds the probe's score at each check that falls due while that is written; None: the model alone.
        batch: Sequences in one forward pass.

    Raises:
        ConfigError: No wanted answer is known.

    Source: Liu et al. (arXiv 2310.04451), section 3, for the cross entropy of an affirmative beginning as fitness. The
    penalty is ours.
    """

    def __init__(
        self, model: LocalModel, goal: Goal, *, wanted_tokens: int, evasion: ProbeEvasion | None = None, batch: int = 32
    ) -> None:
        if not goal.wanted:
            raise ConfigError("this attack needs an answer to elicit: rows with a harmful response")
        self._model = model
        self._goal = goal
        self._evasion = evasion
        self._batch = batch
        answer = [*goal.asking(goal.request), {"role": "assistant", "content": goal.wanted}]
        self._wanted = model.encode(answer).prefill_ids[:wanted_tokens]
        length = len(self._wanted)
        self._depths = [d for d in range(1, length) if evasion and evasion.schedule.is_due(d)] + [length]

    def of(self, prompts: Sequence[str]) -> list[PromptScore]:
        """The score of each prompt, which is the whole text of the user's message."""
        found = [PromptScore(loss=math.inf, solved=False)] * len(prompts)
        encoded = {}
        room = self._model.context_tokens or math.inf
        spare = len(self._wanted) + len(self._model.spec.probe.ids)
        for number, prompt in enumerate(prompts):
            ids = self._model.encode(self._goal.asking(prompt)).ids
            if len(ids) + spare <= room:
                encoded[number] = ids
        with self._model.lock, torch.no_grad():
            for part in _parts(list(encoded), self._batch):
                scores = self._scores([encoded[number] for number in part])
                found = [scores[part.index(n)] if n in part else score for n, score in enumerate(found)]
        return found

    def _scores(self, prompts: Sequence[Sequence[int]]) -> list[PromptScore]:
        wanted = torch.tensor(self._wanted, device=self._net.device)
        rows = [[*prompt, *self._wanted] for prompt in prompts]
        cache = DynamicCache(config=self._net.config) if self._evasion is not None else None
        # The last row predicts what follows the wanted tokens.
        out = self._net(**self._inputs(rows), **_caching(cache), logits_to_keep=len(wanted) + 1)
        logits = out.logits[:, :-1].float()
        entropy = cross_entropy(logits.transpose(1, 2), wanted.expand(len(rows), -1), reduction="none").mean(dim=1)
        solved = (logits.argmax(dim=-1) == wanted).all(dim=1)
        if self._evasion is not None:
            if cache is not None and not all(type(layer) is DynamicLayer for layer in cache.layers):
                cache = None  # sliding windows and recurrent states cannot be cut back to any depth
            found = [self._harm(prompts, depth, cache) for depth in reversed(self._depths)]
            above = torch.stack(found) - self._evasion.threshold_logit
            entropy = entropy + self._evasion.weight * softplus(above + self._evasion.margin).mean(dim=0)
            solved = solved & (above < 0).all(dim=0)
        return [
            PromptScore(loss=loss, solved=done) for loss, done in zip(entropy.tolist(), solved.tolist(), strict=True)
        ]

    def _harm(self, prompts: Sequence[Sequence[int]], depth: int, cache: DynamicCache | None) -> torch.Tensor:
        """The probe's log odds after so many wanted tokens, float32 ``[prompts]``.

        Args:
            prompts: Ids of each.
            depth: Descending from call to call.
            cache: Holds prompts and wanted tokens up to this depth at least, and is cut back to it; None: there is none
                to use.
        """
        assert self._evasion is not None
        probe = self._evasion.probe
        header = self._model.spec.probe.ids
        inputs = self._inputs([[*prompt, *self._wanted[:depth], *header] for prompt in prompts])
        if cache is not None:
            surplus = cache.get_seq_length() - max(map(len, prompts)) - depth
            if surplus:
                cache.crop(-surplus)
            inputs = {name: v if name == "attention_mask" else v[:, -len(header) :] for name, v in inputs.items()}
        with reading(self._net, [probe.hook_point]) as states:
            self._net.base_model(**inputs, **_caching(cache))
        return states.by_layer[probe.hook_point.layer][:, -1].float() @ probe.weight + probe.bias

    @property
    def _net(self) -> Any:
        return self._model.model

    def _inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        longest = max(map(len, rows))
        # Any id will do where nobody looks.
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=self._net.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self._net.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _caching(cache: DynamicCache | None) -> dict[str, Any]:
    return {"past_key_values": cache, "use_cache": cache is not None}


def _parts(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
