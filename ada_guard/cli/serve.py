"""``ada-guard serve``: a sidecar as a service. Knows no HTTP; the work is done by `ada_guard.serve`."""

from __future__ import annotations

import logging
import os

from ada_guard.cli import options as opt
from ada_guard.cli import serve_options as own
from ada_guard.cli.loading import load_guard
from ada_guard.errors import ConfigError

__all__ = ["serve"]

OTHER_SESSIONS = 8
"""Places in the pool beside the clients' sessions: for the check behind ``/readyz``, and for what is being closed."""


def serve(
    model: opt.Model = "reference",
    probe: opt.Probe = None,
    probe_only: own.ProbeOnly = False,
    device: opt.Device = None,
    dtype: opt.Dtype = "auto",
    host: own.Host = "127.0.0.1",
    port: own.Port = 8008,
    api_key_env: own.ApiKeyEnv = None,
    access_log: own.AccessLog = False,
    max_sessions: own.MaxSessions = 1024,
    kv_mib: own.KvMib = None,
    max_body_mib: own.MaxBodyMib = 8,
    idle_s: own.IdleS = 300.0,
    check_timeout_s: own.CheckTimeoutS = 60.0,
    on_long_answer: own.OnLongAnswer = "error",
    packed: own.Packed = "auto",
) -> None:
    """Serve a model as the sidecar of many streams."""
    from ada_guard.serve import ServeSettings, bind, create_app
    from ada_guard.serve import serve as run_server
    from ada_guard.sidecar.client import API_KEY_ENV

    api_key = os.environ.get(api_key_env or API_KEY_ENV) or None
    if api_key_env is not None and api_key is None:
        raise ConfigError("the environment variable that --api-key-env names is not set")
    settings = ServeSettings(
        max_sessions=max_sessions,
        max_body_bytes=max_body_mib << 20,
        idle_s=idle_s,
        check_timeout_s=check_timeout_s,
    )
    bound = bind(host, port, api_key=api_key)
    guard = load_guard(model, probe=probe, device=device, dtype=dtype, probe_only=probe_only)
    if access_log:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("ada_guard.serve").setLevel(logging.INFO)
    from ada_guard.sidecar.companion import LocalSidecar

    sidecar = LocalSidecar(
        guard.model,
        check_timeout_s=check_timeout_s,
        on_long_answer=on_long_answer,
        max_sessions=max_sessions + OTHER_SESSIONS,
        kv_bytes=None if kv_mib is None else kv_mib << 20,
        packed=None if packed == "auto" else False,
    )
    app = create_app(sidecar, api_key=api_key, settings=settings)
    run_server(app, bound, on_ready=lambda url: print(f"serving {guard.model.name} at {url}", flush=True))
