"""An OpenAI-compatible endpoint: where it is, how it is asked, and the requests that open a stream. Opens no socket."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ada_guard.errors import ConfigError
from ada_guard.http import Transport, checked_url
from ada_guard.sources.endpoint_stream import EndpointStream, Limits, Request
from ada_guard.sources.openai_chunks import API
from ada_guard.steps import Steps

if TYPE_CHECKING:
    import httpx

__all__ = ["Endpoint", "Timeouts"]

PATHS: dict[API, str] = {"chat": "/chat/completions", "completions": "/completions"}
OURS = frozenset({"messages", "prompt", "stream", "tools"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for an endpoint, in seconds; None is for ever.

    Attributes:
        connect_s: For a connection.
        read_s: For the next byte; also for the first, behind the server's queue and its reading of the prompt.
        total_s: For the whole stream: the time spent waiting for the endpoint, retries included, without the
            consumer's own. Bounds endless keep-alives and drips. Exact in async code; in a thread a wait that has begun
            may last `read_s` longer.
    """

    connect_s: float | None = 10.0
    read_s: float | None = 120.0
    total_s: float | None = 1800.0

    def __post_init__(self) -> None:
        if any(value is not None and not value > 0 for value in (self.connect_s, self.read_s, self.total_s)):
            raise ConfigError("a timeout must be more than 0 seconds, or None")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endpoint:
    """A server that speaks ``/v1/chat/completions`` or ``/v1/completions`` (vLLM, SGLang, llama.cpp, gateways).

    Attributes:
        base_url: Up to and with ``/v1``; http or https, without credentials, query or fragment.
        model: Its name there.
        api: Which of the two; ``"completions"`` takes a raw prompt.
        api_key: Sent as bearer token. Kept out of ``repr``.
        api_key_env: Environment variable to take the key from if none is given; None: none.
        headers: Further headers of every request.
        timeouts: Time limits.
        retries: Further tries before the first byte of an answer: after connection errors and 408, 429, 500, 502-504.
        backoff_s: Pause before the first retry in seconds, doubled for each further one.
        max_retry_after_s: Longest pause a server may ask for; where it asks for more, its answer is the error.
        max_event_bytes: Longest event of the stream.
        proxy: URL of a proxy; else the usual environment variables decide.
        verify: TLS: True, or the file of a CA, or a context. False turns verification off.
        client: A ready client for sync use, which stays the caller's to close; its proxy and TLS settings hold, with
            the timeouts given here.
        async_client: Likewise for async use.
        prefill: Messages that end in an assistant turn are ``"continue"``d: ``continue_final_message`` is sent (vLLM,
            SGLang, llama-server), which transformers serve refuses. ``"plain"`` sends them as they are, for servers
            that continue by themselves or by a mark in the message. ``"reject"`` is a `ConfigError`.
        prefill_echo: The server repeats the prefill at the beginning of its answer (llama-server does); it is taken
            off. Token ids are dropped then, as they would include it.
        usage: Whether the server is asked to count tokens (``stream_options``). None: ask, and ask again without it if
            the server refuses.
    """

    base_url: str
    model: str
    api: API = "chat"
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = "OPENAI_API_KEY"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts = Timeouts()
    retries: int = 2
    backoff_s: float = 0.5
    max_retry_after_s: float = 30.0
    max_event_bytes: int = 1 << 20
    proxy: str | None = field(default=None, repr=False)
    verify: bool | str | ssl.SSLContext = True
    client: httpx.Client | None = field(default=None, repr=False)
    async_client: httpx.AsyncClient | None = field(default=None, repr=False)
    prefill: Literal["continue", "plain", "reject"] = "continue"
    prefill_echo: bool = False
    usage: bool | None = None
    _transport: Transport = field(init=False, repr=False)
    _headers: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "base_url", checked_url(self.base_url, what="base_url", example="http://127.0.0.1:8000/v1")
        )
        if not self.model:
            raise ConfigError("an endpoint needs the name of a model")
        if self.api not in PATHS:
            raise ConfigError("api must be 'chat' or 'completions'")
        if self.prefill not in {"continue", "plain", "reject"}:
            raise ConfigError("prefill must be 'continue', 'plain' or 'reject'")
        if self.retries < 0 or self.backoff_s < 0 or self.max_event_bytes < 1:
            raise ConfigError("retries, backoff_s and max_event_bytes must not be negative")
        object.__setattr__(self, "_headers", self._checked_headers())
        transport = Transport(self._client_settings, client=self.client, async_client=self.async_client)
        object.__setattr__(self, "_transport", transport)

    @property
    def identity(self) -> str:
        """What tells it from others: where it is, and the model there."""
        return f"{self.base_url} {self.api} {self.model}"

    def open(
        self,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | Sequence[int] | None = None,
        tools: Sequence[Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> EndpointStream:
        """A stream that is sent at its first `EndpointStream.pull` or `EndpointStream.start`.

        Args:
            messages: The conversation, for ``api="chat"``.
            prompt: Text or token ids, for ``api="completions"``.
            tools: Tool definitions.
            extra_body: Further fields of the request, such as ``cache_salt`` and ``return_token_ids``.
            **settings: Further fields too (``max_tokens``, ``temperature``, ``stop``, ``seed``, ``n``; ``model`` for
                another one of the same server). None is left out.

        Raises:
            ConfigError: A combination that cannot be streamed and guarded.
        """
        fields = {key: value for key, value in {**settings, **(extra_body or {})}.items() if value is not None}
        if reserved := sorted(OURS & fields.keys()):
            raise ConfigError(f"these are not settings of a stream: {', '.join(reserved)}")
        if "max_new_tokens" in fields:
            raise ConfigError("an endpoint's field is max_tokens, not max_new_tokens")
        if fields.get("echo"):
            raise ConfigError("echo would mix the prompt into the answer")
        choices = fields.get("n", 1)
        if type(choices) is not int or choices < 1:
            raise ConfigError("n must be a whole number of at least 1")
        body: dict[str, Any] = {"model": self.model, "stream": True, **fields}
        prefill = ""
        if self.api == "chat":
            if not messages or prompt is not None:
                raise ConfigError("the chat API needs messages, and takes no prompt")
            body["messages"] = list(messages)
            if tools:
                body["tools"] = list(tools)
            if messages[-1].get("role") == "assistant":
                prefill = _prefill_text(messages[-1])
                if self.prefill == "reject":
                    raise ConfigError("the messages end in an assistant turn, which prefill='reject' forbids")
                if self.prefill == "continue":
                    body = {"continue_final_message": True, "add_generation_prompt": False, **body}
        else:
            if messages or tools or not _is_prompt(prompt):
                raise ConfigError("the completions API needs one prompt (text or token ids), no messages and no tools")
            body["prompt"] = prompt if isinstance(prompt, str) else list(prompt or ())
        usage_asked = self.usage is not False and "stream_options" not in body
        if usage_asked:
            body["stream_options"] = {"include_usage": True}
        request = Request(
            url=self.base_url + PATHS[self.api],
            headers=self._headers,
            body=_encoded(body),
            # What to send instead where the server refuses the count that nobody insisted on.
            spare=_encoded({**body, "stream_options": None}) if usage_asked and self.usage is None else None,
            api=self.api,
            choices=choices,
            echo=prefill if self.prefill_echo else "",
            continues="continue_final_message" in body,
        )
        return EndpointStream(self._transport, request, self._limits())

    def close(self) -> Steps[None]:
        """Closes the connections. A ready client is left to its owner."""
        yield from self._transport.close()

    def _limits(self) -> Limits:
        timeouts = self.timeouts
        return Limits(
            connect_s=timeouts.connect_s,
            read_s=timeouts.read_s,
            total_s=timeouts.total_s,
            retries=self.retries,
            backoff_s=self.backoff_s,
            max_retry_after_s=self.max_retry_after_s,
            max_event_bytes=self.max_event_bytes,
        )

    def _checked_headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept": "text/event-stream", "user-agent": "ada-guard"}
        headers["accept-encoding"] = "identity"  # what compresses a stream also holds it up
        key = self.api_key or (os.environ.get(self.api_key_env) if self.api_key_env else None)
        if key:
            headers["authorization"] = f"Bearer {key}"
        headers |= {name.lower(): value for name, value in self.headers.items()}
        for name, value in headers.items():
            # httpx would quote the value in its own error.
            if not isinstance(value, str) or not (value.isascii() and value.isprintable()) or value != value.strip():
                raise ConfigError(f"the value of the {name} header has characters that a header cannot have")
        return headers

    def _client_settings(self) -> dict[str, Any]:
        """Settings of a client of our own. One stream holds one connection, so the server bounds their number."""
        import httpx

        verify = self.verify
        if isinstance(verify, str):
            try:
                verify = ssl.create_default_context(cafile=verify)
            except OSError:
                verify = False
            if not verify:
                raise ConfigError("verify names a file of certificates that cannot be read")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        return {"verify": verify, "proxy": self.proxy, "limits": limits}


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return bool(prompt)
    return bool(prompt) and all(type(token) is int for token in prompt)


def _prefill_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or () if isinstance(part, Mapping))


def _encoded(body: Mapping[str, Any]) -> bytes:
    """The body as JSON, in ASCII: half a surrogate pair in a prompt must not become an error that quotes the prompt."""
    try:
        return json.dumps({key: value for key, value in body.items() if value is not None}, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        pass
    raise ConfigError("the request holds a value that JSON cannot express")
