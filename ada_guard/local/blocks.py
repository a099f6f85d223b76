"""Where a hidden state is read: the decoder blocks of a model and the hook position in one. Knows no tokens.

Layers are 0-based blocks. The default position is the output of the block's ``input_layernorm``; an architecture
without one is read at its own first norm, or at the block's input.

Source: Zhang et al. (ICLR 2026) and the authors' ``configs/models.yaml`` (hook: output of ``input_layernorm``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ada_guard.errors import ConfigError

__all__ = ["BLOCK_INPUT", "FIRST_NORMS", "HiddenStates", "HookPoint", "decoder_blocks", "hook_position", "reading"]

BLOCK_INPUT = "input"
"""Name of the hook position that reads what goes into the block, before any of its modules."""

FIRST_NORMS = ("input_layernorm", "operator_norm", "ln_1", "norm1")
"""Pre-attention norms by the name they carry: llama and most; lfm2; gpt2-like; some ViT-like text stacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookPoint:
    """One place to read: a 0-based block and a hook position in it."""

    layer: int
    position: str


class HiddenStates:
    """What the hooks of one forward pass saw: for each layer a tensor ``[1, rows, hidden]``."""

    def __init__(self) -> None:
        self.by_layer: dict[int, torch.Tensor] = {}


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, also where it is wrapped (multimodal models, adapters).

    Raises:
        ConfigError: No list of blocks with the length the configuration states was found.
    """
    config: Any = model.config
    text_config = config.get_text_config(decoder=True)
    wanted = int(text_config.num_hidden_layers)
    # A multimodal model may have as many blocks in its vision tower: look inside the text decoder where it is named.
    root: Any = getattr(model, "get_decoder", lambda: None)() or model
    lists = [m for m in root.modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    # A block holds attention, convolution or state-space modules of its own; lists of experts or rotary tables do not.
    with_parts = [blocks for blocks in lists if all(len(list(block.children())) > 1 for block in blocks)]
    if not with_parts:
        raise ConfigError("cannot find the decoder blocks of this architecture")
    return with_parts[0]


def hook_position(model: nn.Module, layer: int) -> str:
    """The default hook position of a block: its first norm, else the block's input.

    Raises:
        ConfigError: The model has no such layer.
    """
    blocks = decoder_blocks(model)
    if not 0 <= layer < len(blocks):
        raise ConfigError(f"layer {layer} does not exist: this model has layers 0 to {len(blocks) - 1}")
    names = {name for name, _ in blocks[layer].named_children()}
    return next((name for name in FIRST_NORMS if name in names), BLOCK_INPUT)


class _AllReadError(Exception):
    """Ends a forward pass in which only hidden states were wanted. No error."""


@contextmanager
def reading(
    model: nn.Module, points: Sequence[HookPoint], *, rows: torch.Tensor | None = None, stop: bool = False
) -> Iterator[HiddenStates]:
    """Reads hidden states during the forward passes inside the block. The hooks are gone when it ends, however it ends.

    The caller holds the model's lock: hooks belong to the model, not to a stream.

    Args:
        model: The model.
        points: Where to read, one point a layer.
        rows: Indices of the tokens to keep, int64; None keeps all.
        stop: Ends the pass, and the block with it, at the highest layer of `points`: nothing above it is computed.
    """
    states = HiddenStates()
    handles = []
    # Someone else may run the same network in another thread, past our lock: their states are not ours to read.
    ours = threading.get_ident()
    blocks = decoder_blocks(model) if points else nn.ModuleList()
    last = max((point.layer for point in points), default=-1)

    def take(layer: int, state: torch.Tensor) -> None:
        if threading.get_ident() == ours:
            states.by_layer[layer] = state if rows is None else state.index_select(1, rows.to(state.device))
            if stop and layer == last:
                raise _AllReadError

    def after(layer: int) -> Any:
        return lambda _module, _args, output: take(layer, output[0] if isinstance(output, tuple) else output)

    def before(layer: int) -> Any:
        return lambda _module, args, kwargs: take(layer, args[0] if args else kwargs["hidden_states"])

    try:
        for point in points:
            block = blocks[point.layer]
            if point.position == BLOCK_INPUT:
                handles.append(block.register_forward_pre_hook(before(point.layer), with_kwargs=True))
            else:
                handles.append(block.get_submodule(point.position).register_forward_hook(after(point.layer)))
        with suppress(_AllReadError):
            yield states
    finally:
        for handle in handles:
            handle.remove()
