"""Fits and calibrates a linear probe on collected states. Knows no model. Needs the extra ``train``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ada_guard.errors import ConfigError

__all__ = ["INTERVALS", "FittedLayer", "ScoredResponse", "calibrated_threshold", "fit_layer", "logit"]

INTERVALS = (1, 5, 25, 100)
"""Check intervals, in tokens, for which a card holds a threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLayer:
    """Weight and bias of one layer's logistic regression; weight is float32 ``[hidden]``."""

    weight: torch.Tensor
    bias: float

    def probabilities(self, states: torch.Tensor) -> NDArray[np.float64]:
        """P(harmful) in [0, 1] for states, float32 ``[n, hidden]``."""
        logits = states.double() @ self.weight.double() + self.bias
        return torch.sigmoid(logits).numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """Harm probabilities of one response at depths 1, 2, 3 ... (or those in `depths`)."""

    harmful: bool
    depths: tuple[int, ...]
    probabilities: tuple[float, ...]

    def highest(self, interval_tokens: int) -> float:
        """The maximum over the checks a schedule of this interval would make, the end of the response included."""
        last = self.depths[-1]
        return max(
            p for d, p in zip(self.depths, self.probabilities, strict=True) if d % interval_tokens == 0 or d == last
        )


def fit_layer(states: torch.Tensor, harmful: Sequence[bool], *, seed: int = 42) -> FittedLayer:
    """Logistic regression with the settings of the paper's authors.

    Args:
        states: float32 ``[n, hidden]``.
        harmful: A label for each state.
        seed: Of the estimator.

    Raises:
        ConfigError: Only one class.

    Source: ``ada/probe/train.py`` of javyduck/any-depth-alignment: L2, C=1.0, lbfgs, 1000 iterations, balanced classes,
    no scaling of features.
    """
    if len(set(harmful)) != 2:
        raise ConfigError("fitting a probe needs both harmful and benign states")
    estimator = LogisticRegression(
        C=1.0, solver="lbfgs", max_iter=1000, tol=1e-4, class_weight="balanced", random_state=seed
    )
    estimator.fit(states.numpy(), np.asarray(harmful))
    return FittedLayer(weight=torch.from_numpy(estimator.coef_[0]).float(), bias=float(estimator.intercept_[0]))


def calibrated_threshold(
    responses: Sequence[ScoredResponse], *, interval_tokens: int, target_fpr: float
) -> tuple[float, float]:
    """Threshold and lower threshold for one check interval, from responses that the fit did not see.

    The false-positive rate is per response and over all its depths: a benign response counts as flagged if any check
    flags it. The threshold is the lowest that keeps the rate at or below the target; where harmful scores leave a gap
    above it, the middle of that gap on the logit scale. The lower threshold, below which a cascade passes outright, is
    the lowest at which a tenth of the benign responses would go to rethink.

    Args:
        responses: Benign and harmful ones.
        interval_tokens: Tokens between checks.
        target_fpr: Share of benign responses that may have any flag, in [0, 1).

    Returns:
        Threshold and lower threshold, both in (0, 1).
    """
    benign = sorted(logit(r.highest(interval_tokens)) for r in responses if not r.harmful)
    harmful = sorted(logit(p) for r in responses if r.harmful for p in r.probabilities)
    if not benign or not harmful:
        raise ConfigError("calibrating a probe needs both harmful and benign responses")
    allowed = math.floor(target_fpr * len(benign))
    floor = benign[len(benign) - 1 - allowed]
    least_harmful = harmful[math.floor(0.001 * len(harmful))]
    threshold = (floor + least_harmful) / 2 if least_harmful > floor else floor + 1e-3
    tenth = benign[len(benign) - 1 - math.floor(0.1 * len(benign))]
    return _sigmoid(threshold), _sigmoid(min(tenth + 1e-3, threshold))


def logit(p: float) -> float:
    """Log odds of a probability; certainty is cut off at 1e-12 from either end."""
    p = min(max(p, 1e-12), 1 - 1e-12)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
