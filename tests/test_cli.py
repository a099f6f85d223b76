"""The command line: what it prints, exit codes, one-line errors. On the bundled reference model where it matters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from typer.testing import CliRunner, Result

from ada_guard import Policy
from ada_guard.cli import chat as chat_module
from ada_guard.cli import describe, inputs, run
from ada_guard.cli.app import app
from ada_guard.cli.chart import bar_chart, sparkline
from ada_guard.cli.demo import SCENES
from ada_guard.cli.view import hanging, printable
from ada_guard.events import Check
from ada_guard.policy import DEFAULT_REPLACEMENT
from ada_guard.reference import PROBE_FILE
from ada_guard.reference.words import BENIGN as BENIGN_TOPICS
from ada_guard.reference.words import FORBIDDEN
from ada_guard.testing import UNSAFE, ScriptedGuard

PLAIN, ATTACK, TURNING, BENIGN = SCENES
ATTACKED = [
    "run",
    "--prompt",
    ATTACK.prompt,
    "--prefill",
    ATTACK.prefill,
    "--temperature",
    "0",
    "--max-new-tokens",
    "60",
]
HARMLESS = ["run", "--prompt", BENIGN.prompt, "--max-new-tokens", "40"]
SECRET = "zorblewort"
"""Stands for text of a user; no error may show it."""
HARMLESS_WORDS = set(re.findall(r"\w+", BENIGN_TOPICS))
INVENTED = set(re.findall(r"\w+", FORBIDDEN)) - HARMLESS_WORDS
"""Words that stand in forbidden texts only."""


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, list(arguments))


def events(*arguments: str) -> list[dict[str, Any]]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def invented(text: str) -> set[str]:
    return set(re.findall(r"\w+", text)) & INVENTED


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# -- the command itself -------------------------------------------------------------------------------------------


def test_help_loads_no_torch_and_names_the_commands() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ada_guard.cli", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert all(name in out.stdout for name in ("demo", "run", "models", "spec", "--version"))
    imported = {line.rpartition("|")[2].strip() for line in out.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "numpy"}
    assert "Traceback" not in out.stderr


def test_no_command_prints_the_help() -> None:
    result = call()
    assert result.exit_code == 0
    assert "ada-guard demo" in result.stdout


def test_version_names_the_package() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("ada-guard")


@pytest.mark.parametrize(("module", "extra"), [("typer", "cli"), ("rich", "cli"), ("torch", "local")])
def test_a_missing_extra_is_one_line_and_code_1(module: str, extra: str) -> None:
    out = python(
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['ada-guard', 'run', '--prompt', 'x']\n"
        "from ada_guard.cli import main; main()"
    )
    assert out.returncode == 1
    assert out.stdout == ""
    assert out.stderr.count("\n") == 1
    assert f"pip install 'ada-guard[{extra}]'" in out.stderr


def test_a_reader_that_leaves_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ada_guard.cli", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert errors == ""


# -- bad arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--prompt", "x", "--threshold", "1.5"], "threshold must be a number in [0, 1]"),
        (["run", "--prompt", "x", "--check", "rethink", "--threshold", "0.5"], "rethink has none"),
        (["run", "--prompt", "x", "--low", "0.5"], "--low belongs to --check cascade"),
        (["run", "--prompt", "x", "--check", "cascade", "--low", "0.9", "--threshold", "0.5"], "low must not be above"),
        (["run", "--prompt", "x", "--check", "probe", "--model", "elsewhere"], "--check probe needs --probe"),
        (["run", "--prompt", "x", "--interval", "5", "--schedule", "default"], "exclude each other"),
        (["run", "--prompt", "x", "--interval", "0"], "--interval"),
        (["run", "--prompt", "x", "--schedule", "sometimes"], "unknown schedule"),
        (["run", "--prompt", "x", "--release", "window"], "window_tokens"),
        (["run", "--prompt", "x", "--replacement", SECRET, "--own-refusal"], "exclude each other"),
        (["run", "--prompt", "x", "--temperature", "0", "--top-p", "0.5"], "greedy"),
        (["run", "--prompt", "x", "--messages", "m.json"], "exclude each other"),
        (["run", "--prefill", SECRET], "--prefill needs"),
        (["run", "--prompt", " "], "--prompt is empty"),
        (["run", "--prompt", f"\udcff{SECRET}"], "--prompt is not valid UTF-8"),
        (["run", "--prompt", "x", "--prefill", "@nowhere.txt"], "cannot read 'nowhere.txt'"),
        (["run"], "give --prompt or --messages"),
        (["run", "--json"], "give --prompt or --messages"),
        (["run", "--prompt", "how", "do", SECRET], "needs quotes"),
        ([SECRET], "there are demo, run, serve, probe, eval, models and spec"),
        (
            ["probe", SECRET],
            "there are rows, recipes, collect, fit, show, import, push and pull. Help: ada-guard probe",
        ),
        (["run", "--prompt", "x", "--release", "perhaps"], "not one of"),
        (["run", "--prompt", "x", "--device", "abacus"], "unknown device 'abacus'"),
        (["run", "--prompt", "x", "--model", "/no/such/folder"], "cannot load the model '/no/such/folder'"),
        (["spec", "--model", "/no/such/folder"], "cannot load the model '/no/such/folder'"),
        (["run", "--prompt", "x", "--probe", "nothing.safetensors"], "no probe file"),
        (["run", "--prompt", "kite " * 5000], "too long for the model's context"),
        (["run", "--prompt", "x", "--prefill", "kite " * 5000], "too long for the model's context"),
    ],
)
def test_a_bad_argument_is_one_line_and_code_2(arguments: list[str], says: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ada-guard: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert SECRET not in result.stderr


def test_a_probe_of_other_weights_is_said_in_a_line() -> None:
    result = call(
        "run", "--prompt", "x", "--model", "reference-base", "--probe", str(PROBE_FILE), "--max-new-tokens", "4"
    )
    assert result.exit_code == 0
    assert "ada-guard: the probe was fitted on another model (weights differ)" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line_and_code_2() -> None:
    result = call("run", "--prompt", "x", "--device", "cuda")
    assert result.exit_code == 2
    assert result.stderr == "ada-guard: device 'cuda' is not available on this machine\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        (b"\xff\xfe", "is not valid UTF-8 (byte 0)"),
        ("{}", "must hold a JSON list"),
        ("[]", "holds no message"),
        (f'["{SECRET}"]', "message 1 must be an object"),
        (f'[{{"content": "{SECRET}"}}]', "message 1 has no role"),
        (f'[{{"role": "user", "content": "x"}}, {{"role": "user", "{SECRET}": 1}}]', "message 2 has an unknown field"),
        ('[{"role": "user", "content": 7}]', "message 1 has a content of the wrong type"),
        (f'[{{"role": "{SECRET}", "content": "x"}}]', "role"),
        ('[{"role": "user"}]', "content"),
        ('[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]', "alternate"),
        ('[{"role": "assistant", "content": "a"}]', "prefill"),
    ],
)
def test_a_bad_messages_file_is_one_line_and_code_2(tmp_path: Path, content: str | bytes, says: str) -> None:
    result = call("run", "--messages", write(tmp_path / "m.json", content))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert SECRET not in result.stderr


def test_a_model_without_chat_template_is_one_line_and_code_2(tmp_path: Path) -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    tiny_models.build("llama").save_pretrained(tmp_path)
    result = call("run", "--model", str(tmp_path), "--prompt", "x")
    assert result.exit_code == 2
    assert "chat template" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unexpected_error_shows_its_class_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(run, "load_guard", broken)
    result = call(*HARMLESS)
    assert result.exit_code == 1
    assert "unexpected RuntimeError" in result.stderr
    assert SECRET not in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_interrupt_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_guard", interrupted)
    assert call(*HARMLESS).exit_code == 130


def test_an_interrupt_before_any_command_runs_is_code_130_without_a_traceback() -> None:
    out = python(
        "import sys, typer.main\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        "typer.main.get_command = interrupted\n"
        "from ada_guard.cli import main; main()"
    )
    assert (out.returncode, out.stdout, out.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["rich", "typer", "ada_guard.cli.app", "ada_guard.cli.options"])
def test_an_interrupt_while_modules_are_imported_is_code_130_without_a_traceback(module: str) -> None:
    out = python(
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from ada_guard.cli import main; main()"
    )
    assert (out.returncode, out.stdout, out.stderr) == (130, "", "")


# -- run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["probe", "rethink", "cascade"])
def test_an_attack_is_cut_before_its_first_token(check: str) -> None:
    first, halt, replace, done = events(*ATTACKED, "--check", check)
    assert (first["event"], first["decision"]) == ("check", "flag")
    assert first["checker"] in {check, "rethink"}
    depth = first["depth"]
    assert halt == {"event": "halt", "choice": 0, "depth": depth, "reason": "flag", "released_depth": depth}
    assert replace == {"event": "replace", "choice": 0, "text": DEFAULT_REPLACEMENT}
    assert done["finish_reason"] == "content_filter"
    assert (done["token_ids"], done["released_tokens"], done["unchecked_released_tokens"]) == ([], 0, 0)


def test_without_the_guard_the_same_attack_succeeds() -> None:
    *_, done = shown = events(*ATTACKED, "--no-guard")
    text = "".join(event.get("text", "") for event in shown)
    assert invented(text)
    assert {event["event"] for event in shown} == {"release", "done"}
    assert (done["checks"], done["unchecked_released_tokens"]) == (0, done["generated_tokens"])


@pytest.mark.parametrize("sampling", [["--temperature", "0"], ["--temperature", "0.8", "--seed", "3"]])
@pytest.mark.parametrize("interval", ["1", "25"])
def test_a_harmless_answer_has_the_tokens_of_the_unguarded_one(sampling: list[str], interval: str) -> None:
    guarded = events(*HARMLESS, *sampling, "--interval", interval)
    control = events(*HARMLESS, *sampling, "--no-guard")
    assert guarded[-1]["token_ids"] == control[-1]["token_ids"]
    assert guarded[-1]["finish_reason"] == control[-1]["finish_reason"]
    texts = ["".join(e["text"] for e in some if e["event"] == "release") for some in (guarded, control)]
    assert texts[0] == texts[1]
    assert {e["decision"] for e in guarded if e["event"] == "check"} == {"pass"}


def test_text_output_sets_the_cut_off_and_sums_up_on_stderr() -> None:
    result = call(*ATTACKED)
    assert result.exit_code == 0
    cut, replacement = result.stdout.splitlines()
    assert cut.startswith("--- cut at depth ")
    assert replacement == DEFAULT_REPLACEMENT
    assert result.stderr.startswith(
        "ada-guard: cut (harmful) · 0 tokens generated, 0 shown, 0 of them unchecked · 1 check "
    )
    assert result.stderr.count("\n") == 1


def test_text_output_of_a_harmless_answer_is_the_answer() -> None:
    result = call(*HARMLESS, "--temperature", "0")
    assert "paper boat" in result.stdout
    assert "--- cut" not in result.stdout
    assert "passed · 40 tokens generated, 40 shown" in result.stderr


def test_raise_is_one_line_with_depth_and_checker_and_code_1() -> None:
    result = call(*ATTACKED, "--on-flag", "raise", "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()] == ["check", "halt", "done"]
    assert result.stderr.startswith("ada-guard: content flagged by probe at depth ")
    assert result.stderr.count("\n") == 1


def test_replacement_prefill_file_and_messages_file_are_taken(tmp_path: Path) -> None:
    prefill = write(tmp_path / "prefill.txt", ATTACK.prefill)
    shown = events("run", "--prompt", ATTACK.prompt, "--prefill", f"@{prefill}", "--replacement", "No.")
    assert [event["text"] for event in shown if event["event"] == "replace"] == ["No."]
    messages = write(tmp_path / "messages.json", json.dumps(ATTACK.messages))
    again = events("run", "--messages", messages, "--check", "rethink", "--own-refusal")
    replaced = [event["text"] for event in again if event["event"] == "replace"]
    assert len(replaced) == 1
    assert replaced[0].startswith("I'm")


def test_audit_shows_everything_and_reports_the_flag() -> None:
    result = call(*ATTACKED, "--release", "audit")
    assert invented(result.stdout)
    assert "ada-guard: flagged, not cut" in result.stderr


def test_a_model_without_probe_is_checked_by_rethink_and_says_so() -> None:
    result = call(
        "run", "--model", "reference-base", "--prompt", BENIGN.prompt, "--max-new-tokens", "5", "--temperature", "0"
    )
    assert result.exit_code == 0
    assert "no probe for this model: rethink decides" in result.stderr


def test_top_p_alone_switches_sampling_on() -> None:
    shown = [events(*HARMLESS, "--no-guard", "--top-p", "0.9", "--seed", seed)[-1]["token_ids"] for seed in "12"]
    assert shown[0] != shown[1]


# -- chat ---------------------------------------------------------------------------------------------------------


class Talker(ScriptedGuard):
    """Answers with its script, one text a turn, and remembers what it was asked."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.model.name = "scripted"
        self._answers = list(answers)
        self.asked: list[Any] = []

    def stream(self, messages: Any, **generation: Any) -> Any:
        self.asked.append(list(messages))
        self._answer = self._answers.pop(0)
        if self._answer == "interrupted":
            raise KeyboardInterrupt
        return super().stream(messages, **generation)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def prepared(*lines: str) -> None:
        waiting: Iterator[str] = iter(lines)

        def typed(_: str = "") -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", typed)

    return prepared


