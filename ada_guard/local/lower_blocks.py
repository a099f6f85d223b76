"""Loads of a model what its probe needs: the blocks below the probe's layer, and of its own what is before the state.

The model keeps its configuration and its shape; what is not loaded is there as a module without weights. A shorter
configuration would be another model to some architectures: layers that share keys count from the end, and tables of
embeddings are as wide as there are layers.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ada_guard.errors import ConfigError
from ada_guard.local.blocks import BLOCK_INPUT, FIRST_NORMS, HookPoint, decoder_blocks

__all__ = ["WHY_NOT_WHOLE", "NotLoaded", "is_whole", "keep_lower_blocks", "load_lower_blocks", "loaded_blocks"]

_CONFIG_SETTINGS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "code_revision")
WHY_NOT_WHOLE = (
    "of this model only the blocks up to the probe's layer are loaded (probe_only): it can neither generate nor be "
    "asked by rethink or cascade"
)


class NotLoaded(nn.Module):
    """In the place of a part that was not loaded."""

    def forward(self, *_: Any, **__: Any) -> Any:
        """Raises `ConfigError`: nothing that is asked of such a model comes here."""
        raise ConfigError(WHY_NOT_WHOLE)


def loaded_blocks(model: nn.Module) -> int:
    """How many blocks of a model are there as a whole, from the first on."""
    whole = [not any(isinstance(part, NotLoaded) for part in block.modules()) for block in decoder_blocks(model)]
    return whole.index(False) if False in whole else len(whole)


def is_whole(model: nn.Module) -> bool:
    """Whether all of a model is there."""
    return not any(isinstance(part, NotLoaded) for part in model.modules())


def load_lower_blocks(source: str | Path, point: HookPoint, **settings: Any) -> Any:
    """Loads a model up to a hook position. Weights above it are not read from the files.

    Args:
        source: Hugging Face id or folder.
        point: Where the probe reads.
        settings: As ``AutoModelForCausalLM.from_pretrained`` takes them.

    Raises:
        ConfigError: The model has no such layer or position, its blocks cannot be found, or its own code wants
            something of the parts that are left out.
    """
    asked = {name: settings[name] for name in _CONFIG_SETTINGS if name in settings}
    config: Any = AutoConfig.from_pretrained(source, **asked)
    with torch.device("meta"):  # says which class it is, that of a hub's own code too; nothing is allocated
        remote = {name: asked[name] for name in ("trust_remote_code", "code_revision") if name in asked}
        outline = AutoModelForCausalLM.from_config(copy.deepcopy(config), **remote)
    names = keep_lower_blocks(outline, point)
    whole: Any = type(outline)

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        keep_lower_blocks(self, point)
        # transformers would warn of each of them.
        self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), *names}

    # Of the same name and module: transformers looks some things up by them.
    same = {"__module__": whole.__module__, "__qualname__": whole.__qualname__, "__doc__": whole.__doc__}
    lower: Any = type(whole.__name__, (whole,), {**same, "__init__": build})
    try:
        return lower.from_pretrained(source, config=config, **settings)
    except AttributeError:
        raise ConfigError(
            f"models of type {config.model_type} cannot be loaded in part: leave probe_only out"
        ) from None


def keep_lower_blocks(model: nn.Module, point: HookPoint) -> list[str]:
    """Takes out of a model what a state at a hook position does not depend on.

    Args:
        model: The model.
        point: Where the probe reads.

    Returns:
        Regular expressions of the names that the weights taken out have in a checkpoint.

    Raises:
        ConfigError: The model has no such layer or position.
    """
    blocks = decoder_blocks(model)
    if not point.layer < len(blocks):
        raise ConfigError(f"layer {point.layer} does not exist: this model has layers 0 to {len(blocks) - 1}")
    parts = {name for name, _ in blocks[point.layer].named_children()}
    if point.position != BLOCK_INPUT and point.position.split(".")[0] not in parts:
        raise ConfigError(f"a block of this model has no position {point.position!r}")
    # Behind a first norm the pass ends before anything else of the block is run.
    kept = parts if point.position not in (BLOCK_INPUT, *FIRST_NORMS) else {point.position}
    gone: list[tuple[nn.Module, str]] = [(blocks[point.layer], name) for name in sorted(parts - kept)]
    for block in blocks[point.layer + 1 :]:
        gone += [(block, name) for name, _ in block.named_children()]
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if head is not None:
        at = next(name for name, module in model.named_modules() if module is head)
        if not any(name.startswith(f"{at}.") for name in tied):  # a tied one is the embedding, and costs nothing
            owner, _, own = at.rpartition(".")
            gone.append((model.get_submodule(owner), own))
    names = {module: name for name, module in model.named_modules()}
    patterns = [_pattern(model, f"{names[owner]}.{name}" if names[owner] else name) for owner, name in gone]
    for owner, name in gone:
        setattr(owner, name, NotLoaded())
    return patterns


def _pattern(model: nn.Module, name: str) -> str:
    """A checkpoint may be one of the decoder alone, whose names lack the prefix, or have further prefixes."""
    short = name.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.")
    return rf"(^|\.){re.escape(short)}\."
