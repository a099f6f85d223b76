"""What an evaluation found, as a file. Knows no model and no plot.

Rates are counts, never bare percentages: a run that is missing is missing, and is never counted as defended.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ada_guard.errors import ConfigError

__all__ = ["Count", "EvalResult", "Quantity", "Series", "library_versions"]

FORMAT = 1
_LIBRARIES = ("ada-guard", "torch", "transformers", "scikit-learn", "numpy")

Where = dict[str, str | int | float]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Count(_Value):
    """How often something happened: a detection, a refusal, a false flag, an attack that succeeded.

    Attributes:
        what: What is counted, as a reader names it: ``"detected"``, ``"any flag on a benign response"``.
        system: Who was put to it: ``"no guard"``, ``"probe"``, ``"rethink (companion)"``.
        where: Under which conditions, such as ``{"depth": 100}``.
        hits: How often it happened.
        n: Of how many trials that were run.
        missing: Trials that were planned and gave no outcome.
    """

    what: str
    system: str
    where: Where = Field(default_factory=dict)
    hits: Annotated[int, Field(ge=0)]
    n: Annotated[int, Field(ge=0)]
    missing: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _no_more_hits_than_trials(self) -> Self:
        if self.hits > self.n:
            raise ValueError("more hits than trials")
        return self

    @property
    def value(self) -> float | None:
        """In [0, 1]; None where no trial was run."""
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval; (0, 1) where no trial was run."""
        from ada_guard.probe.rates import Rate

        return Rate(self.hits, self.n).interval() if self.n else (0.0, 1.0)

    @classmethod
    def of(
        cls, outcomes: Sequence[bool | None], *, what: str, system: str, where: Mapping[str, Any] | None = None
    ) -> Self:
        """The count of outcomes; None is a trial that gave none."""
        seen = [outcome for outcome in outcomes if outcome is not None]
        return cls(
            what=what,
            system=system,
            where=dict(where or {}),
            hits=sum(seen),
            n=len(seen),
            missing=len(outcomes) - len(seen),
        )


class Quantity(_Value):
    """A figure that is no rate of trials: an area under a curve, a mean number of tokens, a threshold.

    Attributes:
        low: Lower end of its 95 % interval, where there is one.
        high: Upper end.
        n: From how many values.
        unit: ``"tokens"``, ``"nats"``, ``"s"``; empty for a plain number.
    """

    what: str
    system: str
    where: Where = Field(default_factory=dict)
    value: float
    low: float | None = None
    high: float | None = None
    n: Annotated[int, Field(ge=0)]
    unit: str = ""


class Series(_Value):
    """A curve: a ROC, a KL profile, the score trace of one stream.

    Attributes:
        name: Of the curve in its figure.
        figure: Which figure it belongs to: ``"kl"``, ``"roc"``, ``"trace"``, ``"layers"``.
        x: One value for each point.
        y: Likewise.
        low: Lower ends of 95 % intervals, or empty.
        high: Upper ends, or empty.
        marks: Named places on the x axis, such as ``{"cut": 50}``.
        levels: Named places on the y axis, such as ``{"threshold": 0.9}``.
    """

    name: str
    figure: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    marks: dict[str, float] = Field(default_factory=dict)
    levels: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if any(len(values) not in (0, len(self.x)) for values in (self.low, self.high)) or len(self.x) != len(self.y):
            raise ValueError("x, y, low and high must have one length")
        return self


class EvalResult(_Value):
    """What one evaluation found, with all it takes to run it again.

    Attributes:
        evaluation: Its name on the command line: ``"prefill"``.
        title: For readers.
        command: What reproduces it.
        model: The model under evaluation.
        settings: Everything that was set, as JSON types. No text of prompts or answers.
        seed: Of everything random.
        data: Name -> digest of what went in: rows, what an attack sent, the model with its adapters and probe.
        seconds: How long it took.
        versions: Of the libraries that took part.
        notes: What a reader must know of the figures.
    """

    format: int = FORMAT
    evaluation: str
    title: str
    command: str
    model: str
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int
    data: dict[str, str] = Field(default_factory=dict)
    seconds: float = Field(ge=0)
    versions: dict[str, str] = Field(default_factory=dict)
    counts: tuple[Count, ...] = ()
    quantities: tuple[Quantity, ...] = ()
    series: tuple[Series, ...] = ()
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Writes it as JSON; the file appears only once it is whole.

        Raises:
            ConfigError: It cannot be written: the reason, and nothing half-written.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise ConfigError(f"cannot write {str(path)!r}: {error.strerror or type(error).__name__}") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a saved result.

        Raises:
            ConfigError: No such file, or not a result.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no result at {str(path)!r}") from None
        except (OSError, UnicodeDecodeError, ValidationError):
            raise ConfigError(f"{str(path)!r} is not a result of this version of ada-guard") from None


def library_versions(*further: str) -> dict[str, str]:
    """Versions of Python and of the libraries that take part in every evaluation."""
    found = {"python": platform.python_version()}
    for name in (*_LIBRARIES, *further):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue  # an extra that this run did without
    return found
