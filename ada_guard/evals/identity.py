"""Digests of the models under evaluation: what tells a result from that of another model of the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

from ada_guard.evals.targets import GuardTarget, Target
from ada_guard.local import LocalModel
from ada_guard.local.fingerprint import fingerprint
from ada_guard.probe import LinearProbe
from ada_guard.probe.rows import digest_of

__all__ = ["active_adapters", "model_digest", "model_digests", "probe_digest"]


def model_digest(model: LocalModel) -> str:
    """16 hex digits of a model as it is now: weights, adapters that are active, tokenizer, dtype, header and probe."""
    # Not `model.fingerprint`, which is taken once: adapters can be switched meanwhile.
    now = fingerprint(model.model, model.tokenizer)
    return digest_of([asdict(now), model.dtype, model.spec.rethink.ids, model.spec.probe.ids, probe_digest(model)])


def active_adapters(model: LocalModel) -> str | None:
    """Names of the adapters that take part now; None where there is none."""
    return ", ".join(fingerprint(model.model, model.tokenizer).adapters) or None


def probe_digest(model: LocalModel) -> str | None:
    """16 hex digits of a model's probe; None where it has none."""
    probe = model.probe
    if probe is None:
        return None
    parts = [repr(probe.calibration), repr(probe.hook_point)]
    if isinstance(probe, LinearProbe):
        parts += [probe.card.model_dump_json(), repr(probe.weight.tolist())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def model_digests(targets: Sequence[Target]) -> dict[str, str]:
    """The digest of the model that answers, or one of several; empty where an endpoint does, or something else."""
    guards = [target.guard for target in targets if isinstance(target, GuardTarget)]
    models = {id(guard.model): guard.model for guard in guards if guard.endpoint is None}
    digests = [model_digest(model) for model in models.values()]
    if not digests:
        return {}
    return {"model": digests[0] if len(digests) == 1 else digest_of(digests)}
