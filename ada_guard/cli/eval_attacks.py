"""``ada-guard eval attack NAME``: attacks on a model and its guards. Imports torch only when called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ada_guard.cli import eval_options as opt
from ada_guard.cli.eval_judges import KEY, JudgeModel, JudgeOption, JudgeURL, KeyEnv, judge_model, judge_named
from ada_guard.cli.eval_view import cell, print_titled, table_width
from ada_guard.cli.options import Device, Dtype, Model, Probe, ScheduleText
from ada_guard.cli.progress import progress_bar
from ada_guard.cli.view import colours, note, printable
from ada_guard.errors import ConfigError
from ada_guard.policy import Policy, Schedule

if TYPE_CHECKING:
    from ada_guard.evals.attacks.presets import AttackName
    from ada_guard.evals.result import Count, EvalResult

__all__ = ["HELP", "attack", "show_attack"]


attack = typer.Typer(
    name="attack",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Attack a model and its guards: how often is harm shown, per prompt?",
)
HELP = {
    "recorded": "Prompts of other attacks, from a JSONL file: prompt_id, messages, attack, goal.",
    "decoding": "Sampling settings: temperature, top-k and top-p over a grid, the worst case counts.",
    "gcg": "A suffix found along the gradient of the model alone.",
    "gcg-adaptive": "A suffix as gcg finds, with the probe's score in the loss: it elicits and evades.",
    "gcg-rethink": "A suffix as gcg finds, with the start of rethink's lookahead in the loss: no refusal is to begin.",
    "autodan": "A prefix of whole sentences, bred until the model begins the wanted answer.",
    "style": "Styles that leave a refusal no room: JSON only, always Sure first, another language.",
    "forged": "Forged headers and control tokens in the user's text and in prefills.",
    "obfuscation": "Requests in base64, rot13, leetspeak, spaced letters, reversed words, another language.",
    "obfuscated-answers": "Harmful and benign answers in these encodings: what is detected, what is flagged.",
    "long-context": "The request behind thousands of tokens of harmless talk.",
}
"""Each attack's command and what it says of itself; the names are those of `ada_guard.evals.attacks`."""

Rows = Annotated[
    Path | None,
    typer.Option(
        "--rows",
        metavar="FILE",
        help="JSONL or Parquet file of labelled responses: its harmful rows are asked for. Default with the reference "
        "model: its own.",
    ),
]
RecordedFile = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Of attack recorded: the JSONL file of prompts.")
]
Prompts = Annotated[
    int | None, typer.Option("--n", metavar="N", min=1, help="Most prompts; default: as the preset has it.")
]
Preset = Annotated[
    Literal["quick", "full"],
    typer.Option("--preset", help="quick: few prompts, small settings. full: all prompts, the settings of the papers."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        min=1,
        help="Of attacks gcg, gcg-adaptive and gcg-rethink: steps of the search; default: as the preset has it.",
    ),
]
Adaptive = Annotated[
    Literal["probe", "rethink"] | None,
    typer.Option(
        "--adaptive",
        help="Of attack gcg: this checker's answers are in the loss; the same as gcg-adaptive (probe) and gcg-rethink.",
    ),
]
_ADAPTIVE: dict[str, AttackName] = {"probe": "gcg-adaptive", "rethink": "gcg-rethink"}
AnswerTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", metavar="N", min=1, help="Of each answer; default 48.")
]


def _run(
    context: typer.Context,
    model: Model = "reference",
    probe: Probe = None,
    device: Device = None,
    dtype: Dtype = "auto",
    rows: Rows = None,
    file: RecordedFile = None,
    n: Prompts = None,
    preset: Preset = "quick",
    steps: Steps = None,
    adaptive: Adaptive = None,
    judge: JudgeOption = "auto",
    judge_url: JudgeURL = None,
    judge_name: JudgeModel = None,
    api_key_env: KeyEnv = KEY,
    schedule: ScheduleText = None,
    max_new_tokens: AnswerTokens = None,
    seed: opt.Seed = 0,
    out: opt.Out = None,
) -> None:
    name = cast("AttackName", context.info_name)
    if file is not None and name != "recorded":
        raise ConfigError("--file belongs to attack recorded: give --rows")
    if rows is not None and name == "recorded":
        raise ConfigError("attack recorded takes --file, not --rows")
    if steps is not None and not name.startswith("gcg"):
        raise ConfigError("--steps belongs to the attacks that search a suffix: gcg, gcg-adaptive and gcg-rethink")
    if adaptive is not None:
        if name != "gcg":
            raise ConfigError("--adaptive belongs to attack gcg")
        name = _ADAPTIVE[adaptive]
    asked = judge_model(judge_url, judge_name, api_key_env)
    if asked is not None and judge != "auto":
        raise ConfigError("--judge and --judge-url exclude each other")
    policy = Policy(schedule=Schedule() if schedule is None else Schedule.parse(schedule))
    opt.require_place(out)
    loaded = opt.loaded_model(model, probe=probe, device=device, dtype=dtype)
    from ada_guard.evals.attacks.presets import AttackRun, evaluate_named

    run = AttackRun(
        model=loaded,
        rows=rows,
        recorded=file,
        prompts=n,
        preset=preset,
        policy=policy,
        judge=asked or judge_named(judge, loaded),
        generation={} if max_new_tokens is None else {"max_new_tokens": max_new_tokens},
        seed=seed,
        command=opt.command_of(context),
        steps=steps,
    )
    with progress_bar() as progress:
        result = evaluate_named(name, run, progress)
    if out is not None:
        result.save(out)
    show_attack(result)
    if out is not None:
        note(f"wrote {out}")


for _name, _help in HELP.items():
    if _name == "autodan":
        continue  # its command has options of its own: `ada_guard.cli.eval_attacks_chat`
    attack.command(_name, help=_help)(_run)


def show_attack(result: EvalResult) -> None:
    """A line for each figure and variant, a column for each system."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(
        file=sys.stdout,
        no_color=not colours(sys.stdout),
        highlight=False,
        markup=False,
        width=table_width(piped=160),
        soft_wrap=False,
    )
    systems = list(dict.fromkeys(count.system for count in result.counts))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for system in systems:
        table.add_column(printable(system), justify="right", overflow="fold")
    lines: dict[str, dict[str, str]] = {}
    for count in result.counts:
        lines.setdefault(_line(count), {})[count.system] = cell(count)
    for quantity in result.quantities:
        if quantity.system in systems:
            lines.setdefault(f"{quantity.what} (mean)", {})[quantity.system] = f"{quantity.value:.1f}"
    for line, cells in lines.items():
        table.add_row(line, *(cells.get(system, "") for system in systems))
    print_titled(console, result, table)
    for told in result.notes:
        console.print(told, style="dim")
    console.print(f"In brackets: 95 % intervals in per cent. {result.seconds:.0f} s, seed {result.seed}.", style="dim")


def _line(count: Count) -> str:
    variant: dict[str, Any] = {key: value for key, value in count.where.items() if key != "attack"}
    if not variant:
        return count.what
    return f"  {count.what}: {', '.join(f'{key} {printable(str(value))}' for key, value in variant.items())}"
