"""Carries some rows of a forward pass no further than one block: what only a hidden state is wanted of, is read there.

Knows no headers: the last rows of a pass end, the first ones go on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ada_guard.local.blocks import decoder_blocks

__all__ = ["keeping_rows"]


@contextmanager
def keeping_rows(model: nn.Module, rows: int, *, total: int, after_layer: int) -> Iterator[None]:
    """While the block lasts, blocks above a layer are given the first rows of a pass alone.

    The caller holds the model's lock. A pass that somebody else runs meanwhile in another thread is left alone.

    Args:
        model: The model.
        rows: How many go on, >= 1.
        total: How many the pass has.
        after_layer: 0-based; the last block that sees all rows.
    """
    ours = threading.get_ident()

    def shorten(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != ours:
            return None
        return tuple(_first(value, rows, total) for value in args), {
            name: _first(value, rows, total) for name, value in kwargs.items()
        }

    blocks = decoder_blocks(model)
    handles = [block.register_forward_pre_hook(shorten, with_kwargs=True) for block in blocks[after_layer + 1 :]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(value: Any, rows: int, total: int) -> Any:
    """The first rows of whatever has one entry for each row: hidden states, positions, rotary embeddings.

    Its dimension of rows is the second, behind that of the batch, or the only one.
    """
    if isinstance(value, tuple):
        return tuple(_first(each, rows, total) for each in value)
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    along = 1 if value.ndim > 1 else 0
    return value.narrow(along, 0, rows) if value.shape[along] == total else value
