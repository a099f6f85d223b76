"""Tokenizers for tests: one per model family, with its special tokens and a chat template.

The templates are written here, condensed: they render what the models' own render for the messages that the tests use
(system prompts that they put in by themselves are shortened). The vocabularies are toys, but the tokens around a turn
are cut as the models' own tokenizers cut them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA_2 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + (ns.system + m.content) | trim + ' [/INST]' }}"
    "{% set ns.system = '' %}"
    "{% elif m.role == 'assistant' and not loop.first %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('roles must alternate, not ' + m.content) }}{% endif %}{% endfor %}"
)

LLAMA_3_1 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

MINISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)

MISTRAL_V3 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)

GEMMA_2 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('no: ' + m.content) }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

GEMMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

_QWEN_TOOLS = (
    "{% if tools %}<|im_start|>system\n# Tools\n"
    "{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}<|im_end|>\n{% endif %}"
)
_QWEN_CALLS = (
    "{% for call in m.tool_calls %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"
)
_QWEN_RESULT = "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"

QWEN_2_5 = (
    _QWEN_TOOLS + "{% if not tools and messages[0].role != 'system' %}<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}" + _QWEN_RESULT + "{% else %}"
    "{{ '<|im_start|>' + m.role + ('\n' + m.content if m.content else '') }}"
    "{% if m.tool_calls %}" + _QWEN_CALLS + "{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QWEN_3 = (
    _QWEN_TOOLS + "{% for m in messages %}{% set content = m.content if m.content is string else '' %}"
    "{% if m.role == 'assistant' %}{% set reasoning = '' %}"
    "{% if '</think>' in content %}{% set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ reasoning }}\n</think>\n\n{% endif %}{{ content }}"
    "{% if m.tool_calls %}"
    + _QWEN_CALLS.replace("'\n<", "('\n' if content or not loop.first else '') + '<")
    + "{% endif %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}"
    + _QWEN_RESULT
    + "{% else %}<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

QWQ = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")

_DEEPSEEK_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1] %}"
    "<｜Assistant｜>{{ content }}{{ eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
DEEPSEEK_R1 = _DEEPSEEK_TURNS + "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
DEEPSEEK_R1_2025_01 = _DEEPSEEK_TURNS + "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
DEEPSEEK_V3_1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜></think>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role == 'user' %}<｜Assistant｜>"
    "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)

GPT_OSS = (
    "<|start|>system<|message|>You are ChatGPT.\nCurrent date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)

SMOLLM_3 = (
    "{% set thinks = enable_thinking if enable_thinking is defined else true %}"
    "<|im_start|>system\nReasoning Mode: {{ '/think' if thinks else '/no_think' }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not thinks %}<think>\n\n</think>\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not thinks %}<think>\n\n</think>\n{% endif %}{% endif %}"
)

GLM_4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

PLAIN = (
    "{% for m in messages %}### {{ 'Assistant' if m.role == 'assistant' else 'User' }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:{% endif %}"
)

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TOOL_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_THINK = ("<think>", "</think>")
_WORDS = ("assistant", "user", "system", "model", "final", "analysis", "\n\n", "the", "question")


def _byte_level(
    template: str, special: Sequence[str], plain: Sequence[str] = (), **names: str
) -> PreTrainedTokenizerFast:
    """Bytes, a few whole words, special tokens and added tokens that are not special."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        left, *rest = word.replace("\n", "Ċ")
        for right in rest:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocab.setdefault(left, len(vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, template, special, plain, **names)


def _wrapped(
    backend: Tokenizer, template: str, special: Sequence[str], plain: Sequence[str], **names: str
) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template or None, **names)


def _sentence_piece(words: Sequence[str], *, prefixed: bool) -> Tokenizer:
    """Characters, bytes as a fall-back and a few pieces; `prefixed` puts a "▁" before each text, as Llama-2 does."""
    chars = ["▁", "\n", *(chr(c) for c in range(33, 127))]
    vocab = {text: i for i, text in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *chars])}
    merges = []
    for word in words:
        left, *rest = word
        for right in rest:
            merges.append((left, right))
            left += right
            vocab.setdefault(left, len(vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


@cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family; one object for all tests, which leave it as it is."""
    return _build(family)


def _build(family: str) -> PreTrainedTokenizerFast:
    s = {"bos_token": "<s>", "eos_token": "</s>"}
    im = {"eos_token": "<|im_end|>"}
    deepseek = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    deepseek_plain = ("<｜User｜>", "<｜Assistant｜>", *_THINK)
    match family:
        case "chatml":
            return _byte_level(CHATML, _IM, **im)
        case "llama-2":
            return _wrapped(_sentence_piece(["▁[", "INST"], prefixed=True), LLAMA_2, ("<s>", "</s>"), (), **s)
        case "llama-3.1":
            marks = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")
            return _byte_level(LLAMA_3_1, marks, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
        case "ministral":
            return _byte_level(MINISTRAL, ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"), **s)
        case "mistral-v0.3":
            marks = ("<s>", "</s>", "[INST]", "[/INST]")
            return _wrapped(_sentence_piece(["▁the"], prefixed=True), MISTRAL_V3, marks, (), **s)
        case "gemma-2" | "gemma-3":
            template = GEMMA_2 if family == "gemma-2" else GEMMA_3
            plain = ("\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "</table>", "<b>", "</b>", "<unused1>")
            marks = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
            names = {"bos_token": "<bos>", "eos_token": "<eos>"}
            return _wrapped(_sentence_piece(["model", "user"], prefixed=False), template, marks, plain, **names)
        case "qwen2.5":
            return _byte_level(QWEN_2_5, _IM, _TOOL_TAGS, **im)
        case "qwen3":
            return _byte_level(QWEN_3, _IM, (*_TOOL_TAGS, *_THINK), **im)
        case "qwq":
            return _byte_level(QWQ, _IM, _THINK, **im)
        case "deepseek-r1":
            return _byte_level(DEEPSEEK_R1, tuple(deepseek.values()), deepseek_plain, **deepseek)
        case "deepseek-r1-2025-01":
            return _byte_level(DEEPSEEK_R1_2025_01, tuple(deepseek.values()), deepseek_plain, **deepseek)
        case "deepseek-v3.1":
            return _byte_level(DEEPSEEK_V3_1, tuple(deepseek.values()), deepseek_plain, **deepseek)
        case "gpt-oss":
            marks = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")
            return _byte_level(GPT_OSS, marks, eos_token="<|return|>")
        case "phi-3":
            marks = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
            return _byte_level(PHI_3, marks, ("  ", "    ", "2024"), eos_token="<|endoftext|>")
        case "smollm3":
            return _byte_level(SMOLLM_3, _IM, _THINK, **im)
        case "glm-4":
            marks = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>")
            return _byte_level(GLM_4, marks, eos_token="<|endoftext|>")
        case "plain":
            return _byte_level(PLAIN, ("<s>", "</s>"), **s)
        case _:
            raise KeyError(family)


def with_template(template: str) -> PreTrainedTokenizerFast:
    """A ChatML tokenizer with another chat template; empty for none."""
    return _byte_level(template, _IM, _THINK, bos_token="<|endoftext|>", eos_token="<|im_end|>")
