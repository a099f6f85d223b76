"""Digests that tell models apart: what a probe is tied to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from ada_guard.errors import ConfigError
from ada_guard.local.blocks import decoder_blocks
from ada_guard.local.lower_blocks import is_whole, loaded_blocks

__all__ = ["Fingerprint", "fingerprint"]

_SAMPLES = 1024
"""Weights looked at in each matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What tells models apart.

    Attributes:
        config: 16 hex digits: the shape.
        tokenizer: Likewise, the vocabulary.
        weights: Likewise, the signs of sampled weights of every matrix, those of adapters included. Empty where only
            the lower blocks of a model are loaded.
        adapters: Names of the active adapters, in order. Switching one off changes no weight.
        weights_below: For each block, and for what follows the last: as `weights`, without this block, those above it
            and the head. As many as are loaded; none in the cards of older probes.
    """

    config: str
    tokenizer: str
    weights: str
    adapters: tuple[str, ...] = ()
    weights_below: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def differences(self, other: Fingerprint) -> list[str]:
        """Names of the parts that differ. Weights of which one of the two says nothing count as equal."""
        names = ("config", "tokenizer", "weights", "adapters")
        return [name for name in names if self._differs(other, name)]

    def tells_weights(self, other: Fingerprint) -> bool:
        """Whether the two say something of the same weights."""
        return bool((self.weights and other.weights) or (self.weights_below and other.weights_below))

    def _differs(self, other: Fingerprint, name: str) -> bool:
        if name != "weights" or (self.weights and other.weights):
            return bool(getattr(self, name) != getattr(other, name))
        common = min(len(self.weights_below), len(other.weights_below))
        return self.weights_below[:common] != other.weights_below[:common]


def fingerprint(model: Any, tokenizer: Any) -> Fingerprint:
    """The fingerprint of a model.

    The signs of weights survive any float dtype, so a bf16 load of the same weights matches; fine-tuning flips some of
    them, and an adapter that is not merged adds matrices of its own.
    """
    config = model.config.get_text_config(decoder=True)
    shape = {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
    }
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    signs = _signs(model)
    return Fingerprint(
        config=_json_digest(shape),
        tokenizer=_json_digest(vocabulary),
        weights=_running(signs, [list(signs)])[0] if is_whole(model) else "",
        adapters=_active_adapters(model),
        weights_below=_below(model, signs),
    )


def _signs(model: Any) -> dict[str, bytes]:
    """Signs of sampled weights of every matrix, by its name, in order."""
    found: dict[str, bytes] = {}
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_floating_point() and parameter.ndim > 1 and parameter.device.type != "meta":
            flat = parameter.detach().reshape(-1)
            at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).long()
            found[name] = torch.signbit(flat[at.to(flat.device)]).cpu().numpy().tobytes()
    return found


def _running(signs: dict[str, bytes], groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """For each group of names the digest of its matrices and of those of the groups before it."""
    digest, found = hashlib.sha256(), []
    for names in groups:
        for name in names:
            digest.update(name.encode())
            digest.update(signs[name])
        found.append(digest.hexdigest()[:16])
    return tuple(found)


def _below(model: Any, signs: dict[str, bytes]) -> tuple[str, ...]:
    """Digests of what lies below each block; none if the blocks cannot be told."""
    try:
        blocks = decoder_blocks(model)
    except ConfigError:
        return ()
    at = next(name for name, module in model.named_modules() if module is blocks)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    inputs = getattr(model, "get_input_embeddings", lambda: None)()
    kept = {id(parameter) for parameter in inputs.parameters()} if inputs is not None else set()
    gone = {id(parameter) for parameter in head.parameters()} - kept if head is not None else set()
    groups: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    for name, parameter in sorted(model.named_parameters()):
        if name in signs and id(parameter) not in gone:
            groups[int(name[len(at) + 1 :].split(".")[0]) + 1 if name.startswith(f"{at}.") else 0].append(name)
    return _running(signs, groups[: loaded_blocks(model) + 1])


def _active_adapters(model: Any) -> tuple[str, ...]:
    """Names of adapters that take part in a forward pass and are not merged into the weights.

    Source: the attributes of peft's ``BaseTunerLayer``, which every kind of its adapters has.
    """
    found: set[str] = set()
    for module in model.modules():
        active = getattr(module, "active_adapters", None)
        if not isinstance(active, (list, tuple)) or getattr(module, "disable_adapters", False):
            continue  # a model of transformers has a method of that name
        found.update(str(name) for name in active if name not in getattr(module, "merged_adapters", ()))
    return tuple(sorted(found))


def _json_digest(value: Any) -> str:
    return _digest(json.dumps(value, sort_keys=True, ensure_ascii=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
