"""A sidecar that is served by another process or machine (`ada-guard serve`), as a sidecar of this one. Torch-free.

The checkers run here; only what they ask goes over the wire. A request that extends a stream orders the check that it
makes due, so that a check costs one round trip.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from ada_guard.checking import Ask, Calibration
from ada_guard.errors import CheckError, ConfigError
from ada_guard.http import Transport, checked_url
from ada_guard.policy import Schedule
from ada_guard.sidecar.calls import CallFault, Calls
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sidecar.remote import RemoteFollowing
from ada_guard.sidecar.wire import KINDS, PROTOCOL, Info, Open, Opened
from ada_guard.steps import Steps

if TYPE_CHECKING:
    import httpx

__all__ = ["API_KEY_ENV", "HTTPSidecar", "is_loopback"]

API_KEY_ENV = "ADA_GUARD_API_KEY"
_MEDIA = ("image", "audio", "video", "file", "document")
MAX_UNSHOWN_CHARS = 512


class HTTPSidecar:
    """A sidecar server, for any number of streams at once, in threads and on event loops.

    Args:
        url: Of the server, such as ``http://127.0.0.1:8008``.
        api_key: Sent as bearer token.
        api_key_env: Environment variable to take the key from if none is given; None: none.
        timeout_s: Longest wait for an answer in seconds, retries included; then the check counts as not made.
        connect_s: For a connection.
        retries: Further tries where the server cannot be reached or is busy.
        backoff_s: Pause before the first of them in seconds, doubled for each further one.
        expected_model: The name of the model that the server must have. None: any.
        coalesce: Whether text is sent only when it may make a check due. False sends each delta at once: under the
            policies ``"window"`` and ``"audit"`` text is then shown without delay, at a round trip for each delta.
        headers: Further headers of each request.
        proxy: URL of a proxy; else the usual environment variables decide.
        verify: TLS: True, or the file of a CA, or a context. False turns verification off.
        client: A ready client for sync use, which stays the caller's to close; its proxy and TLS settings hold.
        async_client: Likewise for async use.

    Raises:
        ConfigError: A setting that cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        api_key_env: str | None = API_KEY_ENV,
        timeout_s: float = 75.0,
        connect_s: float = 5.0,
        retries: int = 3,
        backoff_s: float = 0.25,
        expected_model: str | None = None,
        coalesce: bool = True,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str | ssl.SSLContext = True,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
    ) -> None:
        if not (timeout_s > 0 and connect_s > 0 and backoff_s >= 0 and retries >= 0):
            raise ConfigError("timeout_s and connect_s must be more than 0; retries and backoff_s not negative")
        key = api_key or (os.environ.get(api_key_env) if api_key_env else None)
        url = (
            checked_url(url, what="a sidecar server's URL", example="http://127.0.0.1:8008")
            .removesuffix("/v1")
            .rstrip("/")
        )
        # What goes to this machine itself must not take the way over a proxy that the environment names for others.
        self._settings = {"proxy": proxy, "verify": verify, "trust_env": not is_loopback(urlsplit(url).hostname or "")}
        self._transport = Transport(self._client_settings, client=client, async_client=async_client)
        self._calls = Calls(
            transport=self._transport,
            url=url,
            headers=_checked_headers(key, headers or {}),
            timeout_s=timeout_s,
            connect_s=connect_s,
            retries=retries,
            backoff_s=backoff_s,
        )
        self._expected_model = expected_model
        self.identity = f"{url} {expected_model or ''}".strip()
        self._coalesce = coalesce
        self.info: Info | None = None

    @property
    def name(self) -> str:
        """The model's there, once it is known."""
        return "sidecar server" if self.info is None else self.info.model

    @property
    def reads_source_ids(self) -> bool:
        """Not by itself: say ``shared_tokenizer=True`` where it is so."""
        return False

    def connect(self) -> Steps[Calibration | None]:
        """Asks the server what it is.

        Raises:
            CheckError: It cannot be reached, or fails.
            ConfigError: It does not take the key, is no sidecar server, speaks another version, or has another model.
        """
        fault: CallFault | None = None
        try:
            info = yield from self._calls.call("GET", "/v1/info", Info)
        except CallFault as failure:
            fault = failure
        if fault is not None:
            raise fault.error
        if info.protocol != PROTOCOL:
            raise ConfigError(f"the sidecar server speaks version {info.protocol}, this is version {PROTOCOL}")
        if self._expected_model is not None and info.model != self._expected_model:
            raise ConfigError(
                f"the sidecar server has the model {info.model[:100]!r}, not {self._expected_model[:100]!r}"
            )
        self.info = info
        return None if info.calibration is None else info.calibration.calibration()

    def open(
        self, conversation: Conversation, *, asks: frozenset[type[Ask]], schedule: Schedule
    ) -> Steps[RemoteFollowing]:
        """Begins a session.

        Raises:
            ConfigError: The conversation cannot be shown to the server's model, or holds what JSON cannot express.
            CheckError: The server cannot be reached, has no room, or has another model than it had.
        """
        if self.info is None:
            yield from self.connect()
        assert self.info is not None
        message = _open_message(conversation, asks)
        fault: CallFault | None = None
        try:
            opened = yield from self._calls.call("POST", "/v1/sessions", Opened, message)
        except CallFault as failure:
            fault = failure
        if fault is not None:
            raise fault.error
        following = RemoteFollowing(self._calls, message, opened, asks=asks, schedule=schedule, coalesce=self._coalesce)
        if opened.identity != self.info.identity:
            yield from following.close()
            raise CheckError("the sidecar server has another model or probe than it had: make a new guard")
        return following

    def close(self) -> Steps[None]:
        """Closes the connections. A ready client is left to its owner."""
        yield from self._transport.close()

    def _client_settings(self) -> dict[str, Any]:
        import httpx

        verify = self._settings["verify"]
        if isinstance(verify, str):
            try:
                verify = ssl.create_default_context(cafile=verify)
            except OSError:
                verify = None
            if verify is None:
                raise ConfigError("verify names a file of certificates that cannot be read")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        return {**self._settings, "verify": verify, "limits": limits}


