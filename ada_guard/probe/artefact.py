"""The linear probe as a file: one safetensors file with weight, bias and card. Knows no model, only its fingerprint."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ada_guard.checking import Calibration
from ada_guard.errors import ConfigError, ProbeWarning
from ada_guard.local.blocks import HookPoint
from ada_guard.local.fingerprint import Fingerprint
from ada_guard.probe.report_card import ReportCard

__all__ = ["LinearProbe", "ProbeCard", "sigmoid"]

FORMAT = 2
_READABLE = (1, 2)
"""Format 1 has no revision, no choice of threshold and no report card."""

Share = Annotated[float, Field(ge=0, le=1)]


class ProbeCard(BaseModel):
    """What a probe is, where it reads, and what it was calibrated to.

    Attributes:
        format: Of the file it comes from.
        model: Name of the model it was fitted on.
        revision: Commit of its weights on the hub, where they came from there.
        fingerprint: What tells its weights, tokenizer and active adapters from others.
        header_ids: Ids of the Safety Tokens; the state of the last one is read.
        layer: 0-based block.
        position: Hook position in the block.
        dtype: The model's while states were collected.
        thresholds: Check interval in tokens -> harm probability in [0, 1].
        low_thresholds: Likewise, the lower threshold of a cascade.
        calibrated_tokens: Length of answer up to which the thresholds hold.
        early_tokens: Depths at which a schedule may check besides; the thresholds hold with them.
        target_fpr: Share of benign responses that may have any flag; None where none was aimed at.
        confidence: With which the true share is at most that; None where it was not bounded.
        threshold_choice: ``"authors"``: 0.5 as in the published probes, for comparison; set to no rate.
        fit: Figures of the fit and the calibration: counts, rates, library versions, seed.
        report: Figures and controls; `ada_guard.probe.fit` makes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    model: str
    revision: str | None = None
    fingerprint: Fingerprint
    header_text: str
    header_ids: tuple[int, ...]
    layer: int = Field(ge=0)
    position: str
    hidden_size: int = Field(gt=0)
    dtype: str
    thresholds: dict[Annotated[int, Field(ge=1)], Share]
    low_thresholds: dict[Annotated[int, Field(ge=1)], Share]
    calibrated_tokens: int = Field(gt=0)
    early_tokens: tuple[Annotated[int, Field(ge=1)], ...] = ()
    target_fpr: Share | None
    confidence: Share | None = None
    threshold_choice: Literal["calibrated", "authors"] = "calibrated"
    fit: dict[str, Any] = Field(default_factory=dict)
    report: ReportCard | None = None

    @model_validator(mode="after")
    def _thresholds_go_together(self) -> Self:
        if not self.thresholds or self.thresholds.keys() != self.low_thresholds.keys():
            raise ValueError("thresholds and low_thresholds must name the same intervals")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProbe:
    """Logistic regression on one hidden state: P(harmful) = sigmoid(weight . h + bias).

    Attributes:
        weight: float32 ``[hidden]``.
        bias: The intercept.
        card: Where it reads and what it was calibrated to.

    Source: Zhang et al. (ICLR 2026), ADA-LP.
    """

    weight: torch.Tensor
    bias: float
    card: ProbeCard

    @property
    def hook_point(self) -> HookPoint:
        """Where the hidden state is read."""
        return HookPoint(layer=self.card.layer, position=self.card.position)

    @property
    def calibration(self) -> Calibration:
        """The thresholds as checkers take them."""
        return Calibration(
            thresholds=self.card.thresholds,
            low_thresholds=self.card.low_thresholds,
            tokens=self.card.calibrated_tokens,
            early_tokens=self.card.early_tokens,
        )

    def harm_probability(self, state: torch.Tensor) -> float:
        """P(harmful) in [0, 1], or NaN if the state or its score is not finite: an overflow must not look like a pass.

        Args:
            state: float32 ``[hidden]``, on the device of `weight`.
        """
        return self.harm_probabilities(state[None])[0]

    def harm_probabilities(self, states: torch.Tensor) -> list[float]:
        """As `harm_probability`, for many states in one transfer from the device.

        Args:
            states: float32 ``[n, hidden]``.
        """
        return [sigmoid(logit + self.bias) for logit in (states.to(self.weight.device) @ self.weight).tolist()]

    def to(self, device: torch.device) -> LinearProbe:
        """The same probe with its weight on a device."""
        return LinearProbe(weight=self.weight.to(device), bias=self.bias, card=self.card)

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
        """Refuses a probe that cannot read this model, and warns where it can but was fitted on something else.

        Args:
            layers: Number of the model's blocks.
            hidden_size: Width of its states.
            header_ids: Its Safety Tokens.
            fingerprint: Of the model.
            dtype: Of its weights, such as ``"bfloat16"``; None if unknown.
            revision: Commit of its weights on the hub; None if unknown.

        Raises:
            ConfigError: Layer, size, Safety Tokens or the shape of the model differ; the message says which.

        Warns:
            ProbeWarning: Weights, tokenizer, active adapters or dtype differ; the message says which.
        """
        card = self.card
        problem = None
        if card.hidden_size != hidden_size:
            problem = f"it expects hidden size {card.hidden_size}, the model has {hidden_size}"
        elif card.layer >= layers:
            problem = f"it reads layer {card.layer}, the model has layers 0 to {layers - 1}"
        elif card.header_ids != header_ids:
            problem = "its Safety Tokens have other ids than the model's"
        elif card.fingerprint.config != fingerprint.config:
            problem = "it was fitted on a model of another shape (architecture, size, layers or vocabulary)"
        if problem:
            raise ConfigError(f"the probe does not belong to this model: {problem}")
        differing = card.fingerprint.differences(fingerprint)
        if differing and card.revision and revision and card.revision != revision:
            differing.append("revision")
        if dtype is not None and card.dtype != dtype:
            differing.append(f"dtype ({card.dtype} then, {dtype} now)")
        if not card.fingerprint.tells_weights(fingerprint):
            warnings.warn(
                "whether the probe was fitted on these weights cannot be told: its card, an older one, says nothing of "
                "the blocks that are loaded; collect and fit again, or load the whole model",
                ProbeWarning,
                stacklevel=3,
            )
        if differing:
            warnings.warn(
                f"the probe was fitted on another model ({', '.join(differing)} differ): what its card says of false "
                "flags and detection need not hold here, collect and fit again",
                ProbeWarning,
                stacklevel=3,
            )

    def save(self, path: str | Path) -> None:
        """Writes the artefact; a file under that name appears only once it is whole and on disk.

        Raises:
            ConfigError: It cannot be written there.
        """
        path = Path(path)
        tensors = {"weight": self.weight.float().cpu().contiguous(), "bias": torch.tensor([self.bias])}
        partial = path.with_name(path.name + ".partial")
        card = self.card.model_copy(update={"format": FORMAT})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"card": card.model_dump_json(), "ada_guard": version("ada-guard")})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            if partial.is_file():
                partial.unlink()
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ConfigError(f"cannot write the probe to {str(path)!r} ({reason})") from None

    @classmethod
    def load(cls, path: str | Path) -> LinearProbe:
        """Reads an artefact. Nothing in it is executed.

        Raises:
            ConfigError: No such file, a folder, not an artefact, or one of a newer format.
        """
        if Path(path).is_dir():
            raise ConfigError(f"{str(path)!r} is a folder: give the .safetensors file")
        try:
            with safe_open(str(path), framework="pt") as file:
                written = json.loads((file.metadata() or {}).get("card", ""))
                if isinstance(written, dict) and written.get("format", FORMAT) not in _READABLE:
                    # The card is a stranger's: only a number of it is repeated.
                    other = written["format"] if type(written["format"]) is int else "unknown"
                    raise ConfigError(f"the probe has format {other}, this version knows {FORMAT}: upgrade ada-guard")
                card = ProbeCard.model_validate(written)
                weight, bias = file.get_tensor("weight").float(), float(file.get_tensor("bias"))
        except FileNotFoundError:
            raise ConfigError(f"no probe file at {str(path)!r}") from None
        except ConfigError:
            raise
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:  # a card may be any JSON, however deep
            raise ConfigError(f"{str(path)!r} is not a probe of ada-guard ({type(error).__name__})") from None
        if weight.shape != (card.hidden_size,) or not (weight.isfinite().all() and math.isfinite(bias)):
            raise ConfigError(f"{str(path)!r} is damaged: its weight does not match its card or is not finite")
        return cls(weight=weight, bias=bias, card=card)


def sigmoid(logit: float) -> float:
    """The probability of log odds; NaN where they are not finite."""
    if not math.isfinite(logit):
        return math.nan
    # exp of a large positive number overflows: keep the exponent negative on either side.
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))
