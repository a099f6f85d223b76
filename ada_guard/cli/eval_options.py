"""The options that the commands of ``ada-guard eval`` share, and what they mean. Imports torch only when called."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ada_guard.cli.loading import busy, is_here, quiet, require_meant
from ada_guard.cli.options import DtypeName
from ada_guard.errors import ConfigError, MissingExtraError
from ada_guard.policy import AutoSchedule, Schedule

if TYPE_CHECKING:
    from ada_guard.local import LocalModel

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="FILE|reference",
        help="JSONL or Parquet file of labelled rows; reference: the invented language of the reference model.",
    ),
]
Number = Annotated[int, typer.Option("--n", metavar="N", min=1, help="Most responses.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of everything random.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.json", help="Save the result, with all it takes to run it again.")
]
Systems = Annotated[
    str | None,
    typer.Option(
        "--systems",
        metavar="A,B,C",
        help="no-guard, rethink, probe, cascade, self-defence; rethink-companion, probe-companion, cascade-companion; "
        "classifier:ID, guard-model:ID or guard-model:ID@FAMILY. Default: all that need no further model.",
    ),
]
CompanionModel = Annotated[
    str | None,
    typer.Option("--companion", metavar="MODEL", help="Who judges as a companion; default: the model itself."),
]
CompanionProbe = Annotated[
    Path | None, typer.Option("--companion-probe", metavar="FILE", help="Probe file of the companion.")
]
HarmfulLabels = Annotated[
    list[str] | None,
    typer.Option("--harmful-label", metavar="LABEL", help="A classifier's label that stands for harm; repeatable."),
]
Schedules = Annotated[
    str,
    typer.Option(
        "--schedules",
        metavar="A,B,C",
        help="When finished answers are checked: default, every:N, 25-then-100.",
    ),
]
Depths = Annotated[str, typer.Option("--depths", metavar="N,N,N", help="Depths of the prefills in tokens.")]


def loaded_model(
    model: str, *, probe: Path | None = None, device: str | None = None, dtype: DtypeName = "auto"
) -> LocalModel:
    """A model and its probe, quietly.

    Raises:
        ConfigError: It cannot be had.
        MissingExtraError: The statistics' libraries are not here.
    """
    require_meant(model)
    with busy("importing torch"):
        quiet()
        try:
            import scipy.stats  # noqa: F401  # better now than after an hour of checks
        except ImportError:
            raise MissingExtraError("an evaluation", "eval") from None
        from ada_guard.assembly import load_model
    if not is_here(model):
        return load_model(model, probe, device=device, dtype=dtype)
    with busy(f"loading {model}"):
        return load_model(model, probe, device=device, dtype=dtype)


def parsed_names(text: str | None) -> tuple[str, ...] | None:
    """A list of names as one option holds it; None as it is."""
    return None if text is None else tuple(filter(None, (name.strip() for name in text.split(","))))


def parsed_depths(text: str) -> tuple[int, ...]:
    """Depths as one option holds them.

    Raises:
        ConfigError: No whole numbers.
    """
    names = parsed_names(text) or ()
    if not names or not all(name.isdecimal() and int(name) >= 1 for name in names):
        raise ConfigError("--depths takes whole numbers of tokens, as 25,100,300")
    return tuple(sorted({int(name) for name in names}))


def parsed_schedules(text: str) -> dict[str, Schedule]:
    """Schedules by name, as one option holds them.

    Raises:
        ConfigError: One that there is not.
    """
    names = parsed_names(text) or ()
    if not names:
        raise ConfigError("--schedules takes names, as default,every:25,every:1")
    schedules = {name: Schedule.parse(name) for name in names}
    if any(isinstance(schedule, AutoSchedule) for schedule in schedules.values()):
        raise ConfigError("--schedules takes depths that hold on every machine: an interval in the place of auto")
    return schedules


def require_place(out: Path | None) -> None:
    """Refuses a place for a result that cannot be one: better now than after an hour of checks.

    Raises:
        ConfigError: It is a folder, or its folder cannot be made or written to.
    """
    if out is None:
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {str(out)!r}: {error.strerror or type(error).__name__}") from None
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(f"cannot write {str(out)!r}: --out takes a file in a folder that can be written to")


_NOT_OF_THE_RESULT = ("out", "resume", "only")
"""Options that change where results go, and which are made, but none of them."""


def command_of(context: typer.Context) -> str:
    """The command line that a result names: what differs from the defaults, whoever called."""
    words = context.command_path.split()[1:]
    for parameter in context.command.params:
        value: Any = context.params.get(str(parameter.name))
        if value is None or value == parameter.default or parameter.name in _NOT_OF_THE_RESULT:
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [parameter.opts[0], str(each)]
    return shlex.join(["ada-guard", *words])