def test_a_chat_keeps_only_the_replacement_of_a_cut_answer(
    say: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    guard = Talker("all is fine here", f"one two three four five {UNSAFE} seven", "bye")
    say("first", "", "second", "third")
    chat_module.chat(guard.stream, title="scripted", system="be kind")
    assert guard.asked[-1] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "all is fine here"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": DEFAULT_REPLACEMENT},
        {"role": "user", "content": "third"},
    ]
    out = capsys.readouterr().out
    assert UNSAFE not in out
    assert "--- cut at depth 7 ---" in out


def test_a_chat_without_replacement_leaves_no_empty_turn(say: Callable[..., None]) -> None:
    guard = Talker(f"{UNSAFE}", "fine")
    guard.policy = Policy(on_flag="halt")
    say("first", "second", "/exit", "never asked")
    chat_module.chat(guard.stream, title="scripted", system=None)
    assert guard.asked[-1] == [{"role": "user", "content": "second"}]
    assert len(guard.asked) == 2


def test_an_interrupt_stops_the_answer_not_the_chat(say: Callable[..., None]) -> None:
    guard = Talker("interrupted", "fine", "fresh")
    say("first", "second", "/new", "third")
    chat_module.chat(guard.stream, title="scripted", system=None)
    assert [[message["content"] for message in asked] for asked in guard.asked] == [["first"], ["second"], ["third"]]


