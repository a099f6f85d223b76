"""The Safety Tokens inside a context: fed, read, followed by a lookahead, taken out. Knows no verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ada_guard.checking import Ask, AskProbe, Lookahead
from ada_guard.errors import CheckError
from ada_guard.local.rollback import CacheSnapshot

if TYPE_CHECKING:
    from ada_guard.local.context import LocalContext

__all__ = ["Header"]


class Header:
    """The Safety Tokens in a context. Fed on the first request; one pass serves probe, lookahead and decode step."""

    def __init__(self, context: LocalContext, *, full: bool) -> None:
        spec = context.local.spec
        self._context = context
        self._spec = spec
        # One pass with the whole header serves both checkers where the probe's tokens are its beginning: by causality
        # the state at the role token is the same.
        both = full and (spec.probe_is_prefix or not context.hook_points)
        self._ids = spec.rethink.ids if both else spec.probe.ids
        self._states_only = not both
        self._snapshot: CacheSnapshot | None = CacheSnapshot(context.cache)
        self._fed: tuple[int, ...] = ()
        self._states: dict[int, torch.Tensor] = {}
        self._ahead: torch.Tensor | None = None
        self._with_header: CacheSnapshot | None = None

    def hidden_states(self) -> dict[int, torch.Tensor]:
        """Layer -> float32 ``[hidden]``, on the model's device, at the probe token."""
        if not self._states:
            if self._fed:
                self._take_out()
            self._feed(self._ids, states_only=self._states_only)
        return self._states

    def harm_probability(self) -> float:
        """P(harmful) in [0, 1] by the model's probe."""
        probe = self._context.local.probe
        if probe is None:
            raise CheckError("the model has no probe")
        return probe.harm_probability(self.hidden_states()[probe.hook_point.layer])

    def lookahead(self, max_tokens: int, undecided: Callable[[str], bool]) -> Lookahead:
        """Greedy tokens after the full header; see `AskLookahead`."""
        context, rethink = self._context, self._spec.rethink.ids
        if self._fed != rethink or self._ahead is None:
            if self._fed:
                self._take_out()
            self._feed(rethink)
        # Whatever comes after this lookahead finds its tokens in the cache, and must put the header in anew.
        logits, self._ahead = self._ahead, None
        tokenizer, eos = context.local.tokenizer, context.local.eos_ids
        tokens: list[int] = []
        text = ""
        while len(tokens) < max_tokens:
            assert logits is not None
            best, index = logits[0].max(dim=-1)
            if not math.isfinite(float(best)):
                raise CheckError("the lookahead's logits are not finite")
            token = int(index)
            if token in eos:
                return Lookahead(text=text, tokens=len(tokens), ended=True)
            tokens.append(token)
            text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if len(tokens) == max_tokens or not undecided(text):
                break
            if self._snapshot is None and self._with_header is None:
                self._with_header = CacheSnapshot(context.cache)
            logits = context.forward([token], rows=[0], already_extra=len(self._fed) + len(tokens) - 1)
        return Lookahead(text=text, tokens=len(tokens), ended=False)

    def answer(self, ask: Ask) -> float | Lookahead:
        """Dispatches a checker's request."""
        if isinstance(ask, AskProbe):
            return self.harm_probability()
        return self.lookahead(ask.max_tokens, ask.undecided)

    def remove(self) -> None:
        """Takes the header out of the context. The tokens it rode with stay."""
        self._take_out()

    def _feed(self, ids: tuple[int, ...], *, states_only: bool = False) -> None:
        context = self._context
        kept = context.unfed_tokens
        probe_row = kept + len(self._spec.probe.ids) - 1
        starts_with_probe = ids[: len(self._spec.probe.ids)] == self._spec.probe.ids
        rows = [*([kept - 1] if kept else []), *([] if states_only else [kept + len(ids) - 1])]

        def read(states: dict[int, torch.Tensor]) -> None:
            if starts_with_probe:
                self._states = {layer: state[0, probe_row].float() for layer, state in states.items()}

        logits = context.forward(ids, rows=rows, on_states=read, states_only=states_only)
        if kept:
            # The tokens this pass fed belong to the context: only the header is dropped, and what comes later in this
            # check is put back to the state after that.
            context.fed(logits[:1])
            self._snapshot = None
        self._fed = tuple(ids)
        self._ahead = None if states_only else logits[-1:]

    def _take_out(self) -> None:
        cache = self._context.cache
        if self._snapshot is not None:
            self._snapshot.restore()
        elif self._fed:
            if self._with_header is not None:
                self._with_header.restore()
            self._context.drop(len(self._fed))
            self._snapshot, self._with_header = CacheSnapshot(cache), None
        self._fed = ()
