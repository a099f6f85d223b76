"""What the benchmarks share: random models by family and size, interleaved timing, saved results.

Timing does not depend on what weights say, so random ones will do. What is compared takes turns in one run: a noisy
machine then disturbs all of it alike, and ratios hold where times do not.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ada_guard.local import LocalModel
from ada_guard.local.blocks import hook_position
from ada_guard.probe import LinearProbe, ProbeCard
from ada_guard.reference import CHAT_DIR

__all__ = [
    "RESULTS",
    "SIZES",
    "Timing",
    "families",
    "interleaved",
    "local_model",
    "quantile",
    "random_net",
    "save",
    "wait",
]

RESULTS = Path(__file__).parent / "results"

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512, "heads": 4, "kv_heads": 2},
    "0.1b": {"hidden_size": 640, "num_hidden_layers": 12, "intermediate_size": 2560, "heads": 10, "kv_heads": 2},
    "0.4b": {"hidden_size": 1024, "num_hidden_layers": 19, "intermediate_size": 4096, "heads": 16, "kv_heads": 4},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "heads": 32, "kv_heads": 8},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "heads": 32, "kv_heads": 8},
}
"""Shapes by name. The last two are those of Llama-3.2-1B and Llama-3.1-8B. Source: their ``config.json``."""

_WINDOW = 512
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": _WINDOW},
    "qwen3_moe": _EXPERTS,
}


def families() -> tuple[str, ...]:
    """The families that `random_net` knows: full attention, query norms, sliding windows, experts."""
    return tuple(_FAMILIES)


def random_net(
    size: str = "0.4b",
    *,
    family: str = "llama",
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    seed: int = 0,
) -> Any:
    """A random causal model with the reference model's tokenizer ids at the front of its vocabulary.

    Args:
        size: A key of `SIZES`.
        family: One of `families`.
        dtype: Of the weights.
        device: Where they are made.
        seed: Of the weights.
    """
    shape = SIZES[size]
    settings: dict[str, Any] = {
        "vocab_size": 32_000,
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "num_hidden_layers": shape["num_hidden_layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["hidden_size"] // shape["heads"],
        "max_position_embeddings": 32_768,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **_FAMILIES[family],
    }
    if family == "qwen3_moe":
        # As many weights at work for a token as in the dense model of this size.
        settings["moe_intermediate_size"] = shape["intermediate_size"] // _EXPERTS["num_experts_per_tok"]
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=dtype).eval()


def local_model(net: Any, *, layer: int | None = None, threshold: float = 1.0) -> LocalModel:
    """A network with the reference model's tokenizer and a probe of random direction.

    Args:
        net: As `random_net` makes it.
        layer: Of the probe; None is the middle.
        threshold: Above 0.999 so that nothing is flagged, 0 so that everything is.
    """
    bare = LocalModel(net, AutoTokenizer.from_pretrained(CHAT_DIR), name="random")
    layer = net.config.num_hidden_layers // 2 if layer is None else layer
    hidden = int(net.config.hidden_size)
    card = ProbeCard(
        model="random",
        fingerprint=bare.fingerprint,
        header_text=bare.spec.probe.text,
        header_ids=bare.spec.probe.ids,
        layer=layer,
        position=hook_position(net, layer),
        hidden_size=hidden,
        dtype=bare.dtype,
        thresholds={1: threshold},
        low_thresholds={1: 0.0},
        calibrated_tokens=100_000,
        target_fpr=0.05,
    )
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(hidden, generator=generator) / hidden
    return LocalModel(net, bare.tokenizer, probe=LinearProbe(weight=weight, bias=0.0, card=card), name="random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of one contender in ms, in the order of the rounds."""

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        """In ms."""
        return statistics.median(self.ms)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third, in ms."""
        return quantile(self.ms, 0.25), quantile(self.ms, 0.75)


def quantile(values: Iterable[float], q: float) -> float:
    """By nearest rank; `q` in [0, 1]."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 2, device: str = "cpu"
) -> dict[str, Timing]:
    """Runs all contenders in turn, round by round.

    Args:
        contenders: What to call, by name.
        rounds: Timed rounds.
        warm_up: Rounds before them that are not counted.
        device: Waited for before and after each call if it is a CUDA device.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name, run in contenders.items():
            wait(device)
            started = time.perf_counter()
            run()
            wait(device)
            if turn >= warm_up:
                times[name].append((time.perf_counter() - started) * 1000)
    return {name: Timing(ms=tuple(values)) for name, values in times.items()}


def wait(device: str) -> None:
    """Until a CUDA device has done all that it was given; other devices are never behind."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def save(
    name: str,
    rows: list[dict[str, Any]],
    *,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = None,
    **about: Any,
) -> Path:
    """Writes a result with what is needed to read and repeat it.

    Args:
        name: Of the result; its file is ``results/<name>.json``, on a CUDA machine ``results/<name>.cuda.json``.
        rows: The figures.
        seed: Of the run.
        device: On which it ran.
        out: Another file.
        about: Further facts about the run as a whole.
    """
    script = Path(sys.argv[0])
    words = iter(sys.argv[1:])
    # Where it was written to is of no use to whoever repeats it.
    arguments = [word for word in words if not (word.startswith("--out=") or (word == "--out" and next(words, True)))]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    saved = {
        "command": " ".join(["python", f"benchmarks/{script.name}", *arguments]),
        "commit": commit.stdout.strip(),
        "machine": _machine(device),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "ada-guard")},
        },
        "seed": seed,
        **about,
        "rows": rows,
    }
    kind = ".cuda" if device.startswith("cuda") else ""
    path = out or RESULTS / f"{name}{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    return path


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
