"""Calls to a sidecar server as steps: time limits, retries, and every fault as one clear line. Knows no stream.

The lines carry no text of request or response. Errors are raised where nothing is being handled, so that none is
chained to one of httpx, which holds the request with its key and messages.
"""

from __future__ import annotations

import random
import re
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from ada_guard.errors import AdaGuardError, CheckError, ConfigError, GenerationError
from ada_guard.http import Transport
from ada_guard.sidecar.wire import FaultMessage
from ada_guard.steps import Sleep, Steps

__all__ = ["CallFault", "Calls"]

M = TypeVar("M", bound=BaseModel)

MAX_ANSWER_BYTES = 1 << 26
MAX_RETRY_AFTER_S = 5.0
CLOSE_S = 2.0
"""How long a session's end may take, in seconds: whoever closes a stream does not care."""


class CallFault(Exception):  # noqa: N818  # internal: it never leaves this package, its `error` does
    """Why a call failed.

    Attributes:
        error: What the user is to see.
        lost: Whether the server no longer knows the session.
        applied: Whether the server may have done what it was asked: its answer is missing.
        retry: Whether asking again may help.
        retry_after_s: What the server asked to wait, in seconds.
    """

    def __init__(
        self,
        error: AdaGuardError,
        *,
        lost: bool = False,
        applied: bool = False,
        retry: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.lost, self.applied, self.retry, self.retry_after_s = lost, applied, retry, retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """How a server is called.

    Attributes:
        transport: The connections.
        url: Without a slash at its end.
        headers: Of each request, with the key.
        timeout_s: Longest wait for an answer, in seconds, retries included.
        connect_s: For a connection.
        retries: Further tries where the server cannot be reached or is busy. Every call may be repeated: requests that
            change a session are numbered.
        backoff_s: Pause before the first of them, doubled for each further one.
    """

    transport: Transport
    url: str
    headers: Mapping[str, str] = field(repr=False)
    timeout_s: float
    connect_s: float
    retries: int
    backoff_s: float

    def call(
        self, method: Literal["GET", "POST"], path: str, answer: type[M], message: BaseModel | None = None
    ) -> Steps[M]:
        """Sends a message and reads the answer.

        Raises:
            CallFault: There is none.
        """
        body, started, tries, applied = encoded(message), time.perf_counter(), 0, False
        while True:
            left_s = self.timeout_s - (time.perf_counter() - started)
            fault = yield from self._try(method, path, body, max(left_s, 0.001))
            if isinstance(fault, bytes):
                return _read(answer, fault)
            applied = applied or fault.applied
            pause_s = max(self.backoff_s * 2**tries * random.uniform(0.75, 1.25), fault.retry_after_s)
            left_s = self.timeout_s - (time.perf_counter() - started)
            if not fault.retry or tries >= self.retries or pause_s >= left_s:
                fault.applied = applied
                raise fault
            tries += 1
            yield Sleep(pause_s)

    def delete(self, path: str) -> Steps[None]:
        """Asks for a deletion. Does not mind whether it happens."""
        yield from self._try("DELETE", path, None, min(CLOSE_S, self.timeout_s))

    def _try(self, method: str, path: str, body: bytes | None, limit_s: float) -> Steps[bytes | CallFault]:
        """One try: the body of a success, or why there is none."""
        import httpx

        timeout = httpx.Timeout(limit_s, connect=min(self.connect_s, limit_s), pool=limit_s)
        exchange = self.transport.exchange(
            method, self.url + path, headers=dict(self.headers), content=body, timeout=timeout
        )
        fault: CallFault | None = None
        content = b""
        try:
            response = yield from exchange.send(limit_s=limit_s)
            content = yield from exchange.read(limit_bytes=MAX_ANSWER_BYTES, limit_s=limit_s)
            if response.status_code >= 300:
                fault = _status_fault(response.status_code, response.headers, content)
        except Exception as error:  # noqa: BLE001  # the one boundary: also whatever a ready client raises
            fault = _transport_fault(error)
        with suppress(Exception):  # the answer is there, or its fault is known
            yield from exchange.close()
        return content if fault is None else fault


def encoded(message: BaseModel | None) -> bytes | None:
    """A message as JSON.

    Raises:
        ConfigError: It holds what JSON cannot express.
    """
    if message is None:
        return None
    try:
        return message.model_dump_json(exclude_defaults=True).encode()
    except (ValueError, TypeError, RecursionError):  # pydantic's own error for it is a ValueError
        pass
    raise ConfigError("messages, tools and template_kwargs for a sidecar server must be what JSON can express")


def _read(answer: type[M], content: bytes) -> M:
    try:
        return answer.model_validate_json(content)
    except ValidationError:
        pass
    error = CheckError("the sidecar server's answer cannot be read: another version of ada-guard, or another server?")
    raise CallFault(error, applied=True)


def _status_fault(status: int, headers: Mapping[str, str], content: bytes) -> CallFault:
    code, line = _details(content)
    said = f"the sidecar server answered {status}{f' ({code})' if code else ''}"
    if status in {401, 403}:
        return CallFault(ConfigError(f"{said}: it does not take the API key; check api_key or ADA_GUARD_API_KEY"))
    if status == 409 or code == "unknown_session":
        return CallFault(CheckError(f"{said}: it no longer has the session"), lost=True)
    if status in {404, 405} or 300 <= status < 400:
        return CallFault(ConfigError(f"{said}: no ada-guard sidecar server is there; check its URL"))
    if status == 413:
        return CallFault(CheckError(f"{said}: conversation and answer are longer than it takes"))
    if status == 422 and code == "not_showable":
        return CallFault(ConfigError(line or said))
    if status == 422 and code == "broken_stream":
        return CallFault(GenerationError(line or said))
    if status == 422 and code == "unreadable_stream":
        return CallFault(CheckError(line or said))
    if status in {400, 422}:
        return CallFault(ConfigError(f"{said}: it does not take this request; another version of ada-guard?"))
    if status in {408, 429, 502, 503, 504}:
        wait = headers.get("retry-after", "")
        wait_s = min(float(wait), MAX_RETRY_AFTER_S) if re.fullmatch(r"\d{1,6}", wait) else 0.0
        # Without a word of the server's own it comes from a gateway, which may have given up on work that was done.
        applied = status in {502, 504} or not code
        return CallFault(
            CheckError(f"{said}: it is busy or not ready"), retry=True, retry_after_s=wait_s, applied=applied
        )
    return CallFault(CheckError(f"{said}: its own log has the reason"), applied=True)


def _transport_fault(error: Exception) -> CallFault:
    import httpx

    if isinstance(error, AdaGuardError):
        return CallFault(error)
    if _is_about_a_certificate(error):
        line = "the sidecar server's certificate is not trusted: pass verify= the file of its CA"
        return CallFault(ConfigError(line))
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return CallFault(CheckError("the sidecar server cannot be reached: is it up, and its URL right?"), retry=True)
    if isinstance(error, httpx.PoolTimeout):
        return CallFault(CheckError("no free connection in the httpx client: allow it more"))
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return CallFault(CheckError("the sidecar server did not answer in time"), applied=True)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        # The server was ended, or a connection kept from an earlier request has been closed by now.
        fault = CheckError("the sidecar server closed the connection without an answer")
        return CallFault(fault, applied=True, retry=True)
    return CallFault(CheckError(f"the sidecar server cannot be asked ({type(error).__name__})"), applied=True)


def _is_about_a_certificate(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _details(content: bytes) -> tuple[str | None, str | None]:
    """Code and line of a fault, if a sidecar server wrote it."""
    try:
        fault = FaultMessage.model_validate_json(content).error
    except ValidationError:
        return None, None
    code = fault.code if re.fullmatch(r"[a-z_]{1,40}", fault.code) else None
    return code, fault.message if fault.message.isprintable() and len(fault.message) <= 400 else None
