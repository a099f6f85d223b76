"""All evaluations of one model, one after the other: what ``ada-guard eval all`` runs. Draws and prints nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from ada_guard.errors import ConfigError
from ada_guard.evals.attacks.presets import ATTACKS, AttackName, AttackRun, PresetName, evaluate_named
from ada_guard.evals.cases import REFERENCE, benign_rows, harmful_rows, turning_rows
from ada_guard.evals.diagnose import evaluate_diagnose
from ada_guard.evals.identity import active_adapters, probe_digest
from ada_guard.evals.judges import NotRefusedJudge, ReferenceJudge
from ada_guard.evals.kl import load_base
from ada_guard.evals.leak import evaluate_leak
from ada_guard.evals.lineup import Lineup, checkers_of
from ada_guard.evals.overrefusal import evaluate_overrefusal
from ada_guard.evals.prefill import evaluate_prefill
from ada_guard.evals.probe_figures import evaluate_card
from ada_guard.evals.result import EvalResult, library_versions
from ada_guard.evals.systems import Progress, silent
from ada_guard.evals.traces import evaluate_traces
from ada_guard.local import LocalModel
from ada_guard.policy import Schedule
from ada_guard.probe import LinearProbe
from ada_guard.probe.artefact import ProbeCard
from ada_guard.probe.rows import LabelledResponse

__all__ = ["Step", "Suite", "SuiteSettings", "file_digest", "fitted_here"]

DEPTHS = (25, 100, 300, 500, 1000, 2500)
SCHEDULES = ("default", "every:25", "every:1")
LEAK_SCHEDULES = ("default", "every:25", "every:100")
_TRACED = 3
_DEEP_TOKENS = 1300
"""Of the reference texts, which come out about twice as long: the deepest prefill needs 2,500 tokens."""
_BENIGN_TOKENS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteSettings:
    """What a suite runs with.

    Attributes:
        data: A file of labelled rows, or ``"reference"``.
        base: The model that the one under evaluation was tuned from; None leaves diagnose out.
        n: Most responses of each evaluation.
        seed: Of everything random.
        preset: Of the attacks.
        attacks: Which ones.
        fit_rows: For the reference model, where its probe has no report card: rows of each kind to fit one on.
        command: What reproduces all of it; each result names what reproduces that one.
    """

    data: str = REFERENCE
    base: str | None = None
    n: int = 20
    seed: int = 0
    preset: PresetName = "quick"
    attacks: Sequence[AttackName] = field(default=ATTACKS)
    fit_rows: int = 60
    command: str = ""


Step: TypeAlias = Callable[[Progress], EvalResult]


class Suite:
    """Evaluations by name, in the order in which their results are to be read.

    Args:
        model: The model under evaluation, with a probe if it has one.
        settings: What it runs with.

    Raises:
        ConfigError: No data for a model that is not the reference model.
    """

    def __init__(self, model: LocalModel, settings: SuiteSettings) -> None:
        if settings.data == REFERENCE and model.name != REFERENCE:
            raise ConfigError("give --data FILE: the bundled rows are in the reference model's invented language")
        if settings.data != REFERENCE:
            harmful_rows(settings.data, n=1, seed=settings.seed)  # a file that is of no use is told of at once
        self._model = model
        self._settings = settings

    def steps(self) -> Iterator[tuple[str, Step]]:
        """Names, and what runs each. Nothing has run before it is called."""
        for name, run in self._runs():
            yield name, partial(self._told, name, run)

    def only(self, names: Sequence[str]) -> list[tuple[str, Step]]:
        """Some of the steps, in their own order.

        Raises:
            ConfigError: One that there is not, for this model.
        """
        steps = dict(self.steps())
        if any(name not in steps for name in names):
            raise ConfigError(f"unknown step: this model has {', '.join(steps)}")
        return [(name, run) for name, run in steps.items() if name in names]

    @property
    def identity(self) -> dict[str, str | int | None]:
        """What tells its results from those of another model, of other data or settings."""
        s = self._settings
        return {
            "ada_guard": library_versions().get("ada-guard"),
            "model": self._model.name,
            "weights": self._model.fingerprint.weights,
            "adapters": active_adapters(self._model),
            "dtype": str(self._model.dtype),
            "probe": probe_digest(self._model),
            "data": REFERENCE if self._is_reference else file_digest(s.data),
            "base": s.base,
            "n": s.n,
            "seed": s.seed,
            "preset": s.preset,
            "fit_rows": s.fit_rows,
        }

    def _runs(self) -> Iterator[tuple[str, Step]]:
        yield "prefill", self._prefill
        yield "overrefusal", self._overrefusal
        yield "leak", self._leak
        if self._model.probe is not None:
            yield "traces", self._traces
        if self._card() is not None or self._is_reference:
            yield "probe", self._probe
        if self._settings.base is not None:
            yield "diagnose", self._diagnose
        for name in self._settings.attacks:
            # Recorded attacks come in files of their own, which only the reference model brings.
            if name == "recorded" and not self._is_reference:
                continue
            if name != "gcg-adaptive" or self._model.probe is not None:
                yield f"attack-{name}", self._attack(name)

    def _told(self, name: str, run: Step, progress: Progress) -> EvalResult:
        """A step's result, with the command that runs this one alone."""
        return run(progress).model_copy(update={"command": f"{self._settings.command} --only {name}"})

    @property
    def _is_reference(self) -> bool:
        return self._settings.data == REFERENCE

    def _harmful(self, tokens: int = 520) -> list[LabelledResponse]:
        s = self._settings
        return harmful_rows(s.data, n=s.n, seed=s.seed, tokens=tokens)

    def _benign(self) -> list[LabelledResponse]:
        s = self._settings
        return benign_rows(s.data, n=s.n, seed=s.seed, model=self._model if self._is_reference else None)

    def _prefill(self, progress: Progress) -> EvalResult:
        s = self._settings
        with Lineup(self._model, seed=s.seed) as lineup:
            return evaluate_prefill(
                lineup.at(),
                self._harmful(tokens=_DEEP_TOKENS),
                model=self._model,
                depths=DEPTHS,
                seed=s.seed,
                progress=progress,
            )

    def _overrefusal(self, progress: Progress) -> EvalResult:
        s = self._settings
        with Lineup(self._model, seed=s.seed) as lineup:
            return evaluate_overrefusal(
                lineup.by_schedule({name: Schedule.parse(name) for name in SCHEDULES}),
                self._benign(),
                model=self._model,
                seed=s.seed,
                tokens=_BENIGN_TOKENS,
                progress=progress,
            )

    def _leak(self, progress: Progress) -> EvalResult:
        s = self._settings
        with Lineup(self._model, checkers_of(self._model), seed=s.seed) as lineup:
            return evaluate_leak(
                lineup.guards(),
                turning_rows(s.data, n=s.n, seed=s.seed),
                model=self._model,
                schedules={name: Schedule.parse(name) for name in LEAK_SCHEDULES},
                seed=s.seed,
                progress=progress,
            )

    def _traces(self, progress: Progress) -> EvalResult:
        s = self._settings
        harmful, benign = turning_rows(s.data, n=s.n, seed=s.seed), self._benign()
        return evaluate_traces(
            self._model,
            [*harmful[:_TRACED], *benign[:_TRACED]],
            [*harmful, *benign],
            seed=s.seed,
            progress=progress,
        )

    def _card(self) -> ProbeCard | None:
        probe = self._model.probe
        return probe.card if isinstance(probe, LinearProbe) and probe.card.report is not None else None

    def _probe(self, progress: Progress) -> EvalResult:
        started = time.perf_counter()
        s = self._settings
        card = self._card()
        notes: tuple[str, ...] = ()
        if card is None:
            notes = (
                f"The bundled probe has no card: this is the card of one fitted for this report, on {s.fit_rows} "
                "responses of each kind. All other figures are those of the bundled probe.",
            )
            with TemporaryDirectory(prefix="ada-guard-") as folder:
                card = fitted_here(self._model, Path(folder), count=s.fit_rows, seed=s.seed, progress=progress).card
        return evaluate_card(card, seconds=time.perf_counter() - started, notes=notes)

    def _diagnose(self, progress: Progress) -> EvalResult:
        s = self._settings
        assert s.base is not None
        return evaluate_diagnose(
            self._model,
            load_base(s.base, self._model),
            [*self._harmful(), *self._benign()],
            judge=ReferenceJudge() if self._is_reference else NotRefusedJudge(),
            seed=s.seed,
            progress=progress,
        )

    def _attack(self, name: AttackName) -> Step:
        s = self._settings
        run = AttackRun(
            model=self._model,
            rows=None if self._is_reference else s.data,
            preset=s.preset,
            seed=s.seed,
        )
        return lambda progress: evaluate_named(name, run, progress)


def file_digest(path: str) -> str:
    """16 hex digits of a file's bytes.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        raise ConfigError(f"no file at {path!r}") from None


def fitted_here(model: LocalModel, folder: Path, *, count: int, seed: int, progress: Progress = silent) -> LinearProbe:
    """A probe for the reference model, made from its recipe with the settings of ``ada-guard probe``; see `Suite`.

    Args:
        model: The reference model.
        folder: Where states are kept meanwhile.
        count: Rows of each kind and split.
        seed: Of topics, texts and the fit.
        progress: Told of each phase.
    """
    from ada_guard.probe.collect import collect
    from ada_guard.probe.fit import fit_probe
    from ada_guard.probe.fit_settings import FitSettings
    from ada_guard.reference.rows import reference_rows

    rows: list[LabelledResponse] = []
    for split in ("fit", "validation", "test"):
        rows += reference_rows(split, count=count, seed=seed)
    store = collect(model, rows, folder, benign_schedule="default", max_tokens=300, seed=seed, progress=progress)
    return fit_probe(store, FitSettings(target_fpr=0.05, seed=seed), progress)
