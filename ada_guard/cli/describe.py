"""``ada-guard models`` and ``ada-guard spec``: what is bundled and tested, what is derived. Needs no weights."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ada_guard.cli import options as opt
from ada_guard.cli.loading import busy, is_here, quiet
from ada_guard.cli.view import colours, hanging, print_json

if TYPE_CHECKING:
    from ada_guard.cli.outline import Outline
    from ada_guard.spec import SafetyTokens

__all__ = ["TESTED_FUSED", "TESTED_PACKED", "TESTED_SEPARATE", "models", "spec"]

TESTED_FUSED = (
    "llama", "mistral", "ministral3", "gemma", "gemma2", "gemma3_text", "gemma4_text", "qwen2", "qwen3", "qwen3_moe",
    "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4", "phi3", "olmo3", "lfm2", "cohere2",
)  # fmt: skip
TESTED_SEPARATE = ("qwen3_next", "qwen3_5_text", "granitemoehybrid", "falcon_h1")
TESTED_PACKED = tuple(name for name in TESTED_FUSED if name != "lfm2")
"""transformers' ``model_type`` of the architectures in ``tests/tiny_models.py``; a test keeps the two alike."""


def models() -> None:
    """List the bundled models and the tested architectures."""
    _title("Bundled, nothing to download (--model NAME)")
    _rows(
        (
            ("reference", "Tiny chat model with a probe. Refuses at the start of a turn only: a stand-in for tests and "
             "the demo, of no other use."),
            ("reference-base", "The same before chat tuning: continues texts, refuses nothing, has no probe."),
        ),
    )  # fmt: skip
    print()
    _title("Your own (--model ID or --model FOLDER)")
    _rows(
        (
            ("any", "A causal language model of Hugging Face transformers with a chat template. Without --probe FILE "
             "the checks are made by rethink, which needs nothing."),
            ("first", "ada-guard spec --model ID shows what is derived, without downloading weights."),
        ),
    )  # fmt: skip
    print()
    _title("Architectures the checks are tested on (tiny random models)")
    _rows(
        (
            ("one pass", ", ".join(TESTED_FUSED)),
            ("own pass", ", ".join(TESTED_SEPARATE) + " (recurrent layers: checks cost a pass of their own)"),
        ),
    )
    print("\nOthers that keep a dynamic KV cache are expected to work; ada-guard run says so if one does not.")


def spec(model: opt.Model = "reference", probe: opt.Probe = None, json: opt.Json = False) -> None:
    """Show what is derived for a model: Safety Tokens, layers, where the probe reads."""
    with busy("importing torch"):
        quiet()
        from ada_guard.cli.outline import outline
        from ada_guard.reference import PROBE_FILE
    if probe is None and model == "reference":
        probe = PROBE_FILE
    if is_here(model):
        with busy(f"reading {model}"):
            found = outline(model, probe)
    else:
        found = outline(model, probe)
    facts = _facts(model, found)
    if json:
        print_json(facts)
        return
    _rows([(name.replace("_", " "), _shown(value)) for name, value in facts.items()])


def _facts(model: str, found: Outline) -> dict[str, Any]:
    derived, card = found.spec, found.probe.card if found.probe is not None else None
    return {
        "model": model,
        "model_type": found.model_type,
        "source": derived.source,
        "generation_prompt": derived.generation_prompt + derived.prompt_suffix,
        "end_of_turn": derived.end_of_turn,
        "rethink": _tokens(derived.rethink, found.tokenizer),
        "probe": _tokens(derived.probe, found.tokenizer),
        "check_pass": {True: "fused", False: "separate", None: "unknown"}[found.fused],
        "many_streams": _many_streams(found),
        "context_tokens": found.context_tokens,
        "layers": found.layers,
        "hidden_size": found.hidden_size,
        "hook_position": found.hook_position,
        "probe_layer": None if card is None else card.layer,
        "thresholds": None if card is None else {str(k): v for k, v in sorted(card.thresholds.items())},
        "low_thresholds": None if card is None else {str(k): v for k, v in sorted(card.low_thresholds.items())},
    }


def _many_streams(found: Outline) -> str:
    """How a sidecar runs the checks of many streams of this architecture."""
    if found.model_type in TESTED_PACKED:
        return "packed"
    # Where a layer cannot drop its last tokens, it cannot hold many sequences either; convolutions neither.
    if found.fused is False or found.model_type in (*TESTED_FUSED, *TESTED_SEPARATE):
        return "one at a time"
    return "tried when the sidecar starts"


def _tokens(tokens: SafetyTokens, tokenizer: Any) -> dict[str, Any]:
    return {
        "text": tokens.text,
        "ids": list(tokens.ids),
        "tokens": [str(token) for token in tokenizer.convert_ids_to_tokens(list(tokens.ids))],
    }


def _shown(value: Any) -> str:
    """A fact as a person reads it: texts with their newlines visible."""
    if value is None:
        return "none"
    if isinstance(value, dict) and "tokens" in value:
        pairs = zip(value["tokens"], value["ids"], strict=True)
        return f"{_visible(value['text'])}\n" + "  ".join(f"{token}·{number}" for token, number in pairs)
    if isinstance(value, dict):
        return ", ".join(f"{threshold:.4f} at interval {interval}" for interval, threshold in value.items())
    return _visible(value) if isinstance(value, str) else str(value)


def _visible(text: str) -> str:
    return text.encode("unicode_escape").decode() if not text.isprintable() else text


def _title(text: str) -> None:
    bold = colours(sys.stdout)
    print(f"\x1b[1m{text}\x1b[0m" if bold else text)


def _rows(rows: Iterable[tuple[str, str]]) -> None:
    listed = list(rows)
    indent = 4 + max(len(name) for name, _ in listed)
    # A pipe has no width: whoever reads it should not get lines that were broken for a narrow screen.
    width = min(shutil.get_terminal_size().columns, 100) if sys.stdout.isatty() else 100
    for name, text in listed:
        print(hanging(f"  {name}", text, indent=indent, width=max(width, indent + 20)))
