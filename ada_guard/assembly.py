"""What a guard is put together from: checkers by name, models and sidecars by id or URL, and what a request asks for.

Importing this loads no torch and no httpx.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ada_guard.checkers import CascadeChecker, ProbeChecker, RethinkChecker
from ada_guard.checking import Checker
from ada_guard.errors import ConfigError
from ada_guard.sidecar.protocol import Sidecar

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from ada_guard.local import LocalModel, StateProbe
    from ada_guard.sources import Endpoint

__all__ = [
    "CheckName",
    "choices_asked",
    "is_local",
    "load_model",
    "measurable",
    "named_checker",
    "salt_asked",
    "sidecar_for",
    "single_choice",
]

CheckName: TypeAlias = Literal["probe", "rethink", "cascade"]

_CHECKERS: Mapping[str, type[ProbeChecker | RethinkChecker | CascadeChecker]] = {
    "probe": ProbeChecker,
    "rethink": RethinkChecker,
    "cascade": CascadeChecker,
}


def named_checker(check: CheckName | Checker | None) -> Checker | None:
    """The checker of a name; a checker, or None, as it is.

    Raises:
        ConfigError: There is none of that name.
    """
    if isinstance(check, str) and check not in _CHECKERS:
        raise ConfigError(f"check must be one of {', '.join(_CHECKERS)}")
    return _CHECKERS[check]() if isinstance(check, str) else check


def is_local(thing: object) -> TypeIs[LocalModel]:
    """Whether it is a local model. Told by what it has: importing its class would import torch."""
    return hasattr(thing, "tokenizer") and hasattr(thing, "encode") and not hasattr(thing, "connect")


def measurable(judge: object) -> LocalModel:
    """The model that judges, where all of it is in this process: what an automatic schedule is measured on.

    Raises:
        ConfigError: It is elsewhere, or loaded in part.
    """
    model = judge if is_local(judge) else getattr(judge, "model", None)
    if not is_local(model) or not hasattr(model, "model") or model.probe_only:
        raise ConfigError(
            "an automatic schedule needs a whole model that judges in this process, to time its decode step: write an "
            "interval instead"
        )
    return model


def load_model(model: str | Path, probe: str | Path | StateProbe | None, **model_kwargs: Any) -> LocalModel:
    """A local model by id, folder or ``"reference"``, which brings its probe; see `Guard.from_pretrained`."""
    from ada_guard.local import LocalModel
    from ada_guard.probe.hub import load_probe
    from ada_guard.reference import PROBE_FILE

    if probe is None and str(model) == "reference":
        probe = PROBE_FILE
    loaded = load_probe(probe) if isinstance(probe, (str, Path)) else probe
    return LocalModel.from_pretrained(model, probe=loaded, **model_kwargs)


def sidecar_for(
    endpoint: Endpoint | None,
    sidecar: Sidecar | LocalModel | str | Path,
    *,
    tokenizer: str | Path | None,
    probe: str | Path | StateProbe | None,
    probe_only: bool = False,
) -> Sidecar | LocalModel:
    """What judges an endpoint, or None: whatever is pushed; see `Guard.for_endpoint` and `Guard.for_sidecar`.

    Raises:
        ConfigError: It cannot be had.
    """
    if tokenizer is not None and sidecar != "self":
        raise ConfigError('tokenizer= belongs to sidecar="self"')
    named = isinstance(sidecar, (str, Path)) and sidecar != "self" and "://" not in str(sidecar)
    if probe is not None and not named:
        raise ConfigError("probe= belongs to a sidecar that is loaded here, by id or folder")
    if probe_only and not named:
        raise ConfigError("probe_only= belongs to a sidecar that is loaded here, by id or folder")
    if not isinstance(sidecar, (str, Path)):
        return sidecar
    if str(sidecar).startswith(("http://", "https://")):
        from ada_guard.sidecar.client import HTTPSidecar

        return HTTPSidecar(str(sidecar))
    if sidecar != "self":
        return load_model(sidecar, probe, probe_only=probe_only)
    from ada_guard.sidecar.endpoint_rethink import EndpointRethink

    if endpoint is None:
        raise ConfigError('sidecar="self" belongs to Guard.for_endpoint: here nothing generates that could be asked')
    if tokenizer is None:
        raise ConfigError('sidecar="self" needs tokenizer=, the id or folder of the endpoint\'s tokenizer')
    return EndpointRethink(endpoint, tokenizer)


def choices_asked(generation: Mapping[str, Any]) -> int:
    """How many answers a request asks for.

    Raises:
        ConfigError: No whole number.
    """
    n = _asked(generation, "n")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ConfigError("n must be a whole number >= 1")
    return n or 1


def single_choice(generation: dict[str, Any]) -> dict[str, Any]:
    """The same settings, if they ask for one answer.

    Raises:
        ConfigError: They ask for more.
    """
    if choices_asked(generation) > 1:
        raise ConfigError("n > 1: use stream, whose events say which choice they belong to")
    return generation


def salt_asked(generation: Mapping[str, Any]) -> str | None:
    """What separates the prefix cache of the endpoint between tenants, as a request says it."""
    salt = _asked(generation, "cache_salt")
    return salt if isinstance(salt, str) else None


def _asked(generation: Mapping[str, Any], name: str) -> Any:
    """A field of the request, as an endpoint is told it: directly, or among the further ones, which win."""
    extra = generation.get("extra_body")
    if extra is not None and not isinstance(extra, Mapping):
        raise ConfigError("extra_body is a mapping of further fields of the request")
    value = extra.get(name) if isinstance(extra, Mapping) else None
    return generation.get(name) if value is None else value
