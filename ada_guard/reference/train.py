"""Tokenizer, model shape and optimisation of the reference model. Knows nothing of what the sequences say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ada_guard.reference.corpus import END, PAD, START, Sequence

__all__ = ["VOCABULARY", "optimise", "save", "train_tokenizer", "untrained_model"]

VOCABULARY = 1024
_TEMPLATE = Path(__file__).parent / "chat_template.jinja"


def train_tokenizer(lines: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer with ids 0, 1, 2 for padding, start and end of a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def untrained_model(seed: int) -> LlamaForCausalLM:
    """1.1 million parameters in 5 blocks of 128, with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def _loss(model: LlamaForCausalLM, batch: list[Sequence]) -> torch.Tensor:
    """Weighted mean of the next-token loss."""
    length = max(len(sequence.ids) for sequence in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    weights = torch.zeros(len(batch), length)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        weights[row, : len(sequence.ids)] = torch.tensor(sequence.weights)
    # Padding stands on the right, where nothing that counts sees it: no attention mask is needed, which is faster.
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    counted = weights[:, 1:] > 0
    logits = model.lm_head(states[:, :-1][counted])
    each = functional.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    kept = weights[:, 1:][counted]
    return (each * kept).sum() / kept.sum()


def optimise(
    model: LlamaForCausalLM,
    batches: Iterator[list[Sequence]],
    *,
    steps: int,
    peak_rate: float,
    report: Callable[[float], None],
) -> None:
    """Train in place with AdamW, a short warm-up and a cosine to a twentieth of the peak learning rate.

    Args:
        model: Changed in place.
        batches: At least `steps` of them.
        steps: Optimiser steps.
        peak_rate: The highest learning rate.
        report: Called with the loss after each step.
    """
    warm_up = min(40, steps // 5 + 1)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    for batch in islice(batches, steps):
        loss = _loss(model, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        report(loss.item())
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer as a folder that `from_pretrained` loads.

    The weights are stored as bfloat16 to halve the file; the config says float32, so that they load as such.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    for parameter in stored.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    stored.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    stored.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    config = LlamaConfig.from_pretrained(folder)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.float32
    config.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=model.config.max_position_embeddings,
    )
    fast.chat_template = _TEMPLATE.read_text(encoding="utf-8").strip()
    fast.save_pretrained(folder)
    # The class name that transformers 4 knows as well, for servers that pin it.
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("backend", None)
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", [START])
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
