"""What transformers' ``generate`` prepares for a request, without its loop. Knows no checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["GenerationPlan", "plan_generation", "plan_reading"]


@dataclass(slots=True)
class GenerationPlan:
    """What transformers' ``generate`` prepared for one request, before its loop would have begun."""

    input_ids: torch.Tensor
    logits_processor: Any
    stopping_criteria: Any
    generation_config: Any
    model_kwargs: dict[str, Any]


def plan_generation(model: Any, input_ids: torch.Tensor, **settings: Any) -> GenerationPlan:
    """Lets ``generate`` prepare everything and hands it back instead of running a loop.

    ``custom_generate`` accepts any callable; what it returns is what ``generate`` returns (transformers >= 5.19).

    Args:
        model: A transformers model with ``generate``.
        input_ids: int64 ``[1, tokens]``.
        settings: Keyword arguments of ``generate``.
    """

    def prepared(
        _model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> GenerationPlan:
        return GenerationPlan(input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)

    plan: GenerationPlan = model.generate(input_ids, custom_generate=prepared, **settings)
    return plan


def plan_reading(model: Any, ids: list[int]) -> GenerationPlan:
    """A plan for a context that only reads: no sampling, no length limit of its own.

    Args:
        model: A transformers model with ``generate``.
        ids: The prompt.
    """
    input_ids = torch.tensor([ids], device=model.device)
    # Greedy, with the settings that only sampling reads unset: left in place, transformers warns about each of them.
    unset = dict.fromkeys(("temperature", "top_p", "top_k"))
    return plan_generation(
        model,
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=1,
        do_sample=False,
        use_cache=True,
        **unset,
    )
