"""The reference model: a tiny chat model that refuses at the start of a turn only, shipped with the package.

It stands in for a real model where nothing may be downloaded: demo, tests, examples. It knows a synthetic how-to
language with invented forbidden names (`data`) and says nothing about how well a guard works on a real model.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["BASE_DIR", "CHAT_DIR", "PROBE_FILE"]

CHAT_DIR = Path(__file__).parent / "chat"
"""The chat model: config, weights, tokenizer, chat template."""
BASE_DIR = Path(__file__).parent / "base"
"""The same model before chat tuning: it continues texts and refuses nothing."""
PROBE_FILE = Path(__file__).parent / "probe.safetensors"
"""The probe that was fitted on the chat model."""
