"""Shows a probe's card: facts, figures, controls, warnings. Knows no model; imports rich only when called."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ada_guard.cli.eval_view import table_width
from ada_guard.cli.view import colours, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ada_guard.probe import ProbeCard
    from ada_guard.probe.report_card import Control, Ranking, ReportCard

__all__ = ["show_card"]

_PIPE_WIDTH = 110
_LONGEST_NAME = 18
"""A longer one, as sources of rows may have, is folded."""
_GAP = 2
"""Blanks between columns."""
_CONTROL_NAMES = {
    "last_token": "last token of the response",
    "random_tokens": "random tokens injected",
    "bag_of_words": "bag of words of the text",
    "shuffled_labels": "shuffled labels",
}


def show_card(card: ProbeCard) -> None:
    """Prints a card to stdout, the warnings first."""
    from rich.console import Console

    console = Console(
        file=sys.stdout,
        no_color=not colours(sys.stdout),
        highlight=False,
        markup=False,
        soft_wrap=False,
        width=table_width(piped=_PIPE_WIDTH),
    )
    report = card.report
    if report is not None:
        for warning in report.warnings:
            console.print(f"warning: {printable(warning)}", style="yellow")
    console.print(_facts(card))
    _show(console, _thresholds(card))
    if report is None:
        console.print("no report card: this probe was made by another recipe, or by an older version")
        return
    for table in (
        _rankings(report), _controls(report), _times(report), _layers(report, card.layer), _data(report)
    ):  # fmt: skip
        _show(console, table)


def _show(console: Console, table: Table) -> None:
    """Prints a table under its title: heads break between words only, figures not at all."""
    console.print(table.title, style="bold")
    table.title = None
    texts = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    widths = [max(map(len, each)) for each in texts]
    least = []
    for column, (head, *cells) in zip(table.columns, texts, strict=True):
        names = column.justify == "left"
        unbroken = [*head.split(), *(word for cell in cells for word in (cell.split() if names else [cell]))]
        least.append(min(max(map(len, unbroken), default=0), _LONGEST_NAME))
    # rich takes room from columns alike, whatever their heads are.
    while sum(widths) + _GAP * (len(widths) - 1) > console.width:
        wide = [number for number, width in enumerate(widths) if width > least[number]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _facts(card: ProbeCard) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    aim = "no rate: the authors' threshold of 0.5"
    if card.target_fpr is not None:
        aim = f"at most {card.target_fpr:.3g} of benign responses flagged, up to {card.calibrated_tokens} tokens"
        aim += "" if card.confidence is None else f", with {card.confidence:.0%} confidence"
    rows = {
        "model": card.model + (f" at {card.revision}" if card.revision else ""),
        "adapters": ", ".join(card.fingerprint.adapters) or "none",
        "reads": f"layer {card.layer}, {card.position}, {card.hidden_size} wide, {card.dtype}",
        "Safety Tokens": card.header_text.encode("unicode_escape").decode(),
        "calibrated to": aim,
        "early checks": ", ".join(map(str, card.early_tokens)) or "none besides the interval",
    }
    if card.report is not None:
        made = card.report.fitting
        rows["layer chosen by"] = made.layer_chosen_by
        rows["split by"] = f"{made.split_by}, seed {made.seed}"
        rows["made with"] = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table


def _thresholds(card: ProbeCard) -> Table:
    report = card.report
    if report is None:
        table = _table("\nThresholds", "tokens between checks", "threshold", "rethink from")
        for interval, threshold in sorted(card.thresholds.items()):
            table.add_row(str(interval), f"{threshold:.4f}", f"{card.low_thresholds[interval]:.4f}")
        return table
    table = _table(
        f"\nThresholds, per response at any depth; measured on the {report.measured_on} split",
        "tokens between checks", "threshold", "rethink from", "set on: benign flagged", "true rate below",
        "benign flagged", "harmful found",
    )  # fmt: skip
    for row in report.false_flags:
        table.add_row(
            str(row.interval_tokens),
            f"{row.threshold:.4f}",
            f"{card.low_thresholds[row.interval_tokens]:.4f}",
            f"{row.set_on_flagged} of {row.set_on}",
            f"{row.upper_bound:.2%}",
            f"{row.flagged} of {row.benign}",
            f"{row.found} of {row.harmful}",
        )
    return table


def _rankings(report: ReportCard) -> Table:
    table = _table(
        f"\nRanking, on the {report.measured_on} split (*: fewer than 1,000 benign, so at no false flag)",
        "what", "AUROC", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "harmful", "benign",
    )  # fmt: skip
    table.add_row("responses, any depth", *_ranked(report.responses))
    table.add_row("single readings", *_ranked(report.readings))
    for depth, ranking in sorted(report.by_depth.items()):
        table.add_row(f"  at depth {depth}", *_ranked(ranking))
    return table


def _ranked(ranking: Ranking) -> list[str]:
    few, very_few = "*" * (ranking.benign < 1000), "*" * (ranking.benign < 100)
    return [
        _number(ranking.auroc),
        _number(ranking.tpr_at_1) + very_few,
        _number(ranking.tpr_at_01) + few,
        str(ranking.harmful),
        str(ranking.benign),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _controls(report: ReportCard) -> Table:
    table = _table(
        "\nControls: each should do worse than the probe",
        "control", "AUROC", "TPR at 1 % FPR", "the probe's lead in AUROC", "95 % interval", "verdict",
    )  # fmt: skip
    for control in report.controls:
        ranking = control.ranking
        if ranking is None:
            table.add_row(_CONTROL_NAMES[control.name], "-", "-", "-", "-", "not collected")
            continue
        interval = "-" if control.lead_interval is None else "{:+.4f} to {:+.4f}".format(*control.lead_interval)
        table.add_row(
            _CONTROL_NAMES[control.name],
            _number(ranking.auroc),
            _number(ranking.tpr_at_1),
            "-" if control.lead is None else f"{control.lead:+.4f}",
            interval,
            _verdict(control),
        )
    return table


def _verdict(control: Control) -> str:
    if control.name == "shuffled_labels":
        return "BETTER THAN CHANCE" if control.does_as_well else "at chance"
    return "AS GOOD" if control.does_as_well else "worse"


def _times(report: ReportCard) -> Table:
    table = _table(
        "\nTime to flag, in tokens, of harmful responses that were read",
        "tokens between checks", "25 %", "50 %", "75 %", "50 % after harm starts", "never flagged", "flagged too early",
    )  # fmt: skip
    for row in report.time_to_flag:
        quartiles = ["-"] * 3 if row.quartiles_tokens is None else [f"{depth:.0f}" for depth in row.quartiles_tokens]
        table.add_row(
            str(row.interval_tokens),
            *quartiles,
            "-" if row.after_tokens is None else f"{row.after_tokens[1]:.0f}",
            f"{row.never} of {row.harmful}",
            f"{row.early} of {row.harmful}",
        )
    return table


def _layers(report: ReportCard, chosen: int) -> Table:
    table = _table("\nLayers, on validation readings", "layer", "harmful found", "AUROC", "accuracy at 0.5", "")
    for row in report.layers:
        mark = "chosen" if row.layer == chosen else ""
        table.add_row(str(row.layer), f"{row.found:.4f}", f"{row.auroc:.4f}", f"{row.accuracy:.4f}", mark)
    return table


def _data(report: ReportCard) -> Table:
    data = report.data
    table = _table(
        f"\nData {printable(data.rows)}: read at {printable(data.schedule)}, benign at "
        f"{printable(data.benign_schedule)}, up to {data.max_tokens} tokens; {data.readings} readings fitted on",
        "source", "generator", "label", "split", "responses", "prompts",
    )  # fmt: skip
    for group in data.groups:
        table.add_row(
            printable(group.source),
            printable(group.generator) or "unknown",
            group.label,
            group.split,
            str(group.responses),
            str(group.prompts),
        )
    return table
