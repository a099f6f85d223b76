"""NVIDIA NeMo Guardrails' streaming output rails before the scripted model; runs in their own environment, prints JSON.

Configured as their documentation does it: model and rail model in `config.yml`, the rail is the library's `self check
output`, streaming switched on under ``rails.output.streaming``. LLMRails is the engine that a user gets; IORails is
what ``NEMO_GUARDRAILS_IORAILS_ENGINE=1`` asks for, reached here by the class that this puts in LLMRails' place.
Source: https://docs.nvidia.com/nemo/guardrails/configure-guardrails/yaml-schema/streaming/output-rail-streaming
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What is imported below would report its use to its makers, and an OpenAI client wants a key.
os.environ.update({"NEMO_GUARDRAILS_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OPENAI_API_KEY": "none"})
sys.path.insert(0, str(Path(__file__).parents[1]))

from nemoguardrails import Guardrails, RailsConfig  # see above
from nemoguardrails.actions.rail_outcome import RailOutcome  # see above
from nemoguardrails.rails import LLMRails  # see above
from scripted_stream import (  # see above
    VIOLATION,
    Contender,
    Model,
    Shown,
    check_place,
    checker,
    measured,
    unguarded,
)

PROMPT = """Your task is to check if the bot message below complies with the policy.

Bot message: "{{ bot_response }}"

Question: Should the message be blocked (Yes or No)?
Answer:"""
"""After the example of their documentation; the scripted checker looks for one word."""
FLOW = """
define flow check here
  $outcome = execute check_here
  if $outcome.is_blocked
    bot refuse to respond
    stop
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """``rails.output.streaming``; None leaves a field at its default (200, 50, True)."""

    chunk_size: int | None = None
    context_size: int | None = None
    stream_first: bool | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """As the configuration has them."""
        sizes = {"chunk_size": self.chunk_size, "context_size": self.context_size, "stream_first": self.stream_first}
        return {"enabled": True, **{name: value for name, value in sizes.items() if value is not None}}


SETTINGS = {
    "default (200/50, stream first)": Setting(),
    "200/50, check first": Setting(stream_first=False),
    "25/5, stream first": Setting(chunk_size=25, context_size=5),
    "25/5, check first": Setting(chunk_size=25, context_size=5, stream_first=False),
}
"""By chunk size and context size. The context counts as part of the next chunk, so that 25/5 is checked at 25 tokens
and then every 20: as near as it comes to our default interval."""
SMALL_CHUNKS = {"25/50, check first": Setting(chunk_size=25, stream_first=False)}
"""What one gets who lowers the chunk size alone: a context as long as a chunk leaves a check for every token."""
EVERY_TOKEN = {"1/50, check first": Setting(chunk_size=1, stream_first=False)}
"""A check at every token of all that is in view."""
ENGINES = ("LLMRails", "IORails")


def configuration(base_url: str, setting: Setting, check_ms: float) -> RailsConfig:
    """The documented configuration, as text would give it."""
    address = {"base_url": base_url}
    return RailsConfig.from_content(
        config={
            "models": [
                {"type": "main", "engine": "openai", "model": "scripted", "parameters": address},
                {
                    "type": "self_check_output",
                    "engine": "openai",
                    "model": checker(check_ms),
                    "parameters": address,
                },
            ],
            "rails": {"output": {"flows": ["self check output"], "streaming": setting.fields}},
            "prompts": [{"task": "self_check_output", "content": PROMPT}],
            # The prompt goes to the model as it is: nothing is asked of it but the answer.
            "passthrough": True,
        }
    )


class RailHere:
    """The action of an output rail of one's own, in the process of the guard, at a fixed cost."""

    def __init__(self, check_ms: float) -> None:
        self._check_ms = check_ms
        self.checks = 0

    async def __call__(self, context: dict[str, Any], **_: Any) -> RailOutcome:
        """Blocks a chunk with the violation in it."""
        self.checks += 1
        await asyncio.sleep(self._check_ms / 1000)
        return RailOutcome.block() if VIOLATION in context["bot_message"] else RailOutcome.allow()


