"""Lets contenders take turns inside a running ``generate`` of transformers, so that this can be a contender itself.

``generate`` is a loop that nobody can step through from outside. But it calls its streamer once for each token, in its
own thread: there the others have their turn, and the clock of ``generate`` stands still. So what is measured is the
unchanged loop of transformers, with its own cache, sampler and stopping rules, and no thread is handed anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from kit import Timing, wait
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

__all__ = ["Clock", "EachToken", "fill", "generate_beside", "own_experts"]


class Clock:
    """Adds up the time of one contender over its turns.

    Attributes:
        ms: So far, in ms.
    """

    def __init__(self, device: str) -> None:
        self.ms = 0.0
        self._device = device
        self._since: float | None = None

    def start(self) -> None:
        """Its turn begins."""
        wait(self._device)
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Its turn ends."""
        self.ms = self.now_ms(settled=True)
        self._since = None

    def now_ms(self, *, settled: bool = False) -> float:
        """Time so far, in ms; `settled` waits for the device first."""
        if settled:
            wait(self._device)
        return self.ms + (0.0 if self._since is None else (time.perf_counter() - self._since) * 1000)


@contextmanager
def own_experts(net: Any, implementation: Any) -> Iterator[None]:
    """While the block lasts, a mixture of experts is run as outside of ``generate``.

    On a CUDA device ``generate`` runs its experts in another way while it decodes (transformers 5.23,
    ``_optimize_model_for_decode``); what has its turn meanwhile must not gain by that.

    Args:
        net: The model.
        implementation: As ``get_experts_implementation`` gave it before ``generate`` was called.
    """
    meanwhile = net.get_experts_implementation()
    if meanwhile == implementation:
        yield
        return
    net.set_experts_implementation(implementation)
    try:
        yield
    finally:
        net.set_experts_implementation(meanwhile)


class EachToken(BaseStreamer):
    """Times the steps of ``generate``, and between two of them runs all others once.

    Args:
        contenders: What to call, by name. Each round begins with another one.
        slow: Likewise, but only so many times, spread over the rounds.
        slow_rounds: How many times.
        rounds: Timed rounds.
        warm_up: Rounds before them that are not counted.
        device: On which all of it runs.
        turn: Around the turns of the others.
    """

    def __init__(
        self,
        contenders: Mapping[str, Callable[[], object]],
        *,
        slow: Mapping[str, Callable[[], object]],
        slow_rounds: int,
        rounds: int,
        warm_up: int,
        device: str,
        turn: Callable[[], Any],
    ) -> None:
        self._contenders, self._slow = contenders, slow
        self._device, self._turn = device, turn
        self._rounds, self._warm_up = rounds, warm_up
        # From the last round backwards: the first ones warm up.
        apart = max(1, rounds // max(1, slow_rounds))
        self._slow_at = {warm_up + rounds - 1 - n * apart for n in range(slow_rounds)}
        self.steps_needed = warm_up + rounds
        self.ms: dict[str, list[float]] = {name: [] for name in ("generate", *contenders, *slow)}
        # The prompt comes first, then the token behind the prefill: neither is a decode step.
        self._round = -2
        self._started = 0.0

    def put(self, value: Any) -> None:
        """Ends a step of ``generate``, gives the others their turn, and begins the next step."""
        del value
        wait(self._device)
        elapsed = (time.perf_counter() - self._started) * 1000
        if self._round >= 0:
            with self._turn():
                self._others(elapsed)
        self._round += 1
        wait(self._device)
        self._started = time.perf_counter()

    def end(self) -> None:
        """Nothing is left to do."""

    def timings(self) -> dict[str, Timing]:
        """Times by contender, ``generate`` first."""
        return {name: Timing(ms=tuple(values)) for name, values in self.ms.items() if values}

    def _others(self, generate_ms: float) -> None:
        counted = self._round >= self._warm_up
        if counted:
            self.ms["generate"].append(generate_ms)
        names = list(self._contenders)
        first = self._round % max(1, len(names))
        for name in names[first:] + names[:first]:
            took = self._timed(self._contenders[name])
            if counted:
                self.ms[name].append(took)
        if self._round in self._slow_at:
            for name, run in self._slow.items():
                self.ms[name].append(self._timed(run))

    def _timed(self, run: Callable[[], object]) -> float:
        wait(self._device)
        started = time.perf_counter()
        run()
        wait(self._device)
        return (time.perf_counter() - started) * 1000


def generate_beside(net: Any, ids: torch.Tensor, streamer: BaseStreamer, *, tokens: int, cache: Any = None) -> None:
    """Runs ``generate``, greedy and with a dynamic cache, until it has given so many tokens.

    Args:
        net: The model.
        ids: int64 ``[1, tokens]``.
        streamer: Is called for each token.
        tokens: How many to generate.
        cache: Holds what was fed of `ids` already; None for nothing.
    """
    net.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        streamer=streamer,
        **({} if cache is None else {"past_key_values": cache}),
    )


def fill(cache: DynamicCache, net: Any, tokens: int, *, seed: int) -> None:
    """Puts random keys and values into an empty cache, in place of a prefill: timing does not depend on what they say.

    Args:
        cache: Of the model.
        net: The model.
        tokens: How many.
        seed: Of the keys and values.
    """
    config = net.config.get_text_config(decoder=True)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (1, config.num_key_value_heads, tokens, head)
    generator = torch.Generator(device=net.device).manual_seed(seed)
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        keys, values = (torch.randn(shape, generator=generator, device=net.device).to(net.dtype) for _ in range(2))
        layer.update(keys, values)
