"""The options of the commands, as typer takes them. Data: what they mean is in `ada_guard.cli.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from ada_guard.policy import DEFAULT_REPLACEMENT, OnError, OnFlag, ReleaseMode

CheckName: TypeAlias = Literal["probe", "rethink", "cascade"]
CheckPassName: TypeAlias = Literal["fused", "separate"]
DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

_MODEL, _ENDPOINT, _INPUT, _CHECK = "Model", "Endpoint", "Input", "Checks"
_REACT, _GENERATE = "Reactions", "Generation"

Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="MODEL", help="Hugging Face id, folder, reference or reference-base.", rich_help_panel=_MODEL
    ),
]
Probe = Annotated[
    Path | None,
    typer.Option(
        "--probe",
        metavar="FILE|ORG/NAME",
        help="Probe of this model: a file, or one on the Hugging Face hub. The reference model brings its own.",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps; default cpu.", rich_help_panel=_MODEL),
]
Dtype = Annotated[
    DtypeName,
    typer.Option("--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16.", rich_help_panel=_MODEL),
]

EndpointURL = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Guard an OpenAI-compatible endpoint (up to and with /v1) instead of a model in this process.",
        rich_help_panel=_ENDPOINT,
    ),
]
EndpointModel = Annotated[
    str | None,
    typer.Option("--endpoint-model", metavar="NAME", help="The model's name there.", rich_help_panel=_ENDPOINT),
]
EndpointAPI = Annotated[
    Literal["chat", "completions"],
    typer.Option("--endpoint-api", help="completions takes the prompt raw, without roles.", rich_help_panel=_ENDPOINT),
]
EndpointPrefill = Annotated[
    Literal["continue", "plain", "reject"],
    typer.Option(
        "--endpoint-prefill",
        help="How a prefill is sent. continue: with continue_final_message (vLLM, SGLang, llama-server). "
        "plain: as it is. reject: not at all.",
        rich_help_panel=_ENDPOINT,
    ),
]
ApiKeyEnv = Annotated[
    str,
    typer.Option(
        "--api-key-env",
        metavar="NAME",
        help="Environment variable that holds the endpoint's API key.",
        rich_help_panel=_ENDPOINT,
    ),
]
SidecarModel = Annotated[
    str | None,
    typer.Option(
        "--sidecar-model",
        metavar="MODEL",
        help="Judge with a model loaded here: Hugging Face id, folder or reference.",
        rich_help_panel=_ENDPOINT,
    ),
]
SidecarURL = Annotated[
    str | None,
    typer.Option(
        "--sidecar-url",
        metavar="URL",
        help="Judge with a server: ada-guard serve. Its key is taken from ADA_GUARD_API_KEY.",
        rich_help_panel=_ENDPOINT,
    ),
]
SelfCheck = Annotated[
    bool,
    typer.Option(
        "--self-check",
        help="Let the endpoint's own model judge itself, by rethink; needs --tokenizer.",
        rich_help_panel=_ENDPOINT,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="MODEL",
        help="Hugging Face id or folder of the endpoint's tokenizer, or reference.",
        rich_help_panel=_ENDPOINT,
    ),
]

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="What the user asks. Without one, on a terminal: a chat.",
        rich_help_panel=_INPUT,
    ),
]
MessagesFile = Annotated[
    Path | None,
    typer.Option(
        "--messages",
        metavar="FILE",
        help="JSON file: a list of messages with role and content. An assistant message at the end is a prefill.",
        rich_help_panel=_INPUT,
    ),
]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="System prompt, with --prompt.", rich_help_panel=_INPUT)
]
Prefill = Annotated[
    str | None,
    typer.Option(
        "--prefill",
        metavar="TEXT|@FILE",
        help="Beginning of the answer, put into the model's mouth; checked before the first token and never shown.",
        rich_help_panel=_INPUT,
    ),
]

Check = Annotated[
    CheckName | None,
    typer.Option(
        "--check",
        help="Who decides: the probe (ADA-LP), rethink (ADA-RK), or the probe with rethink for the unclear cases. "
        "Default: the probe where there is one, else rethink.",
        rich_help_panel=_CHECK,
    ),
]
Interval = Annotated[
    int | None,
    typer.Option(
        "--interval", metavar="N", min=1, help="Check every N tokens and nowhere else.", rich_help_panel=_CHECK
    ),
]
ScheduleText = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="WHEN",
        help="default (5, 10, 15, then every 25), every:N, 25-then-100, early depths and interval as 3,8,20/25, or "
        "auto:5%: as often as checks take 5 % of the decode time, measured before the first answer.",
        rich_help_panel=_CHECK,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="X",
        help="Harm probability in 0..1 from which on the probe flags; default: as calibrated.",
        rich_help_panel=_CHECK,
    ),
]
Low = Annotated[
    float | None,
    typer.Option(
        "--low",
        metavar="X",
        help="Harm probability below which a cascade does not ask rethink.",
        rich_help_panel=_CHECK,
    ),
]
Consecutive = Annotated[
    int,
    typer.Option("--consecutive", metavar="N", min=1, help="Flags in a row needed for a cut.", rich_help_panel=_CHECK),
]
CheckPrompt = Annotated[
    bool,
    typer.Option("--check-prompt", help="Check before the first token also without a prefill.", rich_help_panel=_CHECK),
]
CheckPass = Annotated[
    CheckPassName,
    typer.Option(
        "--check-pass",
        help="fused: a check rides in the decode step. separate: slower, bit-identical to an unguarded run.",
        rich_help_panel=_CHECK,
    ),
]

Release = Annotated[
    ReleaseMode,
    typer.Option(
        "--release",
        help="hold: show only what a check passed. window: let at most --window-tokens unchecked tokens through. "
        "audit: show everything, only report.",
        rich_help_panel=_REACT,
    ),
]
WindowTokens = Annotated[
    int, typer.Option("--window-tokens", metavar="N", min=0, help="The bound of window.", rich_help_panel=_REACT)
]
OnFlagOption = Annotated[
    OnFlag,
    typer.Option(
        "--on-flag",
        help="replace: cut and show the replacement. halt: only cut. raise: cut and exit with code 1.",
        rich_help_panel=_REACT,
    ),
]
OnErrorOption = Annotated[
    OnError,
    typer.Option(
        "--on-error",
        help="When a check cannot be made: halt (fail closed), or release the text and record it as unchecked.",
        rich_help_panel=_REACT,
    ),
]
ReplacementText = Annotated[
    str | None,
    typer.Option(
        "--replacement",
        metavar="TEXT",
        help=f"Shown after a cut; default: {DEFAULT_REPLACEMENT}",
        rich_help_panel=_REACT,
    ),
]
OwnRefusalFlag = Annotated[
    bool,
    typer.Option(
        "--own-refusal",
        help="Replace by the model's own refusal, as rethink generated it.",
        rich_help_panel=_REACT,
    ),
]

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        min=1,
        help="Most tokens to generate; default 512, with --endpoint the server's own.",
        rich_help_panel=_GENERATE,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        min=0.0,
        help="0: greedy. Default: the model's own setting.",
        rich_help_panel=_GENERATE,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        min=0.0,
        max=1.0,
        help="Nucleus sampling; switches sampling on.",
        rich_help_panel=_GENERATE,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="K",
        min=1,
        help="Sample from the K likeliest; switches sampling on.",
        rich_help_panel=_GENERATE,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="Text that ends the answer; may be repeated.", rich_help_panel=_GENERATE
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, max=2**63 - 1, help="Of the sampling.", rich_help_panel=_GENERATE),
]

NoGuard = Annotated[
    bool,
    typer.Option("--no-guard", help="Generate without any check, to compare; checks and reactions are ignored."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the events, one JSON object a line.")]