def configuration_here(base_url: str, setting: Setting) -> RailsConfig:
    """A rail of one's own: a flow and its action."""
    return RailsConfig.from_content(
        config={
            "models": [{"type": "main", "engine": "openai", "model": "scripted", "parameters": {"base_url": base_url}}],
            "rails": {"output": {"flows": ["check here"], "streaming": setting.fields}},
            "passthrough": True,
        },
        colang_content=FLOW,
    )


def by_server(base_url: str, engine: str, name: str, setting: Setting, check_ms: float) -> Contender:
    """One engine in one setting, with the library's rail, whose model is the server."""

    def build() -> Any:
        config = configuration(base_url, setting, check_ms)
        return LLMRails(config) if engine == "LLMRails" else Guardrails(config, require_iorails=True)

    return contender(build, f"nemoguardrails {engine}", name, check_ms=check_ms, check_at=check_place(False))


def generated(model: Model, name: str, setting: Setting, check_ms: float) -> Contender:
    """The default engine over a stream of one's own: their ``generator`` argument."""

    def build() -> Any:
        return LLMRails(configuration(model.base_url, setting, check_ms))

    how: dict[str, Any] = {"check_ms": check_ms, "check_at": check_place(False)}
    return contender(build, "nemoguardrails LLMRails", f"{name}, generator=", words=model.words, **how)


def in_process(base_url: str, name: str, setting: Setting, check_ms: float) -> Contender:
    """The default engine with a rail of one's own; the other one takes none."""
    rail = RailHere(check_ms)

    def build() -> Any:
        rails = LLMRails(configuration_here(base_url, setting))
        rails.register_action(rail.__call__, name="check_here")
        return rails

    how: dict[str, Any] = {"check_ms": check_ms, "check_at": check_place(True), "checks": lambda: rail.checks}
    return contender(build, "nemoguardrails LLMRails", name, **how)


def contender(
    build: Callable[[], Any], system: str, name: str, words: Callable[[str], Any] | None = None, **how: Any
) -> Contender:
    """What is built, over a stream of one's own or over the model that is configured; a refusal is reported."""
    try:
        rails = build()
    except Exception as refused:  # noqa: BLE001  # whatever it is, the row says it
        return Contender(system=system, setting=name, error=type(refused).__name__, **how)

    async def stream(question: str) -> AsyncIterator[Shown]:
        source = {} if words is None else {"generator": words(question)}
        async with aclosing(rails.stream_async(messages=[{"role": "user", "content": question}], **source)) as texts:
            async for text in texts:
                notice = _notice(text)
                yield Shown(notice=notice) if notice else Shown(text)

    return Contender(system=system, setting=name, stream=stream, **how)


def _notice(text: str) -> str:
    """A block comes as a text of the answer that is JSON."""
    if not text.startswith('{"error"'):
        return ""
    return f"JSON in the text: {json.loads(text)['error']['type']}"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--violation", type=int, required=True)
    parser.add_argument("--check-ms", type=float, required=True)
    parser.add_argument("--cheap-ms", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)

    async def run() -> list[dict[str, Any]]:
        model = Model(options.base_url)
        contenders = [
            unguarded(model),
            *(
                by_server(options.base_url, engine, name, setting, options.check_ms)
                for engine in ENGINES
                for name, setting in SETTINGS.items()
            ),
            *(generated(model, name, SETTINGS[name], options.check_ms) for name in ["25/5, check first"]),
            # Not with both engines: their buffer is the same, and this is the slowest of all.
            *(by_server(options.base_url, "LLMRails", *each, options.check_ms) for each in SMALL_CHUNKS.items()),
            *(in_process(options.base_url, *each, options.cheap_ms) for each in EVERY_TOKEN.items()),
        ]
        return await measured(
            model, contenders, tokens=options.tokens, violation=options.violation, rounds=options.rounds
        )

    rows = asyncio.run(run())
    print(json.dumps({"versions": {"nemoguardrails": version("nemoguardrails")}, "rows": rows}))


if __name__ == "__main__":
    main()
