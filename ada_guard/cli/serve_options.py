"""The options of ``ada-guard serve``, as typer takes them. Data."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

PackedName: TypeAlias = Literal["auto", "off"]

_SERVE, _BOUNDS = "Server", "Bounds"

ProbeOnly = Annotated[
    bool,
    typer.Option(
        "--probe-only",
        help="Load only the blocks up to the probe's layer: less memory. Rethink and cascade cannot be asked then.",
        rich_help_panel=_SERVE,
    ),
]
Host = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Where to listen. An address that others can reach needs an API key.",
        rich_help_panel=_SERVE,
    ),
]
Port = Annotated[
    int,
    typer.Option("--port", metavar="N", min=0, max=65535, help="0 picks a free one.", rich_help_panel=_SERVE),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        "--api-key-env",
        metavar="NAME",
        help="Environment variable with the key that clients must send; default ADA_GUARD_API_KEY, if it is set.",
        rich_help_panel=_SERVE,
    ),
]
AccessLog = Annotated[
    bool,
    typer.Option("--access-log", help="A line for each request on stderr, without text.", rich_help_panel=_SERVE),
]
MaxSessions = Annotated[
    int,
    typer.Option(
        "--max-sessions", metavar="N", min=1, help="Streams that may be open at once.", rich_help_panel=_BOUNDS
    ),
]
KvMib = Annotated[
    int | None,
    typer.Option(
        "--kv-mib",
        metavar="N",
        min=1,
        help="Memory of keys and values in MiB; default: 1024 on a CPU, half of what is free on a GPU.",
        rich_help_panel=_BOUNDS,
    ),
]
MaxBodyMib = Annotated[
    int, typer.Option("--max-body-mib", metavar="N", min=1, help="Longest request in MiB.", rich_help_panel=_BOUNDS)
]
IdleS = Annotated[
    float,
    typer.Option(
        "--idle-s",
        metavar="S",
        min=0.1,
        help="Seconds without a request after which a stream is forgotten.",
        rich_help_panel=_BOUNDS,
    ),
]
CheckTimeoutS = Annotated[
    float,
    typer.Option(
        "--check-timeout-s",
        metavar="S",
        min=0.01,
        help="Seconds that a check may wait and run; then it counts as not made.",
        rich_help_panel=_BOUNDS,
    ),
]
OnLongAnswer = Annotated[
    Literal["error", "slide"],
    typer.Option(
        "--on-long-answer",
        help="When prompt and answer outgrow the model's context: error fails the check; slide checks the newest part, "
        "and says so in the verdict.",
        rich_help_panel=_BOUNDS,
    ),
]
Packed = Annotated[
    PackedName,
    typer.Option(
        "--packed",
        help="auto: rows of many streams share a pass where the model takes it. off: one stream after the other.",
        rich_help_panel=_BOUNDS,
    ),
]
