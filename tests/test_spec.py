"""Safety Tokens as the chat template gives them; the authors' table is the reference."""

from __future__ import annotations

import subprocess
import sys

import pytest
from model_templates import CHATML, QWEN_2_5, tokenizer, with_template

from ada_guard.errors import ConfigError
from ada_guard.spec import ModelSpec, _exceptions

CHATML_SPANS = ("<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant")
THINK_OFF = "<think>\n\n</think>\n\n"
R1 = "<｜end▁of▁sentence｜><｜Assistant｜><think>\n\n</think>\n\n"
R1_PROBE = "<｜Assistant｜><think>\n\n</think>"
OSS = "<|end|><|start|>assistant<|channel|>final<|message|>"
OSS_SUFFIX = "<|channel|>analysis<|message|>\n\n" + OSS

# family, prompt suffix, rethink, probe, probe token and its index.
# Source: configs/models.yaml of https://github.com/javyduck/any-depth-alignment.
TABLE = [
    ("llama-2", " ", " </s><s>[/INST] ", "[/INST", "INST", 2),
    (
        "llama-3.1",
        "",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant",
        "assistant",
        2,
    ),
    ("ministral", "", "</s>[/INST]", "[/INST]", "[/INST]", 0),
    (
        "gemma-2",
        "",
        "<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>\n<start_of_turn>model",
        "model",
        3,
    ),
    ("qwen2.5", "", *CHATML_SPANS, "assistant", 3),
    ("deepseek-r1", "\n</think>\n\n", R1, R1_PROBE, "</think>", 3),
    ("gpt-oss", OSS_SUFFIX, OSS, OSS, "<|message|>", 5),
]

