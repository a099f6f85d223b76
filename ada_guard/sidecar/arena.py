"""One block of memory for the KV caches of many sequences: spans are handed out, grown, moved and taken back.

Knows no model: layers and shapes appear when the first keys are written. A span is a run of token places, the same in
every layer; how far it is filled is its owner's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Arena", "Span"]

_GRAIN_TOKENS = 64
"""Spans are multiples of this, so that a stream grows its span every 64 tokens and not every check."""


@dataclass(slots=True, eq=False)
class Span:
    """Token places ``[start, start + tokens)``. Moved by the arena only."""

    start: int
    tokens: int


class Arena:
    """Keys and values of all layers, each ``[kv_heads, tokens, head_dim]``, and who owns which places.

    Not for use by several threads at once.

    Args:
        tokens: How many token places there are.
        device: Where the memory is.
    """

    def __init__(self, tokens: int, *, device: torch.device) -> None:
        self.tokens = tokens
        self._device = device
        self._spans: list[Span] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def used_tokens(self) -> int:
        """Token places that are handed out."""
        return sum(span.tokens for span in self._spans)

    @property
    def bytes_per_token(self) -> int:
        """Of the layers that have been written so far; upper layers of a probe-only sidecar never are."""
        return sum(t.element_size() * t.shape[0] * t.shape[2] for pair in self._layers.values() for t in pair)

    def layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory of a layer, made like the given keys and values ``[1, kv_heads, any, head_dim]`` if it is new."""
        if index not in self._layers:
            self._layers[index] = (self._like(keys), self._like(values))
        return self._layers[index]

    def take(self, tokens: int) -> Span | None:
        """A new span of at least so many tokens; None if there is no room."""
        wanted = _rounded(tokens)
        at = self._gap(wanted)
        if at is None and self.tokens - self.used_tokens >= wanted:
            self._close_gaps()
            at = self._gap(wanted)
        if at is None:
            return None
        span = Span(at, wanted)
        self._spans.append(span)
        self._spans.sort(key=lambda one: one.start)
        return span

    def grow(self, span: Span, tokens: int, *, filled: int) -> bool:
        """Makes a span hold at least so many tokens, moving its first `filled` ones if it must. False: no room."""
        if tokens <= span.tokens:
            return True
        wanted = _rounded(tokens)
        if span.start + wanted <= self._end_of_gap_behind(span):
            span.tokens = wanted
            return True
        # A span that moves gets half as much again, so that a long stream moves seldom.
        roomier = self.take(wanted + wanted // 2) or self.take(wanted)
        if roomier is None:
            return False
        self.copy(span, roomier, filled)
        self._spans.remove(roomier)
        span.start, span.tokens = roomier.start, roomier.tokens
        self._spans.sort(key=lambda one: one.start)
        return True

    def copy(self, source: Span, target: Span, tokens: int) -> None:
        """Copies the first so many tokens of one span into another."""
        self._move(source.start, target.start, tokens)

    def give_back(self, span: Span) -> None:
        """Takes a span back. May be called twice."""
        if span in self._spans:
            self._spans.remove(span)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        # Not zeroed: nobody reads a place that was not written, and on a CPU memory that is not touched is not taken.
        shape = (tensor.shape[1], self.tokens, tensor.shape[3])
        return torch.empty(shape, dtype=tensor.dtype, device=self._device)

    def _gap(self, tokens: int) -> int | None:
        at = 0
        for span in self._spans:
            if span.start - at >= tokens:
                return at
            at = span.start + span.tokens
        return at if self.tokens - at >= tokens else None

    def _end_of_gap_behind(self, span: Span) -> int:
        return min((other.start for other in self._spans if other.start > span.start), default=self.tokens)

    def _close_gaps(self) -> None:
        at = 0
        for span in self._spans:
            if span.start != at:
                self._move(span.start, at, span.tokens)
                span.start = at
            at += span.tokens

    def _move(self, source: int, target: int, tokens: int) -> None:
        with torch.inference_mode():
            for pair in self._layers.values():
                for memory in pair:
                    memory[:, target : target + tokens] = memory[:, source : source + tokens].clone()


def _rounded(tokens: int) -> int:
    return -(-max(tokens, 1) // _GRAIN_TOKENS) * _GRAIN_TOKENS
