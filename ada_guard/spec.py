"""The Safety Tokens of a model, derived from its tokenizer's chat template. Knows no model names, weights or streams.

What the template itself does not show is data (``specs.toml``), matched by features of the template.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from ada_guard.errors import ConfigError
from ada_guard.template import TemplateShape, Variant

__all__ = ["ModelSpec", "SafetyTokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyTokens:
    """A span that is injected mid-answer.

    Attributes:
        text: As text.
        ids: The tokenizer's ids of `text`, no others added.
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Where a model's turns begin and end, and which Safety Tokens are injected.

    **Source**: Any-Depth Alignment (arXiv 2510.18081) for both spans; the authors' own strings come out for each of
    their open models (``configs/models.yaml`` of their repository).

    Attributes:
        generation_prompt: What the template appends under ``add_generation_prompt=True``.
        prompt_suffix: Text added behind the generation prompt, to where the variant's text begins.
        end_of_turn: What follows an answer in the history; empty where only the next header ends it.
        rethink: End of turn and assistant header, injected by ADA-RK.
        probe: The same up to the role token, injected by ADA-LP, which reads the state at the last of these tokens.
        variant: Whether the spans lead to the answer or to the reasoning before it.
        source: ``"derived"``, the name of the ``specs.toml`` entry, or ``"given"`` where both spans were.
    """

    generation_prompt: str
    prompt_suffix: str
    end_of_turn: str
    rethink: SafetyTokens
    probe: SafetyTokens
    variant: Variant
    source: str

    @property
    def probe_is_prefix(self) -> bool:
        """Whether one pass over the rethink tokens serves the probe too."""
        return self.rethink.ids[: len(self.probe.ids)] == self.probe.ids

    @classmethod
    def derive(
        cls, tokenizer: Any, *, variant: Variant = "answer", rethink: str | None = None, probe: str | None = None
    ) -> ModelSpec:
        """Derives the spec from a tokenizer's chat template.

        Args:
            tokenizer: Any transformers tokenizer.
            variant: What the model is to write behind the header, where it can do both.
            rethink: Overrides the derived text of end of turn and assistant header.
            probe: Overrides the derived text of the probe's span.

        Raises:
            ConfigError: No chat template, or one that cannot be analysed; names what to pass by hand.
        """
        if variant not in ("answer", "reasoning"):
            raise ConfigError("variant is 'answer' or 'reasoning'")
        try:
            shape = TemplateShape.observed(tokenizer)
        except ConfigError:
            if rethink is None or probe is None:
                raise
            shape = TemplateShape()
        entry = next((e for e in _exceptions() if e.when.holds(tokenizer, shape)), _Exception())
        texts = entry.reasoning if variant == "reasoning" else entry.answer
        suffix, header = shape.suffix_and_header(variant)
        if texts.prompt_suffix is not None:
            suffix, header = texts.prompt_suffix, header + texts.prompt_suffix
        derived = _Texts(
            rethink=shape.end_of_turn + header,
            probe=shape.end_of_turn + shape.up_to_role(header, tokenizer.get_added_vocab()),
        )
        return cls(
            generation_prompt=shape.generation_prompt,
            prompt_suffix=suffix,
            end_of_turn=shape.end_of_turn,
            rethink=_safety_tokens(tokenizer, "rethink", rethink, texts.rethink, derived.rethink),
            probe=_safety_tokens(tokenizer, "probe", probe, texts.probe, derived.probe),
            variant=variant,
            source="given" if rethink is not None and probe is not None else entry.name,
        )


def _safety_tokens(tokenizer: Any, name: str, *texts: str | None) -> SafetyTokens:
    text = next(text for text in texts if text is not None)
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise ConfigError(f"{name}=... has no tokens: pass the text of the model's assistant header")
    return SafetyTokens(text=text, ids=ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Features:
    """What must hold of a template for an entry of ``specs.toml`` to be its own."""

    template_contains: Sequence[str] = ()
    added_tokens: Sequence[str] = ()
    generation_prompt: str | None = None
    generation_prompt_ends: str = ""
    end_of_turn: str | None = None
    fixed_thinking: bool = False

    def holds(self, tokenizer: Any, shape: TemplateShape) -> bool:
        template, added = str(tokenizer.chat_template), tokenizer.get_added_vocab()
        return (
            all(text in template for text in self.template_contains)
            and all(token in added for token in self.added_tokens)
            and self.generation_prompt in (None, shape.generation_prompt)
            and self.end_of_turn in (None, shape.end_of_turn)
            and shape.generation_prompt.endswith(self.generation_prompt_ends)
            and not (self.fixed_thinking and shape.thinking[0] != shape.thinking[1])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """The texts of one variant; None is the derived one."""

    prompt_suffix: str | None = None
    rethink: str | None = None
    probe: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exception:
    """An entry of ``specs.toml``; by default the one that changes nothing."""

    name: str = "derived"
    source: str = ""
    when: _Features = field(default_factory=_Features)
    answer: _Texts = field(default_factory=_Texts)
    reasoning: _Texts = field(default_factory=_Texts)


@cache
def _exceptions() -> tuple[_Exception, ...]:
    """The entries of ``specs.toml``. A key that is no field is a `TypeError`: the file ships with this module."""
    data = tomllib.loads(resources.files("ada_guard").joinpath("specs.toml").read_text(encoding="utf-8"))
    return tuple(
        _Exception(
            name=entry.pop("name"),
            source=entry.pop("source"),
            when=_Features(**entry.pop("when")),
            **{variant: _Texts(**texts) for variant, texts in entry.items()},
        )
        for entry in data["exception"]
    )
