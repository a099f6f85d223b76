"""What a check's pass may leave out: it must say the same, leave the cache as it was, and be tried on every model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer

from ada_guard.checking import AskLookahead, AskProbe
from ada_guard.local import LocalModel
from ada_guard.local.blocks import HookPoint, decoder_blocks, hook_position
from ada_guard.local.context import LocalContext
from ada_guard.local.few_rows import feeding_few_rows
from ada_guard.local.growing import GrowingLayer, grow_in_place
from ada_guard.local.plan import plan_reading
from ada_guard.local.rollback import CacheSnapshot
from ada_guard.local.shortcuts import NO_SHORTCUTS, Shortcuts

PACKED = sorted(set(tiny_models.FAMILIES) - tiny_models.RECURRENT - {"lfm2"})
BOTH = Shortcuts(few_rows=True, early_rows=True)
LAYER = 1
PROMPT = list(range(10, 40))


@pytest.fixture(scope="module", params=PACKED)
def family(request: pytest.FixtureRequest) -> LocalModel:
    return LocalModel(tiny_models.build(request.param), tiny_models.tokenizer(), name=request.param)


def context(model: LocalModel, shortcuts: Shortcuts, check_pass: Any = "fused") -> LocalContext:
    point = HookPoint(layer=LAYER, position=hook_position(model.model, LAYER))
    plan = plan_reading(model.model, PROMPT)
    return LocalContext(model, plan, check_pass=check_pass, hook_points=[point], shortcuts=shortcuts)


def said(made: LocalContext, asks: frozenset[Any], tokens: int = 3) -> list[torch.Tensor]:
    """What checks at every token and the stream between them say."""
    found = []
    for token in range(50, 50 + tokens):
        made.append([token])
        with made.reinjected(asks) as header:
            found.append(header.hidden_states()[LAYER])
        found.append(made.next_logits()[0])
    return found


@pytest.mark.parametrize("check_pass", ["fused", "separate"])
@pytest.mark.parametrize("asks", [{AskProbe}, {AskProbe, AskLookahead}], ids=["probe", "cascade"])
def test_a_check_with_shortcuts_says_what_one_without_says(family: LocalModel, asks: set[Any], check_pass: Any) -> None:
    stock = said(context(family, NO_SHORTCUTS, check_pass), frozenset(asks))
    short = said(context(family, BOTH, check_pass), frozenset(asks))
    for one, other in zip(stock, short, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


def test_every_family_with_full_or_sliding_attention_takes_both(family: LocalModel) -> None:
    assert family.shortcuts == BOTH


@pytest.mark.parametrize("name", sorted(tiny_models.RECURRENT))
def test_layers_with_recurrent_state_take_none(name: str) -> None:
    assert LocalModel(tiny_models.build(name), tiny_models.tokenizer()).shortcuts == NO_SHORTCUTS


def test_the_header_is_carried_no_further_than_the_probes_layer() -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    made = context(model, BOTH)
    made.next_logits()
    attended: dict[int, list[int]] = {}
    for index, block in enumerate(decoder_blocks(model.model)):
        block.self_attn.q_proj.register_forward_hook(
            lambda _m, args, _o, index=index: attended.setdefault(index, []).append(int(args[0].shape[1]))
        )
    said(made, frozenset({AskProbe}), tokens=1)
    header = len(model.spec.probe.ids)
    assert attended == {0: [1 + header], 1: [1 + header], 2: [1], 3: [1]}


def test_a_separate_probe_pass_ends_at_the_probes_layer() -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    made = context(model, BOTH, "separate")
    made.next_logits()
    blocks = decoder_blocks(model.model)
    calls: list[int] = []
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    with made.reinjected(frozenset({AskProbe})) as header:
        header.hidden_states()
    assert calls == [0]


class Mean(nn.Module):
    """A block's part that mixes all rows of a pass, as no causal model does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = self.inner(state) + state.mean(dim=1, keepdim=True)
        return said


def test_a_model_that_says_something_else_with_a_shortcut_does_not_get_it() -> None:
    net = tiny_models.build("llama")
    net.model.layers[3].mlp = Mean(net.model.layers[3].mlp)
    assert LocalModel(net, tiny_models.tokenizer()).shortcuts == Shortcuts(few_rows=True, early_rows=False)


