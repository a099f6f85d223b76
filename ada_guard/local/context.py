"""One sequence of tokens with its KV cache, into which the Safety Tokens can be put and out of which they vanish again.

Knows nothing of sampling, schedules or verdicts. Every forward pass takes the model's lock and its own inference mode,
so that nothing leaks into the consumer between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from ada_guard.checkers import Ask, AskLookahead, AskProbe, Lookahead
from ada_guard.errors import CheckError, ConfigError
from ada_guard.local.blocks import HookPoint, reading
from ada_guard.local.rollback import CacheSnapshot, can_crop, require_supported

if TYPE_CHECKING:
    from ada_guard.local.model import LocalModel

__all__ = ["CheckPass", "GenerationPlan", "Header", "LocalContext", "plan_generation"]

CheckPass: TypeAlias = Literal["fused", "separate"]


@dataclass(slots=True)
class GenerationPlan:
    """What transformers' ``generate`` prepared for one request, before its loop would have begun."""

    input_ids: torch.Tensor
    logits_processor: Any
    stopping_criteria: Any
    generation_config: Any
    model_kwargs: dict[str, Any]


def plan_generation(model: Any, input_ids: torch.Tensor, **settings: Any) -> GenerationPlan:
    """Lets ``generate`` prepare everything and hands it back instead of running a loop.

    ``custom_generate`` accepts any callable; what it returns is what ``generate`` returns (transformers >= 5.19).

    Args:
        model: A transformers model with ``generate``.
        input_ids: int64 ``[1, tokens]``.
        settings: Keyword arguments of ``generate``.
    """

    def prepared(
        _model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> GenerationPlan:
        return GenerationPlan(input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)

    plan: GenerationPlan = model.generate(input_ids, custom_generate=prepared, **settings)
    return plan


class LocalContext:
    """A growing sequence on a local model.

    Tokens are appended first and fed later, so that a check can ride in the forward pass that feeds them: input
    ``[unfed tokens, h_1 .. h_k]``, hidden state read at the header, next-token logits at the last unfed token, and the
    header cropped from the cache afterwards (``check_pass="fused"``). ``"separate"`` feeds the header in a pass of its
    own, which leaves the numerics of the stream bit-identical; it is also the way where a layer cannot be cropped.

    Args:
        model: The model.
        plan: As `plan_generation` gives it. Its `input_ids` are the prompt; its cache becomes the context's own.
        check_pass: How checks are fed.
        hook_points: Layers whose state is read at the header. Empty: the model's probe, if it has one.
    """

    def __init__(
        self,
        model: LocalModel,
        plan: GenerationPlan,
        *,
        check_pass: CheckPass = "fused",
        hook_points: Sequence[HookPoint] = (),
    ) -> None:
        self._local = model
        self._net: Any = model.model
        self._ids = plan.input_ids
        # Taken over, not copied: the plan lives as long as the stream, and must not keep the cache alive.
        self._kwargs, plan.model_kwargs = plan.model_kwargs, {}
        cache = self._kwargs.get("past_key_values")
        if cache is None:
            raise ConfigError("this model keeps no KV cache; the guard needs one")
        self._cache: Any = require_supported(cache)
        self._sparse_logits = self._kwargs.pop("logits_to_keep", None) is not None
        self._unfed = int(self._ids.shape[1])
        self._prefilled = False
        self._want_fused = check_pass == "fused"
        self._fused = False
        self._logits: torch.Tensor | None = None
        probe = model.probe
        self.hook_points = tuple(hook_points) or ((probe.hook_point,) if probe is not None else ())

    @property
    def ids(self) -> torch.Tensor:
        """All ids, int64 ``[1, tokens]``, fed or not. Never holds Safety Tokens."""
        return self._ids

    @property
    def fused(self) -> bool:
        """Whether checks ride in decode steps. Known after the prefill: recurrent layers force a separate pass."""
        return self._fused

    @property
    def cache(self) -> Any:
        """The KV cache; between two calls it holds exactly the fed ids."""
        return self._cache

    def append(self, token_ids: Sequence[int]) -> None:
        """Adds tokens to the end. They are fed with the next forward pass."""
        if not token_ids:
            return
        self._prefill()
        with torch.inference_mode():
            new = torch.tensor([list(token_ids)], dtype=self._ids.dtype, device=self._ids.device)
            self._ids = torch.cat([self._ids, new], dim=-1)
            self._kwargs = self._extended(len(token_ids))
        self._unfed += len(token_ids)
        self._logits = None

    def next_logits(self) -> torch.Tensor:
        """float32 ``[1, vocabulary]`` for the token after the last one; feeds what is unfed, if a check has not."""
        self._prefill()
        if self._logits is None:
            self._feed()
        assert self._logits is not None
        return self._logits

    @contextmanager
    def reinjected(self, asks: frozenset[type[Ask]]) -> Iterator[Header]:
        """The Safety Tokens at the end of the context, for as long as the block lasts.

        Cache, hooks and random state are afterwards what they were, also if the check raised; tokens that were unfed
        before may have been fed.

        Args:
            asks: The kinds of requests that will be made; decides which form of the header is injected.
        """
        self._prefill()
        if not self._fused and self._unfed:
            self._feed()
        header = Header(self, full=AskLookahead in asks)
        try:
            yield header
        finally:
            header.remove()

    # -- forward passes -------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """Feeds the prompt in one pass of its own, as an unguarded run does."""
        if self._prefilled:
            return
        self._logits = self._forward(None, rows=[self._unfed - 1], first=True)
        self._unfed = 0
        self._prefilled = True
        self._fused = self._want_fused and can_crop(self._cache)
        if self._fused:
            self._cache.activate_past_recording()

    def _feed(self) -> None:
        self._logits = self._forward(None, rows=[self._unfed - 1])
        self._unfed = 0
        if self._fused:
            self._cache.crop(0)

    def _extended(self, tokens: int) -> dict[str, Any]:
        """Positions and mask of the context, extended by `tokens` in the way the model itself does."""
        extended: dict[str, Any] = self._net._update_model_kwargs_for_generation(
            {}, dict(self._kwargs), num_new_tokens=tokens
        )
        return extended

    def _forward(
        self,
        extra: Sequence[int] | None,
        *,
        rows: Sequence[int],
        first: bool = False,
        on_states: Callable[[dict[int, torch.Tensor]], None] | None = None,
        already_extra: int = 0,
    ) -> torch.Tensor:
        """One forward pass over the unfed tokens and `extra`.

        Args:
            extra: Ids that follow the context but do not belong to it.
            rows: Which of the fed rows need logits.
            first: Whether this is the prefill.
            on_states: Is shown the hidden states of the hook points, each ``[1, rows, hidden]``.
            already_extra: Extra tokens that earlier passes left in the cache.

        Returns:
            float32 ``[len(rows), vocabulary]``.
        """
        with self._local.lock, torch.inference_mode():
            ids, kwargs = self._ids, dict(self._kwargs)
            new = self._unfed
            if extra is not None:
                tail = torch.tensor([[0] * already_extra + list(extra)], dtype=ids.dtype, device=ids.device)
                ids = torch.cat([ids, tail], dim=-1)
                kwargs = self._extended(already_extra + len(extra))
                new += len(extra)
            if self._sparse_logits:
                kwargs["logits_to_keep"] = torch.tensor(rows, device=ids.device)
            inputs = self._net.prepare_inputs_for_generation(
                ids, next_sequence_length=new, is_first_iteration=first, **kwargs
            )
            with reading(self._net, self.hook_points if on_states else ()) as states:
                out = self._net(**inputs, return_dict=True)
            if on_states:
                on_states(states.by_layer)
            logits = out.logits[0] if self._sparse_logits else out.logits[0, list(rows)]
            return logits.to(dtype=torch.float32, device=self._ids.device, copy=True)


class Header:
    """The Safety Tokens in a context. Fed on the first request; one pass serves probe, lookahead and decode step."""

    def __init__(self, context: LocalContext, *, full: bool) -> None:
        spec = context._local.spec
        self._context = context
        self._spec = spec
        self._ids = spec.rethink.ids if full and (spec.probe_is_prefix or not context.hook_points) else spec.probe.ids
        self._snapshot: CacheSnapshot | None = CacheSnapshot(context._cache)
        self._fed: tuple[int, ...] = ()
        self._states: dict[int, torch.Tensor] = {}
        self._ahead: torch.Tensor | None = None
        self._with_header: CacheSnapshot | None = None

    def hidden_states(self) -> dict[int, torch.Tensor]:
        """Layer -> float32 ``[hidden]``, on the model's device, at the probe token."""
        if not self._states:
            if self._fed:
                self._take_out()
            self._feed(self._ids)
        return self._states

    def harm_probability(self) -> float:
        """P(harmful) in [0, 1] by the model's probe."""
        probe = self._context._local.probe
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
        logits = self._ahead
        tokenizer, eos = context._local.tokenizer, context._local.eos_ids
        tokens: list[int] = []
        text = ""
        while len(tokens) < max_tokens:
            assert logits is not None
            token = int(logits.argmax())
            if token in eos:
                return Lookahead(text=text, tokens=len(tokens), ended=True)
            tokens.append(token)
            text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if len(tokens) == max_tokens or not undecided(text):
                break
            if self._snapshot is None and self._with_header is None:
                self._with_header = CacheSnapshot(context._cache)
            logits = context._forward([token], rows=[0], already_extra=len(self._fed) + len(tokens) - 1)
        return Lookahead(text=text, tokens=len(tokens), ended=False)

    def answer(self, ask: Ask) -> float | Lookahead:
        """Dispatches a checker's request."""
        if isinstance(ask, AskProbe):
            return self.harm_probability()
        return self.lookahead(ask.max_tokens, ask.undecided)

    def remove(self) -> None:
        """Takes the header out of the context. The tokens it rode with stay."""
        self._take_out()

    def _feed(self, ids: tuple[int, ...]) -> None:
        context = self._context
        kept = context._unfed
        probe_row = kept + len(self._spec.probe.ids) - 1
        starts_with_probe = ids[: len(self._spec.probe.ids)] == self._spec.probe.ids
        rows = [*([kept - 1] if kept else []), kept + len(ids) - 1]

        def read(states: dict[int, torch.Tensor]) -> None:
            if starts_with_probe:
                self._states = {layer: state[0, probe_row].float() for layer, state in states.items()}

        logits = context._forward(ids, rows=rows, on_states=read)
        if kept:
            # The tokens this pass fed belong to the context: only the header is cropped, and what comes later in this
            # check is put back to the state after that crop.
            context._logits = logits[:1]
            context._unfed = 0
            self._snapshot = None
        self._fed = tuple(ids)
        self._ahead = logits[-1:]

    def _take_out(self) -> None:
        cache = self._context._cache
        if self._snapshot is not None:
            self._snapshot.restore()
        elif self._fed:
            if self._with_header is not None:
                self._with_header.restore()
            cache.crop(-len(self._fed))
            self._snapshot, self._with_header = CacheSnapshot(cache), None
        self._fed = ()
