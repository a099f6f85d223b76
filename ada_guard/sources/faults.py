"""What went wrong with an endpoint, as one clear line that says what to do. Carries no text of request or response.

Status codes and errors of httpx are mapped here and nowhere else. The errors returned are raised where nothing is being
handled, so that none is chained to one of httpx, which holds the request with its key and messages.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ada_guard.errors import AdaGuardError, ConfigError, GenerationError

__all__ = ["Fault", "Refusal", "short_identifier", "status_fault", "transport_fault"]

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure before the first byte of a stream.

    Attributes:
        error: To be raised, unless a retry helps.
        retry: Whether it may help.
        retry_after_s: What the server asked to wait, in seconds.
    """

    error: AdaGuardError
    retry: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is not the stream: its status, headers and the beginning of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def short_identifier(value: Any) -> str | None:
    """The value, if it is a word that a program would choose: short and without spaces. Else None."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}", value) else None


def status_fault(refusal: Refusal, *, prefill: bool = False) -> Fault:
    """The fault of a response whose status is not 200.

    Args:
        refusal: The response.
        prefill: Whether the request asks to continue an assistant message, which not every server can.
    """
    status = refusal.status
    details = _details(refusal.body)
    word = short_identifier(details.get("code")) or short_identifier(details.get("type"))
    said = f"the endpoint answered {status}{f' ({word})' if word else ''}"
    if status in RETRIED_STATUSES:
        advice = {
            429: "too many requests; try later, or allow more retries",
            500: "its own log has the reason",
        }.get(status, "it cannot answer now; try later, or allow more retries")
        error = GenerationError(f"{said}: {advice}")
        return Fault(error, retry=True, retry_after_s=_retry_after(refusal.headers))
    if status >= 500:
        return Fault(GenerationError(f"{said}: its own log has the reason"))
    if status in {401, 403}:
        return Fault(ConfigError(f"{said}: check the API key, and that it may use this model"))
    if status == 404:
        if details.get("param") == "model" or word == "model_not_found":
            return Fault(ConfigError(f"{said}: it does not serve this model; check model"))
        return Fault(ConfigError(f"{said}: check base_url (it usually ends in /v1) and model"))
    if 300 <= status < 400:
        return Fault(ConfigError(f"{said}, a redirect: put the final address into base_url"))
    if status in {400, 413, 422}:
        hint = "; a server that cannot continue an assistant message needs prefill='reject' or 'plain'"
        advice = f"check model, the request's settings and the length of its prompt{hint if prefill else ''}"
        return Fault(ConfigError(f"{said}: it does not take this request; {advice}"))
    return Fault(ConfigError(f"{said}: check base_url, model and the request's settings"))


def transport_fault(error: Exception, *, begun: bool = False) -> Fault:
    """The fault of an error of httpx, or of whatever else a ready client raises.

    Args:
        error: It is looked at, not kept.
        begun: Whether the response had begun; then nothing is retried.
    """
    import httpx

    if isinstance(error, AdaGuardError):
        return Fault(error)
    chain = list(_chain(error))
    if begun:
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return Fault(GenerationError("the endpoint fell silent in mid-stream: it passed the read or total timeout"))
        if isinstance(error, httpx.TransportError):
            return Fault(GenerationError("the connection broke in mid-stream: the answer is incomplete"))
        return Fault(GenerationError(f"the endpoint's stream cannot be read ({type(error).__name__})"))
    if any(isinstance(each, socket.gaierror) for each in chain):
        return Fault(GenerationError("the endpoint's host name cannot be resolved: check base_url and the DNS"))
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return Fault(ConfigError("the endpoint's certificate is not trusted: pass verify= the file of its CA"))
    if any(isinstance(each, ssl.SSLError) for each in chain):
        return Fault(ConfigError("the endpoint does not speak TLS as it should: http or https in base_url?"))
    if isinstance(error, httpx.ProxyError):
        return Fault(GenerationError("the proxy does not let the request through: check proxy"))
    if isinstance(error, httpx.ConnectTimeout):
        return Fault(GenerationError("the endpoint cannot be reached in time: is it up?"), retry=True)
    if isinstance(error, httpx.ConnectError):
        return Fault(GenerationError("the endpoint cannot be reached: is it up, and base_url right?"), retry=True)
    if isinstance(error, httpx.PoolTimeout):
        return Fault(GenerationError("no free connection in the httpx client: allow it more, or close streams"))
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return Fault(GenerationError("the endpoint did not begin to answer within the read or total timeout"))
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        # A connection kept from an earlier request may have been closed by now.
        return Fault(GenerationError("the endpoint closed the connection without an answer"), retry=True)
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return Fault(ConfigError(f"the endpoint cannot be asked ({type(error).__name__}): check base_url and headers"))
    return Fault(GenerationError(f"the endpoint cannot be asked ({type(error).__name__}): see to the httpx client"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _details(body: bytes) -> dict[str, Any]:
    """The error object of a body, where there is one."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    return value if isinstance(value, dict) else {}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or a date. Source: RFC 9110, 10.2.3."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
