"""What the options of ``ada-guard run`` mean where an endpoint generates. Torch-free until a sidecar is loaded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ada_guard.cli.loading import busy, load_guard, quiet
from ada_guard.cli.settings import note_schedule
from ada_guard.driver import drive, unguarded
from ada_guard.errors import ConfigError
from ada_guard.guard import Guard, Messages
from ada_guard.reference import CHAT_DIR
from ada_guard.sources import Endpoint
from ada_guard.steps import run

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ada_guard.checking import Checker
    from ada_guard.events import Event
    from ada_guard.local import LocalModel
    from ada_guard.policy import Policy
    from ada_guard.sidecar.protocol import Sidecar

    Answer: TypeAlias = Callable[[Messages], Generator[Event, None, None]]

__all__ = ["RemoteOptions", "raw_prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """The options of endpoint and sidecar, as given. Each is described at its option."""

    endpoint: str | None
    endpoint_model: str | None
    endpoint_api: Literal["chat", "completions"]
    endpoint_prefill: Literal["continue", "plain", "reject"]
    api_key_env: str
    sidecar_model: str | None
    sidecar_url: str | None
    self_check: bool
    tokenizer: str | None
    probe: Path | None
    device: str | None
    dtype: str

    @property
    def wanted(self) -> bool:
        """Whether an endpoint generates."""
        return self.endpoint is not None

    @property
    def has_probe(self) -> bool | None:
        """Whether what judges has a probe; None where only the server can tell."""
        if self.sidecar_url is not None:
            return None
        return self.sidecar_model == "reference" or (self.sidecar_model is not None and self.probe is not None)

    def require_whole(self, *, no_guard: bool, check: str | None) -> None:
        """Refuses options that do not go together.

        Args:
            no_guard: Whether nothing is to be judged.
            check: Who is to decide.

        Raises:
            ConfigError: The line says which.
        """
        judges = [self.sidecar_model is not None, self.sidecar_url is not None, self.self_check]
        if not self.wanted:
            if any(judges) or self.endpoint_model or self.tokenizer:
                raise ConfigError("--endpoint-model, --sidecar-model, --sidecar-url, --self-check and --tokenizer "
                                  "belong to --endpoint")  # fmt: skip
            return
        if self.endpoint_model is None:
            raise ConfigError("--endpoint needs --endpoint-model, the model's name there")
        if sum(judges) > 1 or (sum(judges) == 0 and not no_guard):
            raise ConfigError("give one of --sidecar-model, --sidecar-url and --self-check: who judges the answer")
        if self.self_check and check not in (None, "rethink"):
            raise ConfigError("--self-check is made by rethink: an endpoint shows a probe nothing")
        if self.probe is not None and self.sidecar_model is None:
            raise ConfigError("--probe belongs to --model or --sidecar-model: a sidecar server has its own")
        if self.tokenizer is not None and not self.self_check:
            raise ConfigError("--tokenizer belongs to --self-check")
        if self.self_check and self.tokenizer is None:
            raise ConfigError("--self-check needs --tokenizer, the id or folder of the endpoint's tokenizer")

    def answer(
        self, checker: Checker | None, policy: Policy, *, no_guard: bool, generation: dict[str, Any], opened: ExitStack
    ) -> tuple[Answer, str]:
        """What gives the events of an answer to messages, and a line that says who answers and who checks.

        Args:
            checker: Who decides.
            policy: When to check and what to do then.
            no_guard: Without any check.
            generation: Fields of the request.
            opened: Closes what is opened here.

        Raises:
            ConfigError: Something of it cannot work.
            CheckError: The sidecar cannot be reached.
        """
        endpoint = Endpoint(
            base_url=self.endpoint or "",
            model=self.endpoint_model or "",
            api=self.endpoint_api,
            api_key_env=self.api_key_env,
            prefill=self.endpoint_prefill,
        )
        opened.callback(lambda: run(endpoint.close()))
        if no_guard:

            def unchecked(messages: Messages) -> Generator[Event, None, None]:
                if self.endpoint_api == "completions":
                    source = endpoint.open(prompt=raw_prompt(messages), **generation)
                else:
                    source = endpoint.open(messages, **generation)
                return drive(unguarded(source), source.close)

            return unchecked, f"{self.endpoint_model}, no guard"
        guard = Guard(endpoint, sidecar=self._sidecar(endpoint), checker=checker, policy=policy)
        opened.callback(guard.close)
        guard.connect()
        note_schedule(policy, guard.policy)

        def checked(messages: Messages) -> Generator[Event, None, None]:
            asked = raw_prompt(messages) if self.endpoint_api == "completions" else messages
            return guard.stream(asked, **generation)

        return checked, f"{self.endpoint_model}, checks by {guard.checker.name} of {guard.sidecar.name}"

    def _sidecar(self, endpoint: Endpoint) -> Sidecar | LocalModel:
        if self.sidecar_url is not None:
            from ada_guard.sidecar.client import HTTPSidecar

            return HTTPSidecar(self.sidecar_url)
        if self.sidecar_model is not None:
            return load_guard(self.sidecar_model, probe=self.probe, device=self.device, dtype=self.dtype).model
        from ada_guard.sidecar.endpoint_rethink import EndpointRethink

        with busy("importing transformers"):
            quiet()
        return EndpointRethink(endpoint, CHAT_DIR if self.tokenizer == "reference" else self.tokenizer)


def raw_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """The one text of a request without roles.

    Raises:
        ConfigError: There is more than that.
    """
    if len(messages) != 1 or messages[0]["role"] != "user" or not isinstance(messages[0]["content"], str):
        raise ConfigError("--endpoint-api completions takes one --prompt: no system prompt, no prefill, no messages")
    return str(messages[0]["content"])
