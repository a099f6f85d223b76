"""`transformers serve` with the reference model: a real server, on loopback, ended by its own process id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from ada_guard.reference import CHAT_DIR

MODEL = str(CHAT_DIR)
"""The name under which it serves the reference model."""
START_S = 120.0


@dataclass(frozen=True, slots=True)
class RealServer:
    """A running server.

    Attributes:
        base_url: With ``/v1``.
        process: Its process.
    """

    base_url: str
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """Processor time it has used so far, in seconds. Linux only."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def transformers_serve(log: Path) -> Iterator[RealServer]:
    """Runs the server while the block lasts. Sockets to 127.0.0.1 must be allowed.

    Args:
        log: File for what it writes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", *listen]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **offline}, stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
            yield RealServer(f"http://127.0.0.1:{port}/v1", process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.25)
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"transformers serve did not come up:\n{said}")
