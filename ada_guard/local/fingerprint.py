"""Digests that tell models apart: what a probe is tied to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Fingerprint", "fingerprint"]

_SAMPLED_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """16 hex digits each: the model's shape, its vocabulary, the signs of sampled embedding weights."""

    config: str
    tokenizer: str
    weights: str

    def differences(self, other: Fingerprint) -> list[str]:
        """Names of the parts that differ."""
        return [name for name in ("config", "tokenizer", "weights") if getattr(self, name) != getattr(other, name)]


def fingerprint(model: Any, tokenizer: Any) -> Fingerprint:
    """The fingerprint of a model. Signs survive any float dtype, so a bf16 load of the same weights matches."""
    config = model.config.get_text_config(decoder=True)
    shape = {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
    }
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    embedding = model.get_input_embeddings().weight.detach()
    rows = torch.linspace(0, embedding.shape[0] - 1, min(_SAMPLED_ROWS, embedding.shape[0])).long()
    signs = torch.signbit(embedding[rows.to(embedding.device)]).cpu().numpy().tobytes()
    return Fingerprint(config=_json_digest(shape), tokenizer=_json_digest(vocabulary), weights=_digest(signs))


def _json_digest(value: Any) -> str:
    return _digest(json.dumps(value, sort_keys=True, ensure_ascii=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
