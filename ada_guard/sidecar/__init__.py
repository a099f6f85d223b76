"""Sidecars: what owns the model into which the Safety Tokens are injected. Importing this loads none of them.

`LocalSidecar` is a model in this process, `HTTPSidecar` one that `ada-guard serve` serves, `EndpointRethink` the
endpoint's own model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ada_guard.sidecar.client import HTTPSidecar
    from ada_guard.sidecar.companion import LocalSidecar
    from ada_guard.sidecar.endpoint_rethink import EndpointRethink

__all__ = ["EndpointRethink", "HTTPSidecar", "LocalSidecar"]

_HOMES = {"EndpointRethink": "endpoint_rethink", "HTTPSidecar": "client", "LocalSidecar": "companion"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
