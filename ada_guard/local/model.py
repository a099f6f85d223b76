"""A local Hugging Face model and what the guard needs to know of it. Knows no stream, schedule or verdict."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ada_guard.checking import Calibration
from ada_guard.errors import ConfigError
from ada_guard.local.blocks import HookPoint, decoder_blocks
from ada_guard.local.fingerprint import Fingerprint, fingerprint
from ada_guard.local.lower_blocks import WHY_NOT_WHOLE, is_whole, load_lower_blocks
from ada_guard.local.shortcuts import NO_SHORTCUTS, Shortcuts, find_shortcuts
from ada_guard.prompt import Prompt, encode_prompt
from ada_guard.reference import BASE_DIR, CHAT_DIR
from ada_guard.spec import ModelSpec

__all__ = ["LocalModel", "StateProbe"]

_NAMES = {"reference": CHAT_DIR, "reference-base": BASE_DIR}
# Hooks and forward passes belong to the network, so two `LocalModel` objects on one network share its lock.
_LOCKS: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()


class StateProbe(Protocol):
    """What a local model needs of a probe; `ada_guard.probe.LinearProbe` is one."""

    @property
    def hook_point(self) -> HookPoint:
        """Where the hidden state is read."""
        ...

    @property
    def calibration(self) -> Calibration:
        """Its thresholds."""
        ...

    def harm_probability(self, state: torch.Tensor) -> float:
        """P(harmful) for a state, float32 ``[hidden]``."""
        ...

    def harm_probabilities(self, states: torch.Tensor) -> list[float]:
        """Likewise for states, float32 ``[n, hidden]``."""
        ...

    def to(self, device: torch.device) -> StateProbe:
        """The same probe on a device."""
        ...

    def require_fits(
        self,
        *,
        layers: int,
        hidden_size: int,
        header_ids: tuple[int, ...],
        fingerprint: Fingerprint,
        dtype: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Raises `ConfigError` if it cannot read a model; warns if it was fitted on another one."""
        ...


