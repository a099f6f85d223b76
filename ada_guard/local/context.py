"""One sequence of tokens with its KV cache, into which the Safety Tokens can be put and out of which they vanish again.

Knows nothing of sampling, schedules or verdicts. Every forward pass takes the model's lock and its own inference mode,
so that nothing leaks into the consumer between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from transformers.cache_utils import DynamicLayer

from ada_guard.checking import Ask, AskLookahead
from ada_guard.errors import ConfigError
from ada_guard.local.blocks import HookPoint, reading
from ada_guard.local.early_rows import keeping_rows
from ada_guard.local.few_rows import MOST_ROWS, feeding_few_rows, takes_few_rows
from ada_guard.local.growing import grow_in_place
from ada_guard.local.header import Header
from ada_guard.local.plan import GenerationPlan
from ada_guard.local.rollback import CacheSnapshot, can_crop, require_supported

if TYPE_CHECKING:
    from ada_guard.local.model import LocalModel
    from ada_guard.local.shortcuts import Shortcuts

__all__ = ["CheckPass", "LocalContext"]

CheckPass: TypeAlias = Literal["fused", "separate"]


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
        shortcuts: What the passes of checks may leave out; None for what the model was found to take.
    """

    def __init__(
        self,
        model: LocalModel,
        plan: GenerationPlan,
        *,
        check_pass: CheckPass = "fused",
        hook_points: Sequence[HookPoint] = (),
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.local = model
        self._shortcuts = shortcuts
        self._net: Any = model.model
        self._ids = plan.input_ids
        # Taken over, not copied: the plan lives as long as the stream, and must not keep the cache alive.
        self._kwargs, plan.model_kwargs = plan.model_kwargs, {}
        cache = self._kwargs.get("past_key_values")
        if cache is None:
            raise ConfigError("this model keeps no KV cache; the guard needs one")
        self._cache: Any = require_supported(cache)
        grow_in_place(self._cache)
        self._sparse_logits = self._kwargs.pop("logits_to_keep", None) is not None
        self.unfed_tokens = int(self._ids.shape[1])
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
        self.unfed_tokens += len(token_ids)
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
        if not self._fused and self.unfed_tokens:
            before = CacheSnapshot(self._cache)
            try:
                self._feed()
            except BaseException:
                # A pass that failed half-way has fed some blocks; the tokens will be fed again.
                before.restore()
                raise
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
        if self._shortcuts is None:
            # Here, and not where the context is made: a trial is work for the model's own thread.
            self._shortcuts = self.local.shortcuts
        self.fed(self.forward(None, rows=[self.unfed_tokens - 1], first=True))
        self._prefilled = True
        self._fused = self._want_fused and can_crop(self._cache)
        if self._fused:
            self._cache.activate_past_recording()

    def _feed(self) -> None:
        self.fed(self.forward(None, rows=[self.unfed_tokens - 1]))
        if self._fused:
            self.drop(0)

    def fed(self, next_logits: torch.Tensor) -> None:
        """Notes that a pass fed everything unfed and gave these logits behind it, float32 ``[1, vocabulary]``."""
        self._logits = next_logits
        self.unfed_tokens = 0

    def _extended(self, tokens: int) -> dict[str, Any]:
        """Positions and mask of the context, extended by `tokens` in the way the model itself does."""
        extended: dict[str, Any] = self._net._update_model_kwargs_for_generation(
            {}, dict(self._kwargs), num_new_tokens=tokens
        )
        return extended

    def forward(
        self,
        extra: Sequence[int] | None,
        *,
        rows: Sequence[int],
        first: bool = False,
        on_states: Callable[[dict[int, torch.Tensor]], None] | None = None,
        already_extra: int = 0,
        states_only: bool = False,
    ) -> torch.Tensor:
        """One forward pass over the unfed tokens and `extra`.

        Args:
            extra: Ids that follow the context but do not belong to it.
            rows: Which of the fed rows need logits.
            first: Whether this is the prefill.
            on_states: Is shown the hidden states of the hook points, each ``[1, rows, hidden]``.
            already_extra: Extra tokens that earlier passes left in the cache.
            states_only: Of `extra` nothing but the states is wanted: the blocks above them may not see it, and
                `rows` are rows of the context.

        Returns:
            float32 ``[len(rows), vocabulary]``.
        """
        with self.local.lock, torch.inference_mode():
            ids, kwargs = self._ids, dict(self._kwargs)
            new = self.unfed_tokens
            if extra is not None:
                tail = torch.tensor([[0] * already_extra + list(extra)], dtype=ids.dtype, device=ids.device)
                ids = torch.cat([ids, tail], dim=-1)
                kwargs = self._extended(already_extra + len(extra))
                new += len(extra)
            if self._sparse_logits and rows:
                kwargs["logits_to_keep"] = torch.tensor(rows, device=ids.device)
            inputs = self._net.prepare_inputs_for_generation(
                ids, next_sequence_length=new, is_first_iteration=first, **kwargs
            )
            out: Any = None
            ends = states_only and not self.unfed_tokens
            with (
                self._shortened(new, states_only=states_only),
                reading(self._net, self.hook_points if on_states else (), stop=ends) as states,
            ):
                out = self._net(**inputs, return_dict=True)
            if on_states:
                on_states(states.by_layer)
            if not rows:
                return torch.empty((0, 0))
            logits = out.logits[0] if self._sparse_logits else out.logits[0, list(rows)]
            wanted: torch.Tensor = logits.to(dtype=torch.float32, device=self._ids.device, copy=True)
            return wanted

    @contextmanager
    def _shortened(self, new: int, *, states_only: bool) -> Iterator[None]:
        """The shortcuts that a pass over `new` tokens takes."""
        shortcuts, kept = self._shortcuts, self.unfed_tokens
        # Asked each time: who switches the model's attention after the trial has it run as it is.
        few = shortcuts is not None and shortcuts.few_rows and takes_few_rows(self._net)
        last = max((point.layer for point in self.hook_points), default=0)
        with ExitStack() as ways:
            # A pass of the context's own in the separate way is the one thing that has to round as ever.
            if few and self._prefilled and new <= MOST_ROWS and (self._fused or new > kept):
                ways.enter_context(feeding_few_rows(self._net))
                if states_only and kept and shortcuts is not None and shortcuts.early_rows:
                    ways.enter_context(keeping_rows(self._net, kept, total=new, after_layer=last))
            yield

    def drop(self, tokens: int) -> None:
        """Takes the last tokens out of the cache again; no more than were fed behind the context."""
        fed = self._ids.shape[1] - self.unfed_tokens
        for layer in self._cache.layers:
            if not isinstance(layer, DynamicLayer):
                layer.crop(-tokens)
            elif layer.is_initialized:
                # Blocks that the tokens never came to have none to drop; sliding windows are shortened even so.
                layer.crop(fed - layer.get_seq_length())
