"""Tiny random models of many architectures, built from their configurations, and a tokenizer for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 300
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WINDOW = 12
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 259,
    "pad_token_id": 260,
    "tie_word_embeddings": False,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA = {"mamba_n_groups": 1, "mamba_d_state": 16, "mamba_d_head": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "ministral3": {"sliding_window": WINDOW},
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW},
    "gemma4_text": {"sliding_window": WINDOW, "vocab_size_per_layer_input": VOCABULARY},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {**_MOE, "num_experts": 4, "decoder_sparse_step": 1},
    "qwen3_next": {**_MOE, **_DELTA, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": _DELTA,
    "deepseek_v2": {**_MLA, **_MOE, "topk_method": "greedy"},
    "deepseek_v3": {**_MLA, **_MOE, "head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "glm4": {},
    "phi3": {},
    "olmo3": {"sliding_window": WINDOW},
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "mamba_n_heads": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "mamba_n_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "cohere2": {"sliding_window": WINDOW},
}
RECURRENT = {"qwen3_next", "qwen3_5_text", "granitemoehybrid", "falcon_h1"}
"""Layers whose state cannot be cropped: checks go in a pass of their own."""


def build(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A random model. Weights are scaled up, so that greedy decoding does not repeat one token."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_SIZES, **FAMILIES[family], **overrides})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    scale = 1.5 if family == "falcon_h1" else 3.0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model.to(dtype)


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["assistant", "user"])
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )


CORPUS = [
    "It's a tiny corpus: words, numbers 1234567, it'll do. I don't know why they've 3.14 apples!\n\n"
    "def find(self, query: str) -> list[int]:\n    return [x for x in self.index.get(query, []) if x > 0]\n",
    "How do I bake bread? Mix flour, water and salt; knead it, let it rise, bake it. The café's naïve menu was read.",
    "你好，世界。今天天气很好，我们去公园散步吧！ こんにちは世界。 नमस्ते दुनिया 🙂 👨\u200d👩\u200d👧",
    "The end.\n\n",
] * 4
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Source: ``pre_tokenizer`` in ``tokenizer.json`` of meta-llama/Llama-3.1-8B-Instruct."""
TRAINED = ("gpt-2", "llama-3", "nfc", "metaspace", "prefixed", "llama-2", "gemma", "bare", "dropping", "nfkc")
"""Kinds of tokenizers: what cuts the text and what changes it before, as in the families of that name."""


@cache
def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, trained on a few lines; one object for all tests, which leave it as it is."""
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    if kind == "dropping":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(
            vocab_size=600, special_tokens=["[UNK]", *special], show_progress=False
        )
    elif kind in ("gpt-2", "llama-3", "nfc"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if kind != "gpt-2":
            whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"), whole])
        if kind == "nfc":
            backend.normalizer = normalizers.NFC()
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=special,
            show_progress=False,
        )
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        alphabet = [chr(code) for code in range(33, 127)]
        scheme = "always" if kind == "prefixed" else "first" if kind in ("metaspace", "nfkc") else "never"
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(prepend_scheme=scheme),
                # As SentencePiece trains: no piece goes from letters to other characters.
                pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁?\p{N}|▁?[^▁\p{L}\p{N}\n]+|\n|▁"), "isolated"),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=800,
            special_tokens=["<unk>", *special, *(f"<0x{b:02X}>" for b in range(256))],
            initial_alphabet=["▁", *alphabet],
            limit_alphabet=len(alphabet) + 1,
            show_progress=False,
        )
    backend.train_from_iterator(CORPUS, trainer)
    spaces = normalizers.Replace(" ", "▁")
    if kind in ("metaspace", "nfkc", "prefixed"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        if kind == "nfkc":
            backend.normalizer = normalizers.NFKC()
    elif kind in ("llama-2", "gemma", "bare"):
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous") if kind == "gemma" else None
        backend.normalizer = {
            "llama-2": normalizers.Sequence([normalizers.Prepend("▁"), spaces]),
            "gemma": spaces,
            "bare": None,
        }[kind]
    if kind in ("metaspace", "nfkc", "prefixed", "llama-2", "gemma", "bare"):
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
