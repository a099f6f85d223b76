"""How well a suffix does: the loss of the wanted answer behind it, and what the guard's checks say meanwhile.

Knows no search. One place in the prompt is optimised, a span of tokens at the end of the user's text. Every forward
pass takes the model's lock; gradients reach the input embeddings only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from transformers.cache_utils import DynamicCache, DynamicLayer

from ada_guard.errors import ConfigError
from ada_guard.evals.attacks.evasion import Evasion, Penalty
from ada_guard.evals.attacks.goals import Goal
from ada_guard.local import LocalModel
from ada_guard.local.blocks import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Losses", "SuffixLoss", "SuffixPlace"]

_FILLERS = ("!", "x")
_TAIL_TOKENS = 8
"""Ids before the suffix that a decoder must see, so that a space between them is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuffixPlace:
    """Where the suffix stands in the encoded prompt.

    Attributes:
        head: The user's text up to the suffix.
        before: Ids up to the suffix.
        start: Ids of the suffix that the search begins with.
        after: Ids from the suffix to where the answer begins.
        wanted: Ids of the answer's beginning that is to be elicited.
    """

    model: LocalModel
    goal: Goal = field(repr=False)
    head: str = field(repr=False)
    before: tuple[int, ...] = field(repr=False)
    start: tuple[int, ...] = field(repr=False)
    after: tuple[int, ...] = field(repr=False)
    wanted: tuple[int, ...] = field(repr=False)

    @classmethod
    def found(cls, model: LocalModel, goal: Goal, *, suffix_tokens: int, wanted_tokens: int) -> SuffixPlace:
        """Finds it by what two different fillers change in the encoded prompt.

        Raises:
            ConfigError: No wanted answer is known, or fillers do not show up in the prompt.
        """
        if not goal.wanted:
            raise ConfigError("this attack needs an answer to elicit: rows with a harmful response")
        one, other = (
            model.encode(goal.asking(f"{goal.request} {' '.join([filler] * suffix_tokens)}")).ids for filler in _FILLERS
        )
        first = _common(one, other)
        last = min(_common(one[::-1], other[::-1]), len(one) - first, len(other) - first)
        until = len(one) - last
        answer = [*goal.asking(goal.request), {"role": "assistant", "content": goal.wanted}]
        wanted = model.encode(answer).prefill_ids[:wanted_tokens]
        start = one[first:until][:suffix_tokens]
        # Whether the space before the first filler belongs to it depends on the tokenizer.
        for head in (goal.request, f"{goal.request} "):
            place = cls(
                model=model, goal=goal, head=head, before=one[:first], start=start, after=one[until:], wanted=wanted
            )
            if start and place.fits(start):
                return place
        raise ConfigError("this model's tokenizer or chat template leaves no place for a suffix")

    def messages(self, suffix: Sequence[int]) -> list[dict[str, str]]:
        """The conversation with a suffix."""
        return self.goal.asking(self.head + self._text(suffix))

    def fits(self, suffix: Sequence[int]) -> bool:
        """Whether the text of these ids is encoded to these ids again, in the whole prompt: what a user can send."""
        return self.model.encode(self.messages(suffix)).ids == (*self.before, *suffix, *self.after)

    def _text(self, suffix: Sequence[int]) -> str:
        tail = list(self.before[-_TAIL_TOKENS:])
        return self._decoded([*tail, *suffix])[len(self._decoded(tail)) :]

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Of several suffixes.

    Attributes:
        total: float32 ``[suffixes]``, what the search lowers.
        solved: bool ``[suffixes]``: each wanted token is the likeliest one, and no check on the way flags.
    """

    total: torch.Tensor
    solved: torch.Tensor


class SuffixLoss:
    """The loss of suffixes at one place.

    The cross entropy is that of GCG. With an evasion, each check that falls due while the wanted answer is written adds
    its penalty: prompt, answer so far and Safety Tokens are a sequence of their own, of which the last state or the
    last logits are read, as in the guard.

    Args:
        place: The place.
        evasion: None attacks the model alone.
        batch: Sequences in one forward pass.

    Source: Zou et al. (arXiv 2307.15043), section 2.2, for the cross entropy.
    """

    def __init__(self, place: SuffixPlace, evasion: Evasion | None = None, *, batch: int = 64) -> None:
        self._place = place
        self._evasion = evasion
        self._batch = batch
        self._net: Any = place.model.model
        self._device = self._net.device
        self._header = list(evasion.header(place.model)) if evasion else []
        self._points = [evasion.point] if evasion and evasion.point else []
        length = len(place.wanted)
        due = [d for d in range(1, length) if evasion and evasion.schedule.is_due(d)]
        self._depths = [*due, length]

    def of(self, suffixes: Sequence[Sequence[int]]) -> Losses:
        """The losses of suffixes, each of the length of the place's own."""
        with self._place.model.lock, torch.no_grad():
            parts = [self._losses(suffixes[i : i + self._batch]) for i in range(0, len(suffixes), self._batch)]
        return Losses(
            total=torch.cat([part.total for part in parts]), solved=torch.cat([part.solved for part in parts])
        )

    def token_gradient(self, suffix: Sequence[int]) -> torch.Tensor:
        """The gradient of the loss by the one-hot rows of a suffix: float32 ``[tokens, vocabulary]`` on the CPU."""
        start = len(self._place.before)
        with self._place.model.lock, torch.enable_grad():
            with self._leaves() as leaves:
                loss = self._losses([suffix]).total[0]
            gradients = torch.autograd.grad(loss, leaves)
            span = sum(g[:, start : start + len(suffix)].sum(dim=0) for g in gradients)
            rows = torch.arange(self._embedding.num_embeddings, device=self._device)
            with torch.no_grad():
                # Through the layer and not its weight: some models scale what it gives.
                by_token = span @ self._embedding(rows).T
        gradient: torch.Tensor = by_token.float().cpu()
        return gradient

    @property
    def _embedding(self) -> Any:
        return self._net.get_input_embeddings()

    @contextmanager
    def _leaves(self) -> Iterator[list[torch.Tensor]]:
        """Makes the embeddings of every forward pass inside the block leaves of the graph, and lists them."""
        leaves: list[torch.Tensor] = []

        def as_leaf(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        handle = self._embedding.register_forward_hook(as_leaf)
        try:
            yield leaves
        finally:
            handle.remove()

    def _losses(self, suffixes: Sequence[Sequence[int]]) -> Losses:
        place = self._place
        prompts = [[*place.before, *suffix, *place.after] for suffix in suffixes]
        whole = torch.tensor([[*prompt, *place.wanted, *self._header] for prompt in prompts], device=self._device)
        answer_at, length = len(prompts[0]), len(place.wanted)
        rows = torch.arange(answer_at - 1, answer_at + length - 1, device=self._device)
        if self._evasion is not None and not self._points:
            rows = torch.cat([rows, torch.tensor([whole.shape[1] - 1], device=self._device)])
        # A gradient goes through one suffix: there the plain way is cheap, and nothing of the graph is in a cache.
        caching = self._evasion is not None and not torch.is_grad_enabled()
        cache = DynamicCache(config=self._net.config) if caching else None
        with reading(self._net, self._points) as states:
            out = self._net(input_ids=whole, logits_to_keep=rows, past_key_values=cache, use_cache=caching)
        logits = out.logits[:, :length].float()
        wanted = torch.tensor(place.wanted, device=self._device)
        entropy = cross_entropy(logits.transpose(1, 2), wanted.expand(len(suffixes), -1), reduction="none").mean(dim=1)
        solved = (logits.argmax(dim=-1) == wanted).all(dim=1)
        if self._evasion is None:
            return Losses(total=entropy, solved=solved)
        penalties = [self._penalty(states.by_layer, out.logits)]
        if cache is not None and not all(type(layer) is DynamicLayer for layer in cache.layers):
            cache = None  # sliding windows and recurrent states cannot be cut back to any depth
        penalties += [self._penalty_at(prompts, depth, cache) for depth in reversed(self._depths[:-1])]
        penalty = torch.stack([each.loss for each in penalties]).mean(dim=0)
        quiet = torch.stack([each.quiet for each in penalties]).all(dim=0)
        return Losses(total=entropy + self._evasion.weight * penalty, solved=solved & quiet)

    def _penalty_at(self, prompts: Sequence[Sequence[int]], depth: int, cache: DynamicCache | None) -> Penalty:
        """The penalty of the check after so many wanted tokens.

        Args:
            prompts: Ids of each.
            depth: Descending from call to call.
            cache: Holds prompts and wanted tokens up to this depth at least, and is cut back to it; None if there is
                none to use.
        """
        ids = [[*prompt, *self._place.wanted[:depth], *self._header] for prompt in prompts]
        known = 0
        if cache is not None:
            known = len(prompts[0]) + depth
            cache.crop(known - cache.get_seq_length())
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None}
        inputs["input_ids"] = torch.tensor([row[known:] for row in ids], device=self._device)
        with reading(self._net, self._points) as states:
            if not self._points:
                return self._penalty({}, self._net(**inputs, logits_to_keep=1).logits)
            # Without the head: no logits are wanted here, and those of a large vocabulary would fill the memory.
            self._net.base_model(**inputs)
        return self._penalty(states.by_layer, None)

    def _penalty(self, states: dict[int, torch.Tensor], logits: torch.Tensor | None) -> Penalty:
        """From what was read at the last token of the header."""
        assert self._evasion is not None
        read = states[self._points[0].layer] if self._points else logits
        assert read is not None
        return self._evasion.penalty(read[:, -1], self._place.wanted)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
