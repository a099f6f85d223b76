"""How others check a stream: the procedure that the authors of Any-Depth Alignment publish, a guard without a cache.

Both are written anew from their descriptions. Neither knows anything of the guard that they are compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import DynamicCache

from ada_guard.local.blocks import decoder_blocks

__all__ = ["PublishedProcedure", "UncachedGuard", "cache_bytes", "greedy"]


class PublishedProcedure:
    """A check as the authors' server makes it: a deep copy of the KV cache, a forward pass over the Safety Tokens, the
    state to the CPU, scikit-learn.

    Args:
        net: The model that generates.
        header: Ids of the Safety Tokens.
        layer: 0-based; the output of this block's input norm is read.
        seed: Of the random states that the classifier is fitted on.

    Source: Zhang et al. (ICLR 2026), ADA-LP, and what ``ada/serving/server.py`` and ``ada/probe/train.py`` of
    github.com/javyduck/any-depth-alignment do, described in words; logistic regression with L2, C = 1, lbfgs.
    """

    def __init__(self, net: Any, header: Sequence[int], *, layer: int, seed: int = 0) -> None:
        self._net = net
        self._header = torch.tensor([list(header)], device=net.device)
        self._norm: Any = decoder_blocks(net)[layer].input_layernorm
        random = np.random.default_rng(seed)
        hidden = int(net.config.get_text_config(decoder=True).hidden_size)
        states = random.standard_normal((64, hidden), dtype=np.float32)
        self._classifier = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced", random_state=seed)
        self._classifier.fit(states, np.arange(len(states)) % 2)

    def check(self, cache: DynamicCache) -> float:
        """P(harmful) in [0, 1] behind what the cache holds; the cache stays as it is."""
        read: list[torch.Tensor] = []
        hook = self._norm.register_forward_hook(lambda _module, _args, output: read.append(output))
        try:
            with torch.inference_mode():
                self._net(input_ids=self._header, past_key_values=copy.deepcopy(cache), use_cache=False)
        finally:
            hook.remove()
        state = read[0][0, -1].float().cpu().numpy()
        return float(self._classifier.predict_proba(state[None])[0, 1])


class UncachedGuard:
    """A guard model that reads the whole text anew at every check, as guards behind an API or a ``generate`` call do.

    Args:
        net: The guard model.
        prompt: Ids in front of the text.
    """

    def __init__(self, net: Any, prompt: Sequence[int] = ()) -> None:
        self._net = net
        self._prompt = list(prompt)

    def check(self, text: Sequence[int]) -> float:
        """P(unsafe) in [0, 1]: of two label tokens, what the first one has of the probability.

        Args:
            text: Ids of the text so far.
        """
        ids = torch.tensor([[*self._prompt, *text]], device=self._net.device)
        with torch.inference_mode():
            logits = self._net(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
            return float(logits[:2].float().softmax(dim=-1)[0])


def greedy(
    net: Any, prompt: Sequence[int], cache: DynamicCache, fed: Callable[[int], object] | None = None
) -> Iterator[int]:
    """A decode loop of one's own, as a server has it that needs its cache for checks.

    Args:
        net: The model.
        prompt: Ids.
        cache: Empty.
        fed: Told the number of generated tokens as soon as the cache holds the last of them.

    Yields:
        A token as soon as it is known, before it is fed.
    """

    def following(ids: Any) -> int:
        with torch.inference_mode():
            ids = torch.tensor([ids], device=net.device)
            logits = net(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())

    token = following(list(prompt))
    for tokens in count(1):
        yield token
        token = following([token])
        if fed is not None:
            fed(tokens)


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of all keys and values in a cache: what a deep copy of it copies."""
    layers: list[Any] = list(cache.layers)
    held = [part for layer in layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in held)
