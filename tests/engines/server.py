"""A vLLM server as a child process: on loopback, on a free port, ended by its own process group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import httpx

READY_WITHIN_S = 180.0
_ENDS_WITHIN_S = 20.0
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Its threads spin while they wait: two of them on two cores are ten times slower than one.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
BLOCK_TOKENS = 32
"""Tokens per block of the prefix cache, which shares whole blocks only. Its CPU kernels take multiples of 32."""


class EngineServer:
    """Serves a model folder while its ``with`` block runs.

    Args:
        python: The interpreter that vLLM is installed for.
        model: The folder.
        name: What the model is called in requests.
        log: File for what the server writes.
    """

    def __init__(self, python: Path, model: Path, *, name: str, log: Path) -> None:
        self.name = name
        self.url = ""
        self.ready_s = 0.0
        self._python, self._model, self._log = python, model, log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EngineServer:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # `vllm serve` asks for the metadata of a distribution called vllm, which this build does not have.
        command = [self._python, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--model", self._model, "--served-model-name", self.name, "--dtype", "float32"]
        command += ["--max-model-len", "4096", "--max-num-seqs", "8", "--block-size", str(BLOCK_TOKENS)]
        command += ["--enforce-eager", "--enable-prompt-tokens-details", "--scheduling-policy", "priority"]
        started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | _ENVIRONMENT,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(started + READY_WITHIN_S)
        except BaseException:
            self._end()
            raise
        self.ready_s = time.perf_counter() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def counter(self, name: str) -> float:
        """The sum of a counter or gauge of the server's own metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] == name]
        assert found, f"the server has no metric {name}"
        return sum(found)

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        why = f"not ready within {READY_WITHIN_S:.0f} s"
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                why = f"ended with code {self._process.returncode}"
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.5)
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-60:]
        raise RuntimeError("\n".join([f"the vLLM server is {why}. The end of its log:", *tail]))

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
            except ProcessLookupError:
                break
            try:
                process.wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                continue
        process.wait(_ENDS_WITHIN_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
