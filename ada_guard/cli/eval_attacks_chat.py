"""``ada-guard eval attack pair|tap|autodan``: attacks by a chat model or by breeding. Imports torch when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ada_guard.cli import eval_options as opt
from ada_guard.cli.eval_attacks import AnswerTokens, Prompts, Rows, show_attack
from ada_guard.cli.eval_judges import (
    CHATS,
    KEY,
    JudgeModel,
    JudgeOption,
    JudgeURL,
    KeyEnv,
    chat_at,
    judge_model,
    judge_named,
)
from ada_guard.cli.options import Device, Dtype, Model, Probe, ScheduleText
from ada_guard.cli.progress import progress_bar
from ada_guard.cli.view import note
from ada_guard.policy import Policy, Schedule

if TYPE_CHECKING:
    from ada_guard.evals.attacks.loop import LoopAttack
    from ada_guard.evals.judges import Judge, Scorer
    from ada_guard.local import LocalModel

__all__ = ["autodan", "pair", "tap"]

_SEARCH = "Search"
_FEW_PROMPTS = 5

FewPrompts = Annotated[
    int | None,
    typer.Option(
        "--n", metavar="N", min=1, help=f"Most prompts; default: all rows, {_FEW_PROMPTS} of the reference model's."
    ),
]
AttackerURL = Annotated[
    str,
    typer.Option(
        "--attacker", metavar="URL", help="OpenAI-compatible endpoint, up to and with /v1.", rich_help_panel=CHATS
    ),
]
AttackerModel = Annotated[
    str, typer.Option("--attacker-model", metavar="NAME", help="The attacker's name there.", rich_help_panel=CHATS)
]
Tries = Annotated[
    int,
    typer.Option(
        "--tries",
        metavar="N",
        min=1,
        help="How often the attacker is asked before an attempt is missing.",
        rich_help_panel=CHATS,
    ),
]
Parallel = Annotated[
    int, typer.Option("--parallel", metavar="N", min=1, help="Questions at the same time.", rich_help_panel=CHATS)
]
Streams = Annotated[
    int, typer.Option("--streams", metavar="N", min=1, help="Searches side by side.", rich_help_panel=_SEARCH)
]
Iterations = Annotated[
    int, typer.Option("--iterations", metavar="N", min=1, help="Prompts in each.", rich_help_panel=_SEARCH)
]
Branching = Annotated[
    int, typer.Option("--branching", metavar="N", min=1, help="Prompts from each leaf.", rich_help_panel=_SEARCH)
]
Width = Annotated[int, typer.Option("--width", metavar="N", min=1, help="Leaves that go on.", rich_help_panel=_SEARCH)]
Depth = Annotated[int, typer.Option("--depth", metavar="N", min=1, help="Levels.", rich_help_panel=_SEARCH)]
MostSent = Annotated[
    int | None,
    typer.Option("--most-sent", metavar="N", min=1, help="Prompts sent for one request.", rich_help_panel=_SEARCH),
]
Adaptive = Annotated[
    bool,
    typer.Option(
        "--adaptive", help="Breed against the guard too: the probe's score is in the fitness.", rich_help_panel=_SEARCH
    ),
]
Generations = Annotated[
    int | None, typer.Option("--generations", metavar="N", min=1, help="At most so many.", rich_help_panel=_SEARCH)
]
Preset = Annotated[
    Literal["quick", "full"],
    typer.Option("--preset", help="quick: few and small generations. full: many.", rich_help_panel=_SEARCH),
]


def pair(
    context: typer.Context,
    attacker: AttackerURL,
    attacker_model: AttackerModel,
    judge_url: JudgeURL = None,
    judge_name: JudgeModel = None,
    api_key_env: KeyEnv = KEY,
    tries: Tries = 3,
    streams: Streams = 20,
    iterations: Iterations = 3,
    parallel: Parallel = 1,
    model: Model = "reference",
    probe: Probe = None,
    device: Device = None,
    dtype: Dtype = "auto",
    rows: Rows = None,
    n: FewPrompts = None,
    judge: JudgeOption = "auto",
    schedule: ScheduleText = None,
    max_new_tokens: AnswerTokens = None,
    seed: opt.Seed = 0,
    out: opt.Out = None,
) -> None:
    """A chat model refines prompts by what each target answers: streams times iterations (PAIR)."""
    from ada_guard.evals.attacks.attacker import Attacker
    from ada_guard.evals.attacks.pair import PAIRAttack, PAIRSettings

    opt.require_place(out)
    settings = PAIRSettings(streams=streams, iterations=iterations, parallel=parallel)
    chat = chat_at(attacker, attacker_model, api_key_env, temperature=1.0)
    scoring = judge_model(judge_url, judge_name, api_key_env)
    loaded = opt.loaded_model(model, probe=probe, device=device, dtype=dtype)
    attack = PAIRAttack(Attacker(chat, tries=tries), settings)
    _loop(context, attack, scoring, loaded, judge, rows, n, schedule, max_new_tokens, seed, out)


def tap(
    context: typer.Context,
    attacker: AttackerURL,
    attacker_model: AttackerModel,
    judge_url: JudgeURL = None,
    judge_name: JudgeModel = None,
    api_key_env: KeyEnv = KEY,
    tries: Tries = 3,
    branching: Branching = 4,
    width: Width = 10,
    depth: Depth = 10,
    most_sent: MostSent = None,
    parallel: Parallel = 1,
    model: Model = "reference",
    probe: Probe = None,
    device: Device = None,
    dtype: Dtype = "auto",
    rows: Rows = None,
    n: FewPrompts = None,
    judge: JudgeOption = "auto",
    schedule: ScheduleText = None,
    max_new_tokens: AnswerTokens = None,
    seed: opt.Seed = 0,
    out: opt.Out = None,
) -> None:
    """A tree of such prompts, pruned where they stray and where they score low (TAP)."""
    from ada_guard.evals.attacks.attacker import Attacker
    from ada_guard.evals.attacks.tap import TAPAttack, TAPSettings

    opt.require_place(out)
    settings = TAPSettings(branching=branching, width=width, depth=depth, most_sent=most_sent, parallel=parallel)
    chat = chat_at(attacker, attacker_model, api_key_env, temperature=1.0)
    scoring = judge_model(judge_url, judge_name, api_key_env)
    loaded = opt.loaded_model(model, probe=probe, device=device, dtype=dtype)
    attack = TAPAttack(Attacker(chat, tries=tries), settings)
    _loop(context, attack, scoring, loaded, judge, rows, n, schedule, max_new_tokens, seed, out)


def autodan(
    context: typer.Context,
    adaptive: Adaptive = False,
    generations: Generations = None,
    preset: Preset = "quick",
    model: Model = "reference",
    probe: Probe = None,
    device: Device = None,
    dtype: Dtype = "auto",
    rows: Rows = None,
    n: Prompts = None,
    judge: JudgeOption = "auto",
    schedule: ScheduleText = None,
    max_new_tokens: AnswerTokens = None,
    seed: opt.Seed = 0,
    out: opt.Out = None,
) -> None:
    """A prefix of whole sentences, bred until the model begins the wanted answer (AutoDAN)."""
    policy = _policy(schedule)
    opt.require_place(out)
    loaded = opt.loaded_model(model, probe=probe, device=device, dtype=dtype)
    from dataclasses import replace

    from ada_guard.evals.attacks.attempt import evaluate_attack
    from ada_guard.evals.attacks.autodan import FULL_BREEDING, QUICK_BREEDING, AutoDANAttack
    from ada_guard.evals.attacks.evasion import ProbeEvasion
    from ada_guard.evals.attacks.presets import AttackRun
    from ada_guard.evals.targets import guard_targets

    settings = QUICK_BREEDING if preset == "quick" else FULL_BREEDING
    if generations is not None:
        settings = replace(settings, generations=generations)
    run = AttackRun(model=loaded, rows=rows, prompts=n, preset=preset, seed=seed)
    evasion = ProbeEvasion.of(loaded, policy.schedule) if adaptive else None
    attack = AutoDANAttack(loaded, settings, evasion=evasion)
    with progress_bar() as progress:
        result = evaluate_attack(
            attack,
            run.goals("autodan"),
            guard_targets(loaded, policy),
            judge_named(judge, loaded),
            generation=_generation(max_new_tokens),
            seed=seed,
            model=loaded.name,
            command=opt.command_of(context),
            progress=progress,
        )
    _done(result, out)


def _loop(
    context: typer.Context,
    attack: LoopAttack,
    scoring: Scorer | None,
    model: LocalModel,
    judge: Any,
    rows: Rows,
    n: int | None,
    schedule: str | None,
    max_new_tokens: int | None,
    seed: int,
    out: opt.Out,
) -> None:
    from ada_guard.evals.attacks.goals import goals_for
    from ada_guard.evals.attacks.loop import evaluate_loop
    from ada_guard.evals.judges import JudgeScorer
    from ada_guard.evals.targets import guard_targets

    # A model that grades is believed, unless another judge is asked for by name.
    confirming: Judge | None = None if scoring is None or judge == "auto" else judge_named(judge, model)
    with progress_bar() as progress:
        result = evaluate_loop(
            attack,
            goals_for(model.name, rows, n, seed=seed, of_reference=_FEW_PROMPTS),
            guard_targets(model, _policy(schedule)),
            scoring or JudgeScorer(judge_named(judge, model)),
            judge=confirming,
            generation=_generation(max_new_tokens),
            seed=seed,
            model=model.name,
            command=opt.command_of(context),
            progress=progress,
        )
    _done(result, out)


def _policy(schedule: str | None) -> Policy:
    return Policy(schedule=Schedule() if schedule is None else Schedule.parse(schedule))


def _generation(max_new_tokens: int | None) -> dict[str, Any]:
    return {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}


def _done(result: Any, out: opt.Out) -> None:
    if out is not None:
        result.save(out)
    show_attack(result)
    if out is not None:
        note(f"wrote {out}")