def _open_message(conversation: Conversation, asks: frozenset[type[Ask]]) -> Open:
    if any(not isinstance(tool, Mapping) for tool in conversation.tools or ()):
        raise ConfigError("tools for a sidecar server must be JSON objects, not functions")
    try:
        return Open(
            messages=[_without_media(message) for message in conversation.messages],
            tools=None if conversation.tools is None else [dict(tool) for tool in conversation.tools],
            template_kwargs=dict(conversation.template_kwargs),
            raw_prompt=conversation.raw_prompt,
            asks=sorted(name for name, kind in KINDS.items() if kind in asks),
        )
    except (ValidationError, TypeError, ValueError):
        pass
    raise ConfigError("messages, tools and template_kwargs for a sidecar server must be what JSON can express")


def _without_media(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message without the data of images and sounds: no text model can be shown them, and they are large."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return dict(message)
    return {**message, "content": [_light(part) if _is_media(part) else part for part in content]}


def _is_media(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and any(word in kind for word in _MEDIA)


def _light(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_UNSHOWN_CHARS else ""
    if isinstance(value, Mapping):
        return {key: _light(item) for key, item in value.items()}
    return [_light(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which nobody else can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _checked_headers(key: str | None, further: Mapping[str, str]) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json", "user-agent": "ada-guard"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    headers |= {name.lower(): value for name, value in further.items()}
    for name, value in headers.items():
        # httpx would quote the value in its own error.
        if not (value.isascii() and value.isprintable()) or value != value.strip():
            raise ConfigError(f"the value of the {name} header has characters that a header cannot have")
    return headers