# Ours: families that the authors did not publish.
DERIVED = [
    ("chatml", "", *CHATML_SPANS, "assistant", 3),
    ("qwen3", THINK_OFF, CHATML_SPANS[0] + THINK_OFF, CHATML_SPANS[1], "assistant", 3),
    ("qwq", "\n</think>\n\n", CHATML_SPANS[0] + THINK_OFF, CHATML_SPANS[1], "assistant", 3),
    ("smollm3", THINK_OFF[:-1], CHATML_SPANS[0] + THINK_OFF[:-1], CHATML_SPANS[1], "assistant", 3),
    ("deepseek-r1-2025-01", THINK_OFF, R1, R1_PROBE, "</think>", 3),
    (
        "deepseek-v3.1",
        "",
        "<｜end▁of▁sentence｜><｜Assistant｜></think>",
        "<｜end▁of▁sentence｜><｜Assistant｜>",
        "<｜Assistant｜>",
        1,
    ),
    ("gemma-3", "", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n<start_of_turn>model", "model", 3),
    ("mistral-v0.3", "", "</s>[/INST]", "[/INST]", "[/INST]", 0),
    ("phi-3", "", "<|end|>\n<|assistant|>\n", "<|end|>\n<|assistant|>", "<|assistant|>", 2),
    ("glm-4", "", "<|assistant|>\n", "<|assistant|>", "<|assistant|>", 0),
    ("plain", "", "\n\n### Assistant:", "\n\n### Assistant", "t", 13),
]

REASONING = [
    ("deepseek-r1", "", "<｜Assistant｜><think>\n"),
    ("deepseek-r1-2025-01", "", "<｜Assistant｜><think>\n"),
    ("gpt-oss", "", "<|end|><|start|>assistant<|channel|>analysis<|message|>"),
    ("qwen3", "", CHATML_SPANS[0] + "<think>\n"),
    ("qwq", "", CHATML_SPANS[0] + "<think>\n"),
    ("deepseek-v3.1", "", "<｜end▁of▁sentence｜><｜Assistant｜><think>"),
    ("llama-3.1", "", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
]


@pytest.mark.parametrize(("family", "suffix", "rethink", "probe", "token", "index"), TABLE + DERIVED)
def test_safety_tokens_of_each_family(
    family: str, suffix: str, rethink: str, probe: str, token: str, index: int
) -> None:
    spec = ModelSpec.derive(tokenizer(family))
    assert (spec.prompt_suffix, spec.rethink.text, spec.probe.text) == (suffix, rethink, probe)
    tokens = tokenizer(family).convert_ids_to_tokens(spec.probe.ids)
    assert (tokens[-1], len(tokens) - 1) == (token, index)
    assert list(spec.rethink.ids) == tokenizer(family).encode(rethink, add_special_tokens=False)


@pytest.mark.parametrize(("family", "suffix", "rethink"), REASONING)
def test_reasoning_has_a_header_of_its_own_where_the_template_thinks(family: str, suffix: str, rethink: str) -> None:
    spec = ModelSpec.derive(tokenizer(family), variant="reasoning")
    assert (spec.variant, spec.prompt_suffix, spec.rethink.text) == ("reasoning", suffix, rethink)


@pytest.mark.parametrize("family", ["llama-3.1", "gemma-2", "qwen2.5", "gpt-oss", "qwen3", "phi-3"])
def test_one_pass_serves_both_checkers_where_the_probe_is_a_prefix(family: str) -> None:
    assert ModelSpec.derive(tokenizer(family)).probe_is_prefix


@pytest.mark.parametrize("family", ["llama-2", "ministral", "deepseek-r1"])
def test_families_whose_probe_leaves_the_end_of_turn_out_need_a_pass_of_their_own(family: str) -> None:
    assert not ModelSpec.derive(tokenizer(family)).probe_is_prefix


@pytest.mark.parametrize("row", TABLE + DERIVED, ids=lambda row: row[0])
def test_the_template_writes_what_the_spec_says(row: tuple[str, ...]) -> None:
    """The prompt of a second question ends the first answer, and begins the next, as the spec does."""
    spec = ModelSpec.derive(tokenizer(row[0]))
    turns = [{"role": r, "content": c} for r, c in (("user", "one"), ("assistant", "two"), ("user", "three"))]
    text = tokenizer(row[0]).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.endswith(spec.generation_prompt)
    assert text.split("two")[1].startswith(spec.end_of_turn)


def test_what_the_template_alone_shows_is_derived_and_exceptions_name_their_entry() -> None:
    sources = {family: ModelSpec.derive(tokenizer(family)).source for family, *_ in TABLE + DERIVED}
    assert {family for family, source in sources.items() if source == "derived"} == {
        "llama-3.1", "gemma-2", "gemma-3", "qwen2.5", "qwen3", "smollm3", "deepseek-v3.1", "chatml", "phi-3", "glm-4",
        "plain",
    }  # fmt: skip
    assert {source for source in sources.values() if source != "derived"} == {entry.name for entry in _exceptions()}


def test_each_exception_has_a_source_and_a_feature_that_tells_it_apart() -> None:
    for entry in _exceptions():
        assert entry.source
        assert entry.when.generation_prompt is not None or entry.when.generation_prompt_ends


def test_a_model_name_changes_nothing() -> None:
    renamed = with_template(QWEN_2_5)
    renamed.name_or_path = "meta-llama/Llama-2-7b-chat-hf"
    assert ModelSpec.derive(renamed).rethink.text == CHATML_SPANS[0]


@pytest.mark.parametrize(
    ("template", "rethink", "probe"),
    [
        pytest.param(
            CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"), *CHATML_SPANS, id="header in any case"
        ),
        pytest.param(
            "{% for m in messages %}{{ '\n\nUser: ' if m.role == 'user' else '\n\nAssistant: ' }}{{ m.content }}"
            "{% endfor %}{{ '\n\nAssistant:' }}",
            "\n\nAssistant:",
            "\n\nAssistant",
            id="plain header in any case",
        ),
        pytest.param(
            CHATML.replace("<|im_end|>\n{% endfor %}", "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"),
            *CHATML_SPANS,
            id="last answer left open",
        ),
        pytest.param(
            CHATML.replace("add_generation_prompt", "add_generation_prompt and messages[-1].role == 'user'"),
            *CHATML_SPANS,
            id="no header behind an answer",
        ),
        pytest.param(
            CHATML.replace(
                "{% for", "{{ raise_exception('no') if messages[-1].role != 'user' }}{% for", 1
            ),
            *CHATML_SPANS,
            id="wants the user last",
        ),
        pytest.param(
            CHATML.replace("{{ m.content }}", "{% for part in m.content %}{{ part['text'] + '' }}{% endfor %}"),
            *CHATML_SPANS,
            id="takes parts only",
        ),
    ],
)  # fmt: skip
def test_unusual_templates(template: str, rethink: str, probe: str) -> None:
    spec = ModelSpec.derive(with_template(template))
    assert (spec.rethink.text, spec.probe.text) == (rethink, probe)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("", id="none"),
        pytest.param("{{ messages[-1].content }}", id="last message only"),
        pytest.param("{% for m in messages %}{{ m.content }}\n{% endfor %}", id="no roles"),
        pytest.param("{{ raise_exception(messages[0].content) }}", id="rejects everything"),
        pytest.param("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", id="twice"),
        pytest.param("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", id="changes content"),
        pytest.param("{% if %}", id="no Jinja"),
        pytest.param(
            "{{ raise_exception('no') if messages[-1].role != 'user' }}{% for m in messages %}"
            "{{ 'USER: ' + m.content if m.role == 'user' else 'ASSISTANT: ' + m.content + eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
            id="end of turn never seen alone",
        ),
    ],
)
def test_a_template_that_cannot_be_analysed_says_what_to_pass(template: str) -> None:
    with pytest.raises(ConfigError, match=r"^.*rethink=.*probe=.*$") as raised:
        ModelSpec.derive(with_template(template))
    assert "\n" not in str(raised.value)
    assert "qzjxv" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_texts_passed_by_hand_win() -> None:
    spec = ModelSpec.derive(tokenizer("chatml"), rethink="<|im_end|>one", probe="two")
    assert (spec.rethink.text, spec.probe.text, spec.source) == ("<|im_end|>one", "two", "given")
    assert list(spec.rethink.ids) == tokenizer("chatml").encode("<|im_end|>one", add_special_tokens=False)
    half = ModelSpec.derive(tokenizer("chatml"), rethink="<|im_end|>one")
    assert (half.rethink.text, half.probe.text) == ("<|im_end|>one", CHATML_SPANS[1])


def test_both_texts_by_hand_need_no_template() -> None:
    spec = ModelSpec.derive(with_template(""), rethink="<|im_end|>A:", probe="<|im_end|>A")
    assert (spec.rethink.text, spec.generation_prompt, spec.end_of_turn) == ("<|im_end|>A:", "", "")
    with pytest.raises(ConfigError, match="probe="):
        ModelSpec.derive(with_template(""), rethink="<|im_end|>A:")


def test_an_empty_text_by_hand_is_rejected() -> None:
    with pytest.raises(ConfigError, match="probe"):
        ModelSpec.derive(tokenizer("chatml"), probe="")


def test_an_unknown_variant_is_rejected() -> None:
    with pytest.raises(ConfigError, match="variant"):
        ModelSpec.derive(tokenizer("chatml"), variant="both")  # type: ignore[arg-type] # what the test is about


def test_no_heavy_import() -> None:
    code = "import sys, ada_guard.prompt; print({'torch', 'transformers', 'jinja2', 'pydantic'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
