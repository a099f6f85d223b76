"""A probe's report card as an evaluation's result, so that it stands in the report. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from ada_guard.errors import ConfigError
from ada_guard.evals.result import Count, EvalResult, Quantity, Series
from ada_guard.probe.artefact import ProbeCard
from ada_guard.probe.report_card import Ranking, ReportCard
from ada_guard.probe.rows import digest_of

__all__ = ["evaluate_card"]

_CONTROLS = {
    "last_token": "same probe on the last generated token",
    "random_tokens": "same probe on random injected tokens",
    "bag_of_words": "bag of words",
    "shuffled_labels": "shuffled labels",
}


def evaluate_card(card: ProbeCard, *, seconds: float = 0.0, command: str = "", notes: Sequence[str] = ()) -> EvalResult:
    """What the card says: ranking, costs per check interval, controls, layer sweep.

    Args:
        card: Of a probe that `ada_guard.probe.fit` made.
        seconds: How long that took, if it was done now.
        command: What shows the card.
        notes: Said before the card's own warnings.

    Raises:
        ConfigError: The probe has no report card.
    """
    report = card.report
    if report is None:
        raise ConfigError("this probe has no report card: fit it with ada-guard probe fit")
    return EvalResult(
        evaluation="probe",
        title="The probe's report card",
        command=command,
        model=card.model,
        settings={
            "layer": card.layer,
            "position": card.position,
            "target_fpr": card.target_fpr,
            "threshold": card.threshold_choice,
            "calibrated_tokens": card.calibrated_tokens,
            "measured_on": report.measured_on,
        },
        seed=report.fitting.seed,
        data={"rows": report.data.rows, "probe": digest_of(card.model_dump(mode="json"))},
        seconds=seconds,
        versions=report.fitting.versions,
        counts=tuple(_counts(report)),
        quantities=tuple(_quantities(report)),
        series=tuple(_series(report)),
        notes=(*notes, *(f"{warning[:1].upper()}{warning[1:]}." for warning in report.warnings)),
    )


def _counts(report: ReportCard) -> list[Count]:
    counts = []
    for flags in report.false_flags:
        where = {"check interval": flags.interval_tokens}
        for what, hits, n in (
            ("flagged benign responses", flags.flagged, flags.benign),
            ("flagged harmful responses", flags.found, flags.harmful),
        ):
            counts.append(Count(what=what, system="probe", where=where, hits=hits, n=n))
    return counts


def _quantities(report: ReportCard) -> list[Quantity]:
    found = _rankings("probe", "single readings", report.readings)
    found += _rankings("probe", "highest of a response", report.responses)
    for control in report.controls:
        if control.collected and control.ranking is not None:
            found += _rankings(_CONTROLS[control.name], "single readings", control.ranking)
    for timing in report.time_to_flag:
        if timing.quartiles_tokens is not None:
            first, median, third = timing.quartiles_tokens
            found.append(
                Quantity(
                    what="depth of the first flag: median and quartiles",
                    system="probe",
                    where={"check interval": timing.interval_tokens},
                    value=median,
                    low=first,
                    high=third,
                    n=timing.harmful - timing.never,
                    unit="tokens",
                )
            )
    return found


def _rankings(system: str, scores: str, ranking: Ranking) -> list[Quantity]:
    n = ranking.harmful + ranking.benign
    figures = (
        ("AUROC", ranking.auroc),
        ("TPR at 1 % FPR", ranking.tpr_at_1),
        ("TPR at 0.1 % FPR", ranking.tpr_at_01),
    )
    return [
        Quantity(what=what, system=system, where={"scores": scores}, value=value, n=n)
        for what, value in figures
        if value is not None
    ]


def _series(report: ReportCard) -> list[Series]:
    layers = sorted(report.layers, key=lambda figures: figures.layer)
    found = [
        _curve(name, "layers", "layer", [float(each.layer) for each in layers], values)
        for name, values in (
            ("AUROC", [each.auroc for each in layers]),
            ("found at the closest interval", [each.found for each in layers]),
        )
    ]
    for name, kept in (
        ("AUROC", {depth: each.auroc for depth, each in report.by_depth.items()}),
        ("TPR at 1 % FPR", {depth: each.tpr_at_1 for depth, each in report.by_depth.items()}),
    ):
        known = {depth: value for depth, value in sorted(kept.items()) if value is not None}
        if known:
            depths = [float(depth) for depth in known]
            found.append(_curve(name, "ranking", "depth [tokens]", depths, list(known.values())))
    return found


def _curve(name: str, figure: str, x_label: str, x: Sequence[float], y: Sequence[float]) -> Series:
    return Series(name=name, figure=figure, x_label=x_label, y_label="share", x=tuple(x), y=tuple(y))
