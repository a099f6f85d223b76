"""Tests against a real inference server. Only `make test-engines` runs them: it says where the server's Python is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engines.server import EngineServer
from engines.table import Table

from ada_guard.reference import CHAT_DIR

PYTHON = os.environ.get("ADA_GUARD_ENGINES")
RESULTS = os.environ.get("ADA_GUARD_ENGINES_RESULTS")
# A plain `pytest` collects every folder below tests/: this one stays out, whatever markers are selected there.
collect_ignore_glob = [] if PYTHON else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker; `pyproject.toml` need not know of it."""
    config.addinivalue_line("markers", "engines: needs a real inference server; run by `make test-engines`")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    """vLLM on the CPU with the reference model."""
    if not PYTHON:
        pytest.skip("run `make test-engines`")
    log = tmp_path_factory.mktemp("engine") / "vllm.log"
    # Not `resolve`: an environment's Python is a link, and only its own path leads to its packages.
    with EngineServer(Path(PYTHON).absolute(), CHAT_DIR, name="reference", log=log) as running:
        # The first requests pay for set-up that belongs to no check.
        for tokens in (8, 200):
            body = {"model": running.name, "prompt": [5] * tokens, "max_tokens": 8, "ignore_eos": True}
            httpx.post(f"{running.url}/v1/completions", json=body, timeout=60).raise_for_status()
        yield running


@pytest.fixture(scope="session")
def table(server: EngineServer) -> Iterator[Table]:
    """Takes what the tests measure; printed, and saved where the environment says, once all have run."""
    measured = Table(ready_s=server.ready_s)
    yield measured
    print(f"\n{measured}")
    if RESULTS:
        measured.save(Path(RESULTS), python=Path(PYTHON or ""))
