"""The fused check on every architecture: the stream is untouched and the state read is that of a full re-run."""

from __future__ import annotations

from functools import cache

import pytest
import tiny_models
import torch

from ada_guard.checking import AskLookahead, AskProbe
from ada_guard.local import LocalModel
from ada_guard.local.blocks import BLOCK_INPUT, HookPoint, hook_position, reading
from ada_guard.local.context import LocalContext
from ada_guard.local.plan import plan_generation

LAYER = 2
PROMPT_TOKENS = 20
NEW_TOKENS = 24  # with the prompt well past the sliding window


@cache
def local_model(family: str) -> LocalModel:
    return LocalModel(tiny_models.build(family), tiny_models.tokenizer(), name=family)


@cache
def unguarded(family: str) -> tuple[torch.Tensor, list[int]]:
    torch.manual_seed(1)
    prompt = torch.randint(3, 250, (1, PROMPT_TOKENS))
    net = local_model(family).model
    out = net.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return prompt, out[0, PROMPT_TOKENS:].tolist()


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("check_pass", ["fused", "separate"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_checks_leave_the_stream_untouched_and_read_the_exact_state(
    family: str, check_pass: str, interval: int
) -> None:
    local = local_model(family)
    prompt, expected = unguarded(family)
    assert len(set(expected)) > 2, "a stream that repeats itself would prove nothing"
    point = HookPoint(layer=LAYER, position=hook_position(local.model, LAYER))
    plan = plan_generation(
        local.model,
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
    )
    context = LocalContext(local, plan, check_pass=check_pass, hook_points=[point])  # type: ignore[arg-type]
    header = torch.tensor([local.spec.probe.ids])
    got = []
    for depth in range(1, NEW_TOKENS + 1):
        token = int(context.next_logits().argmax())
        got.append(token)
        context.append([token])
        if depth % interval:
            continue
        asks = {AskProbe, AskLookahead} if depth % 2 else {AskProbe}
        with context.reinjected(frozenset(asks)) as injected:
            state = injected.hidden_states()[LAYER]
            if AskLookahead in asks:
                injected.lookahead(3, lambda _: True)
        with torch.inference_mode(), reading(local.model, [point]) as states:
            local.model(torch.cat([context.ids, header], dim=-1), use_cache=False)
        fresh = states.by_layer[LAYER][0, -1]
        assert float((state - fresh).norm() / fresh.norm()) < 1e-5
    assert got == expected
    assert context.fused is (check_pass == "fused" and family not in tiny_models.RECURRENT)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_lookahead_is_what_a_fresh_run_over_the_header_says(family: str) -> None:
    local = local_model(family)
    prompt, expected = unguarded(family)
    plan = plan_generation(
        local.model,
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
    )
    context = LocalContext(local, plan)
    context.append(expected[:10])
    texts: list[str] = []
    with context.reinjected(frozenset({AskLookahead})) as injected:
        ahead = injected.lookahead(5, lambda text: texts.append(text) is None)
    ids = torch.cat([prompt, torch.tensor([[*expected[:10], *local.spec.rethink.ids]])], dim=-1)
    fresh: list[int] = []
    with torch.inference_mode():
        for _ in range(5):
            token = int(local.model(ids, use_cache=False).logits[0, -1].argmax())
            if token in local.eos_ids:
                break
            fresh.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=-1)
    assert ahead.tokens == len(fresh)
    assert ahead.text == local.tokenizer.decode(fresh, skip_special_tokens=True)


def test_an_architecture_without_a_first_norm_is_read_at_the_blocks_input() -> None:
    assert hook_position(local_model("olmo3").model, 0) == BLOCK_INPUT
    assert hook_position(local_model("lfm2").model, 0) == "operator_norm"
    assert hook_position(local_model("llama").model, 0) == "input_layernorm"