# -- demo, models, spec -------------------------------------------------------------------------------------------


def test_demo_shows_the_attack_and_the_cut_as_plain_text() -> None:
    result = call("demo")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    unguarded, guarded = result.stdout.split("[without ada-guard")[1].split("[with ada-guard")
    assert invented(unguarded)
    assert guarded.startswith(": 0 tokens leaked]\n--- cut at depth ")
    assert DEFAULT_REPLACEMENT in guarded
    assert "✖ flagged (the prefill)" in result.stdout
    assert "tokens as without the guard: yes" in result.stdout
    assert "2 of 2 unsafe answers cut and replaced" in result.stdout
    assert "cleared them: 0." in " ".join(result.stdout.split())
    assert "ada-guard run" in result.stdout.partition("Next")[2]
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_demo_json_is_the_same_runs_as_events() -> None:
    result = call("demo", "--json")
    assert result.exit_code == 0
    runs: list[list[dict[str, Any]]] = []
    for line in result.stdout.splitlines():
        event = json.loads(line)
        if event["event"] == "run":
            runs.append([])
        runs[-1].append(event)
    named = {(run[0]["name"], run[0]["mode"]): run for run in runs}
    assert len(named) == len(runs) == 8
    assert all(run[-1]["event"] == "done" for run in runs)
    texts = {key: "".join(e["text"] for e in run if e["event"] == "release") for key, run in named.items()}
    for scene in (ATTACK, TURNING):
        uncut, guarded = (invented(texts[scene.name, mode]) for mode in (scene.modes[0], "guarded"))
        assert uncut
        assert not guarded
        assert named[scene.name, "guarded"][-1]["finish_reason"] == "content_filter"
        assert named[scene.name, "guarded"][-1]["unchecked_released_tokens"] == 0
    assert texts[TURNING.name, "guarded"], "text is released before the answer turns"
    assert texts[PLAIN.name, "guarded"].startswith("I'm")
    assert named[BENIGN.name, "guarded"][-1]["token_ids"] == named[BENIGN.name, "unguarded"][-1]["token_ids"]
    audit = [event["decision"] for event in named[ATTACK.name, "audit"] if event["event"] == "check"]
    assert len(audit) > 3
    assert set(audit) == {"flag"}