def test_a_model_whose_blocks_share_keys_keeps_all_rows() -> None:
    net = tiny_models.build("llama")
    net.config.num_kv_shared_layers = 1
    assert LocalModel(net, tiny_models.tokenizer()).shortcuts == Shortcuts(few_rows=True, early_rows=False)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_pass_of_somebody_else_in_another_thread_attends_as_ever(implementation: str) -> None:
    net = tiny_models.build("qwen2")
    net.set_attn_implementation(implementation)
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        expected = net(ids).logits
    found: list[torch.Tensor] = []

    def theirs() -> None:
        with torch.inference_mode():
            found.append(net(ids).logits)

    with feeding_few_rows(net):
        thread = threading.Thread(target=theirs)
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)
    assert net.config._attn_implementation == implementation


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_a_cache_that_grows_in_place_holds_what_one_of_transformers_holds(
    steps: list[tuple[int, int]], seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    stock: Any = DynamicLayer()
    ours: Any = GrowingLayer()
    for added, dropped in steps:
        keys = torch.randn((1, 2, added, 4), generator=random)
        values = torch.randn((1, 2, added, 6), generator=random)
        for one, other in zip(stock.update(keys, values), ours.update(keys, values), strict=True):
            assert torch.equal(one, other)
        dropped = min(dropped, added - 1)
        for layer in (stock, ours):
            layer.crop(-dropped)
        assert torch.equal(stock.keys, ours.keys)
        assert torch.equal(stock.values, ours.values)
        assert stock.get_seq_length() == ours.get_seq_length()


def test_a_cache_goes_back_to_a_snapshot_although_its_room_was_written_and_moved() -> None:
    cache: Any = DynamicCache()
    grow_in_place(cache)
    states = torch.randn(1, 2, 900, 4)
    cache.update(states[:, :, :200], states[:, :, :200], 0)
    before = CacheSnapshot(cache)
    cache.update(states[:, :, 200:], states[:, :, 200:], 0)
    before.restore()
    assert torch.equal(cache.layers[0].keys, states[:, :, :200])
    cache.update(states[:, :, 300:400], states[:, :, 300:400], 0)
    assert torch.equal(cache.layers[0].keys, torch.cat([states[:, :, :200], states[:, :, 300:400]], dim=2))


def test_only_full_attention_layers_grow_in_place() -> None:
    model = LocalModel(tiny_models.build("gpt_oss"), tiny_models.tokenizer())
    made = context(model, BOTH)
    made.next_logits()
    kinds = {type(layer).__name__ for layer in made.cache.layers}
    assert kinds == {"GrowingLayer", "DynamicSlidingWindowLayer"}


def test_room_is_not_copied_for_every_token() -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    made = context(model, BOTH)
    made.next_logits()
    rooms = set()
    for token in range(100):
        made.append([token])
        made.next_logits()
        rooms.add(made.cache.layers[0].rooms[0].data_ptr())
    assert len(rooms) == 1


def test_an_attention_switched_after_the_trial_is_the_one_that_is_used() -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    expected = said(context(model, NO_SHORTCUTS), frozenset({AskProbe}))
    asked: list[str] = []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        asked.append("theirs")
        return AttentionInterface()["sdpa"](*args, **kwargs)

    AttentionInterface.register("theirs", theirs)
    AttentionMaskInterface.register("theirs", AttentionMaskInterface()["sdpa"])
    model.model.set_attn_implementation("theirs")
    for one, other in zip(expected, said(context(model, BOTH), frozenset({AskProbe})), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)
    assert asked


def test_a_model_is_tried_in_its_own_thread_and_not_where_a_context_is_made() -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    made = LocalContext(model, plan_reading(model.model, PROMPT))
    assert "shortcuts" not in vars(model)
    made.next_logits()
    assert vars(model)["shortcuts"] == BOTH


class Fails(nn.Module):
    """A part of a block that fails once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.failed = inner, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.failed:
            self.failed = True
            raise RuntimeError
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_next"])
def test_a_separate_check_that_fails_half_way_leaves_the_context_as_it_was(name: str) -> None:
    model = LocalModel(tiny_models.build(name), tiny_models.tokenizer())
    expected = said(context(model, NO_SHORTCUTS, "separate"), frozenset({AskProbe}))
    made = context(model, NO_SHORTCUTS, "separate")
    made.next_logits()
    made.append([50])
    block = decoder_blocks(model.model)[2]
    block.mlp = Fails(block.mlp)
    with pytest.raises(RuntimeError), made.reinjected(frozenset({AskProbe})):
        pass
    with made.reinjected(frozenset({AskProbe})) as header:
        torch.testing.assert_close(header.hidden_states()[LAYER], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.next_logits()[0], expected[1], atol=1e-4, rtol=1e-4)
