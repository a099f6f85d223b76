"""The linear probe as a file: one safetensors file with weight, bias and card. Knows no model, only its fingerprint."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ada_guard.checking import Calibration
from ada_guard.errors import ConfigError
from ada_guard.local.blocks import HookPoint
from ada_guard.local.fingerprint import Fingerprint

__all__ = ["LinearProbe", "ProbeCard"]

FORMAT = 1

Share = Annotated[float, Field(ge=0, le=1)]


class ProbeCard(BaseModel):
    """What a probe is, where it reads, and what it was calibrated to.

    Attributes:
        model: Name of the model it was fitted on.
        header_ids: Ids of the Safety Tokens; the state of the last one is read.
        layer: 0-based block.
        position: Hook position in the block.
        thresholds: Check interval in tokens -> harm probability in [0, 1].
        low_thresholds: Likewise, the lower threshold of a cascade.
        calibrated_tokens: Length of answer up to which the thresholds hold.
        target_fpr: Share of benign responses that may have any flag.
        fit: Figures of the fit and the calibration: counts, rates, library versions, seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    model: str
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
    target_fpr: Share
    fit: dict[str, Any] = Field(default_factory=dict)

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
        return Calibration(thresholds=self.card.thresholds, low_thresholds=self.card.low_thresholds)

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
        return [_sigmoid(logit + self.bias) for logit in (states.to(self.weight.device) @ self.weight).tolist()]

    def to(self, device: torch.device) -> LinearProbe:
        """The same probe with its weight on a device."""
        return LinearProbe(weight=self.weight.to(device), bias=self.bias, card=self.card)

    def require_fits(
        self, *, layers: int, hidden_size: int, header_ids: tuple[int, ...], fingerprint: Fingerprint
    ) -> None:
        """Refuses a probe of another model.

        Raises:
            ConfigError: Layer, hidden size, Safety Tokens or fingerprint differ; the message says which.
        """
        card = self.card
        problem = None
        if card.hidden_size != hidden_size:
            problem = f"it expects hidden size {card.hidden_size}, the model has {hidden_size}"
        elif card.layer >= layers:
            problem = f"it reads layer {card.layer}, the model has layers 0 to {layers - 1}"
        elif card.header_ids != header_ids:
            problem = "its Safety Tokens have other ids than the model's"
        elif card.fingerprint != fingerprint:
            problem = f"it was fitted on another model ({', '.join(card.fingerprint.differences(fingerprint))} differ)"
        if problem:
            raise ConfigError(f"the probe does not belong to this model: {problem}")

    def save(self, path: str | Path) -> None:
        """Writes the artefact; a file under that name appears only once it is whole."""
        path = Path(path)
        tensors = {"weight": self.weight.float().cpu().contiguous(), "bias": torch.tensor([self.bias])}
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, metadata={"card": self.card.model_dump_json(), "ada_guard": version("ada-guard")})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> LinearProbe:
        """Reads an artefact. Nothing in it is executed.

        Raises:
            ConfigError: No such file, not an artefact, or one of a newer format.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                written = json.loads((file.metadata() or {}).get("card", ""))
                if isinstance(written, dict) and written.get("format", FORMAT) != FORMAT:
                    raise ConfigError(
                        f"the probe has format {written['format']}, this version reads {FORMAT}: upgrade ada-guard"
                    )
                card = ProbeCard.model_validate(written)
                weight, bias = file.get_tensor("weight").float(), float(file.get_tensor("bias"))
        except FileNotFoundError:
            raise ConfigError(f"no probe file at {str(path)!r}") from None
        except (OSError, SafetensorError, ValidationError, json.JSONDecodeError, RuntimeError) as error:
            raise ConfigError(f"{str(path)!r} is not a probe of ada-guard ({type(error).__name__})") from None
        if weight.shape != (card.hidden_size,) or not (weight.isfinite().all() and math.isfinite(bias)):
            raise ConfigError(f"{str(path)!r} is damaged: its weight does not match its card or is not finite")
        return cls(weight=weight, bias=bias, card=card)


def _sigmoid(logit: float) -> float:
    if not math.isfinite(logit):
        return math.nan
    # exp of a large positive number overflows: keep the exponent negative on either side.
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))
