"""Contenders that write one answer each, block by block in turns inside a running ``generate``.

What one of them takes is on its own clock, which stands still while the others have their turn: so each block of tokens
is compared with the same block of ``generate``, written a moment before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.generation.streamers import TextStreamer
from turns import Clock, generate_beside, own_experts

__all__ = ["Progress", "Run", "in_turns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a contender is.

    Attributes:
        shown: Tokens that its consumer has.
        done: Tokens that are fed, with whatever check was due at them.
    """

    shown: int
    done: int


@dataclass(slots=True)
class Run:
    """One contender writing one answer, with a clock that stands still while the others have their turn.

    Attributes:
        steps: What it does.
        clock: Its time.
        releases: Its time in ms and the tokens shown, whenever there are more.
        blocks_ms: What each block took. What ended further on than it had to is spread evenly over its tokens.
        done: Tokens done, at the end of the last block.
    """

    steps: Iterator[Progress]
    clock: Clock
    releases: list[tuple[float, int]] = field(default_factory=list)
    blocks_ms: list[float] = field(default_factory=list)
    done: int = 0

    def turn(self, until: int, block: int) -> None:
        """Goes on until so many tokens are done.

        Args:
            until: Tokens.
            block: Tokens that a block should have. Where releases come at other depths, it has some more or less.
        """
        if self.done >= until:
            self.blocks_ms.append(self.blocks_ms[-1])
            return
        self.clock.start()
        before, done = self.clock.ms, self.done
        for progress in self.steps:
            self.saw(progress.shown)
            self.done = progress.done
            if progress.done >= until:
                break
        self.clock.stop()
        self.blocks_ms.append((self.clock.ms - before) * block / (self.done - done))

    def saw(self, shown: int) -> None:
        """Notes what the consumer has."""
        if shown > (self.releases[-1][1] if self.releases else 0):
            self.releases.append((self.clock.now_ms(), shown))


class Conductor(TextStreamer):
    """Takes the text of ``generate``, and gives the others a turn whenever it has written a block.

    Args:
        run: That of ``generate``; its steps are never asked for.
        others: All other runs.
        tokenizer: Decodes.
        block: Tokens of a block.
        turn: Around the turns of the others.
    """

    def __init__(self, run: Run, others: Sequence[Run], tokenizer: Any, *, block: int, turn: Callable[[], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._run, self._others, self._block, self._turn = run, others, block, turn
        # The prompt comes first.
        self._tokens = -1
        self._before = 0.0
        run.clock.start()

    def put(self, value: torch.Tensor) -> None:
        """Takes a token."""
        super().put(value)
        self._tokens += 1
        self._run.saw(self._tokens)
        fed = self._tokens - 1
        if fed > 0 and fed % self._block == 0:
            self._run.clock.stop()
            self._run.blocks_ms.append(self._run.clock.ms - self._before)
            self._before = self._run.clock.ms
            with self._turn():
                for other in self._others:
                    other.turn(fed, self._block)
            self._run.clock.start()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Shows nothing."""


def in_turns(
    net: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    ways: Mapping[str, Iterator[Progress]],
    *,
    tokens: int,
    block: int,
    device: str,
) -> dict[str, Run]:
    """Each contender writes one answer.

    Args:
        net: The model of ``generate``.
        tokenizer: Its tokenizer.
        prompt: Ids.
        ways: What the others do, by name; closed in the end.
        tokens: How many each of them writes at least; a multiple of `block`.
        block: Tokens of a turn.
        device: On which all of it runs.

    Returns:
        What each of them took, ``generate`` first.
    """
    runs = {name: Run(steps=way, clock=Clock(device)) for name, way in ways.items()}
    generate = Run(steps=iter(()), clock=Clock(device))
    turn = partial(own_experts, net, net.get_experts_implementation())
    conductor = Conductor(generate, list(runs.values()), tokenizer, block=block, turn=turn)
    generate_beside(net, torch.tensor([list(prompt)], device=net.device), conductor, tokens=tokens + 1)
    for way in ways.values():
        close = getattr(way, "close", None)
        if close is not None:
            close()
    return {"generate": generate, **runs}