class LocalModel:
    """Model, tokenizer, spec and probe, with the lock and the worker thread that all streams on the model share.

    Args:
        model: A causal language model of transformers, in evaluation mode, on any device and in any dtype.
        tokenizer: Its tokenizer, with a chat template.
        spec: Safety Tokens; derived from the chat template if None.
        probe: A linear probe fitted on this model.
        name: How the model is called in reports.

    Raises:
        ConfigError: Training mode, no chat template, or a probe that cannot read the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        spec: ModelSpec | None = None,
        probe: StateProbe | None = None,
        name: str = "model",
    ) -> None:
        if model.training:
            raise ConfigError("the model is in training mode: call model.eval() first")
        self.model = model
        self.tokenizer = tokenizer
        self.spec = ModelSpec.derive(tokenizer) if spec is None else spec
        self.name = name
        self.lock = _LOCKS.setdefault(model, threading.Lock())
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ada-guard")
        self.probe: StateProbe | None = None
        if probe is not None:
            probe.require_fits(
                layers=len(decoder_blocks(model)),
                hidden_size=int(self._text_config.hidden_size),
                header_ids=self.spec.probe.ids,
                fingerprint=self.fingerprint,
                dtype=self.dtype,
                revision=self.revision,
            )
            self.probe = probe.to(model.device)

    @property
    def identity(self) -> str:
        """What tells it from others: its name, the form of its header, the thresholds of its probe."""
        return f"{self.name} {self.spec.rethink.ids} {None if self.probe is None else self.probe.calibration}"

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        probe: StateProbe | None = None,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        variant: str = "answer",
        probe_only: bool = False,
        **kwargs: Any,
    ) -> LocalModel:
        """Loads a model by Hugging Face id or folder; ``"reference"`` is the bundled stand-in.

        Args:
            model: Id, folder, ``"reference"`` or ``"reference-base"``.
            probe: A loaded probe of this model.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None leaves it to `device_map` or the CPU.
            dtype: As transformers takes it.
            variant: ``"answer"``, or ``"reasoning"`` for the header of a reasoning model's thinking.
            probe_only: Load only the blocks up to the probe's layer, for a companion that nothing but the probe is
                asked of. Weights above are not read from the files.
            kwargs: Passed on to ``AutoModelForCausalLM.from_pretrained`` (``device_map``, ``revision``, ...).

        Raises:
            ConfigError: Nothing there, no such device, no chat template, a probe of another model; `probe_only`
                without a probe.
        """
        if probe_only and probe is None:
            raise ConfigError("probe_only needs a probe: pass probe=FILE")
        if variant not in ("answer", "reasoning"):
            raise ConfigError("variant must be answer or reasoning")
        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConfigError(f"unknown dtype {dtype!r}: use float32, bfloat16, float16 or auto")
        if device is not None:
            _require_device(device)
        source = _NAMES.get(str(model), model)
        revision = {name: kwargs[name] for name in ("revision", "token", "trust_remote_code") if name in kwargs}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **revision)
            net: Any = (
                load_lower_blocks(source, probe.hook_point, dtype=dtype, **kwargs)
                if probe_only and probe is not None
                else AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **kwargs)
            )
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ConfigError(
                f"cannot load the model {str(model)!r}: no such folder or id, not a causal language "
                f"model, or a library it needs is missing ({type(error).__name__})"
            ) from None
        except TypeError:
            given = f": {', '.join(sorted(kwargs))}" if kwargs else ""
            raise ConfigError(f"cannot load the model {str(model)!r}: it does not take these settings{given}") from None
        if device is not None:
            net = net.to(device)
        spec = ModelSpec.derive(tokenizer, variant="reasoning" if variant == "reasoning" else "answer")
        return cls(net.eval(), tokenizer, spec=spec, probe=probe, name=str(model))

    @property
    def _text_config(self) -> Any:
        return self.model.config.get_text_config(decoder=True)

    @property
    def context_tokens(self) -> int | None:
        """Longest context in tokens, where the configuration states one."""
        value = getattr(self._text_config, "max_position_embeddings", None)
        return int(value) if value else None

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a turn: the generation config's, the tokenizer's and the template's end of turn."""
        found: set[int] = set()
        for value in (self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id):
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
        end_of_turn = self.tokenizer.convert_tokens_to_ids(self.spec.end_of_turn.strip())
        if isinstance(end_of_turn, int) and end_of_turn != self.tokenizer.unk_token_id:
            found.add(end_of_turn)
        return frozenset(int(i) for i in found)

    @property
    def dtype(self) -> str:
        """Of the weights, such as ``"bfloat16"``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def revision(self) -> str | None:
        """Commit of the weights on the hub, where they were loaded from there."""
        commit = getattr(self.model.config, "_commit_hash", None)
        return commit if isinstance(commit, str) else None

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What a probe of this model is tied to."""
        return fingerprint(self.model, self.tokenizer)

    @cached_property
    def shortcuts(self) -> Shortcuts:
        """What the passes of checks may leave out on this model; tried once."""
        # They are for streams that the model writes itself.
        return NO_SHORTCUTS if self.probe_only else find_shortcuts(self)

    @cached_property
    def probe_only(self) -> bool:
        """Whether only the blocks up to the probe's layer are loaded."""
        return not is_whole(self.model)

    def require_whole(self) -> None:
        """Refuses what a model that is loaded with ``probe_only`` cannot do.

        Raises:
            ConfigError: It is one.
        """
        if self.probe_only:
            raise ConfigError(WHY_NOT_WHOLE)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt as the model's own template renders it; see `ada_guard.prompt.encode_prompt`."""
        try:
            return encode_prompt(self.tokenizer, self.spec, messages, tools=tools, template_kwargs=template_kwargs)
        except (UnicodeError, TypeError):
            # What tokenizers say to half a character, depending on where it stands.
            raise ConfigError("a message is not valid text: half a character, or a value that is no text") from None

    def require_room(self, tokens: int, *, reserve: int) -> int | None:
        """Tokens that may still be generated behind `tokens`, leaving room for a check; None if unlimited.

        Raises:
            ConfigError: Not even one fits.
        """
        if self.context_tokens is None:
            return None
        room = self.context_tokens - tokens - reserve
        if room < 1:
            raise ConfigError(
                f"the prompt and prefill have {tokens} tokens and a check needs {reserve} more: "
                f"too long for the model's context of {self.context_tokens}"
            )
        return room


def _require_device(device: str) -> None:
    kind = device.split(":")[0]
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    index = device.partition(":")[2] or "0"
    if kind not in counts or not index.isdigit():
        raise ConfigError(f"unknown device {device!r}: use cpu, cuda, cuda:N or mps")
    if int(index) >= counts[kind]:
        raise ConfigError(f"device {device!r} is not available on this machine")
