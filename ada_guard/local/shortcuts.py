"""Which shortcuts the passes of a check may take on a model. Found out by trying; knows no verdict.

Nothing here is a list of architectures: it would be wrong with the next version of transformers, silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ada_guard.checking import AskProbe
from ada_guard.local.blocks import HookPoint, decoder_blocks, hook_position
from ada_guard.local.few_rows import takes_few_rows
from ada_guard.local.plan import plan_reading

if TYPE_CHECKING:
    from ada_guard.local.context import LocalContext
    from ada_guard.local.model import LocalModel

__all__ = ["NO_SHORTCUTS", "Shortcuts", "find_shortcuts"]

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 5e-2
_PROMPT_TOKENS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcuts:
    """What a check's forward pass may leave out.

    Attributes:
        few_rows: Attend without copies of the keys; see `ada_guard.local.few_rows`.
        early_rows: Carry the header's rows no further than the probe's layer; see `ada_guard.local.early_rows`.
    """

    few_rows: bool
    early_rows: bool


NO_SHORTCUTS = Shortcuts(few_rows=False, early_rows=False)


def find_shortcuts(model: LocalModel) -> Shortcuts:
    """The shortcuts with which a model says what it says without them.

    A short context is read without any, then with each: the states at the header and the logits behind three tokens
    have to agree. Four to twelve short passes, once for a model.
    """
    if not takes_few_rows(model.model):
        return NO_SHORTCUTS
    stock = _trial(model, NO_SHORTCUTS)
    if stock is None:
        return NO_SHORTCUTS
    tolerance = _TOLERANCE.get(model.model.dtype, _HALF_TOLERANCE)
    few = Shortcuts(few_rows=True, early_rows=False)
    if not _agree(stock, _trial(model, few), tolerance):
        return NO_SHORTCUTS
    if getattr(model.model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0):
        # Blocks above the probe's layer would attend to the header's keys in a cache that a block below has filled.
        return few
    both = Shortcuts(few_rows=True, early_rows=True)
    return both if _agree(stock, _trial(model, both), tolerance) else few


def _trial(model: LocalModel, shortcuts: Shortcuts) -> list[torch.Tensor] | None:
    """States and logits of two tokens with a check and of one without; None if a pass failed."""
    # Imported here: a context asks for its model's shortcuts.
    from ada_guard.local.context import LocalContext

    layer = len(decoder_blocks(model.model)) // 2
    probe = model.probe
    point = probe.hook_point if probe else HookPoint(layer=layer, position=hook_position(model.model, layer))
    ids = _some_ids(model)
    try:
        context = LocalContext(model, plan_reading(model.model, ids[:-3]), hook_points=[point], shortcuts=shortcuts)
        checked = [said for token in ids[-3:-1] for said in _checked(context, token, point)]
        context.append(ids[-1:])
        return [*checked, context.next_logits()[0]]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001  # whatever this architecture does otherwise: it is run as it is
        return None


def _checked(context: LocalContext, token: int, point: HookPoint) -> tuple[torch.Tensor, torch.Tensor]:
    """State at the header behind a token and the logits for the next one."""
    context.append([token])
    with context.reinjected(frozenset({AskProbe})) as header:
        state = header.hidden_states()[point.layer]
    return state, context.next_logits()[0]


def _some_ids(model: LocalModel) -> list[int]:
    """Different tokens that no model treats in a way of its own: no special ones."""
    special = set(model.tokenizer.all_special_ids)
    size = int(model.model.config.get_text_config(decoder=True).vocab_size)
    step = max(1, size // (4 * _PROMPT_TOKENS))
    plain = [i for i in range(size // 3, size, step) if i not in special]
    return (plain * _PROMPT_TOKENS)[: _PROMPT_TOKENS + 3]


def _agree(stock: list[torch.Tensor], other: list[torch.Tensor] | None, tolerance: float) -> bool:
    if other is None:
        return False
    return all(bool((one - two).norm() <= tolerance * one.norm()) for one, two in zip(stock, other, strict=True))