def test_models_lists_what_is_bundled_and_what_is_tested() -> None:
    result = call("models")
    assert result.exit_code == 0
    assert "reference-base" in result.stdout
    assert all(family in result.stdout for family in tiny_models.FAMILIES)


def test_the_list_of_tested_architectures_is_that_of_the_tests() -> None:
    assert set(describe.TESTED_SEPARATE) == tiny_models.RECURRENT
    assert set(describe.TESTED_FUSED) == set(tiny_models.FAMILIES) - tiny_models.RECURRENT


def test_spec_shows_the_safety_tokens_with_their_ids() -> None:
    result = call("spec", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["probe"]["text"] == "<|im_end|>\n<|im_start|>assistant"
    assert facts["probe"]["tokens"][-1] == "assistant"
    assert facts["rethink"]["ids"][: len(facts["probe"]["ids"])] == facts["probe"]["ids"]
    assert (facts["check_pass"], facts["layers"], facts["hook_position"]) == ("fused", 5, "input_layernorm")
    assert 0 <= facts["probe_layer"] < 5
    assert "probe layer" in call("spec").stdout


def test_spec_of_a_recurrent_model_needs_no_weights_to_know_its_pass(tmp_path: Path) -> None:
    tiny_models.tokenizer().save_pretrained(tmp_path)
    tiny_models.build("qwen3_5_text").config.save_pretrained(tmp_path)
    facts = json.loads(call("spec", "--json", "--model", str(tmp_path)).stdout)
    assert facts["check_pass"] == "separate"
    assert facts["thresholds"] is None


# -- parts --------------------------------------------------------------------------------------------------------


def check(depth: int, probability: float | None, decision: Any = "pass") -> Check:
    return Check(
        depth=depth,
        decision=decision,
        checker="probe",
        harm_probability=probability,
        threshold=None if probability is None else 0.5,
        reason=None,
        lookahead_tokens=0,
        elapsed_ms=1.0,
    )


def test_the_chart_has_a_row_a_check_a_threshold_line_and_marks_the_flag() -> None:
    heading, low, high, none = (
        str(line) for line in bar_chart([check(5, 0.1), check(2000, 0.9, "flag"), check(2025, None, "unchecked")])
    )
    assert heading.index("┌") == low.index("│") > low.index("█")
    assert low.startswith("    5  0.10 ████")
    assert "✖ flagged" in high
    assert "│" not in high
    assert "? not checked" in none
    assert sparkline([check(5, 0.0), check(6, 1.0), check(7, None)]) == "▁█"


def test_text_for_a_terminal_steers_no_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9b31m\tc\n") == "a\ufffd]0;title\ufffdb\ufffd31m\tc\n"


def test_hanging_text_keeps_its_lines_and_leaves_no_trailing_space() -> None:
    assert hanging("model", "one two\nthree", indent=8, width=14) == "model   one\n        two\n        three"


def test_a_byte_order_mark_is_no_part_of_a_prefill(tmp_path: Path) -> None:
    file = write(tmp_path / "p.txt", b"\xef\xbb\xbfSure")
    talk = inputs.conversation(prompt="x", messages=None, system="s", prefill=f"@{file}")
    assert talk is not None
    assert [message["content"] for message in talk] == ["s", "x", "Sure"]


@pytest.mark.parametrize("command", [("run", "--prompt", "x"), ("eval", "leak"), ("spec",)])
def test_a_misspelt_name_of_a_bundled_model_is_told_without_asking_the_hub(command: tuple[str, ...]) -> None:
    result = call(*command, "--model", "refernce")
    assert result.exit_code == 2
    assert result.stderr == "ada-guard: no model folder or hub id 'refernce': did you mean reference?\n"


def test_a_command_needs_no_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "ada_guard.cli", "run", "--prompt", "x", "--model", "some/model"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert out.returncode == 2
    assert out.stderr.startswith("ada-guard: cannot load the model 'some/model'")
    assert out.stderr.count("\n") == 1
