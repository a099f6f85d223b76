"""A companion of which only the blocks up to the probe's layer are loaded: the same states, and nothing else."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_models
import torch
from probes import fresh_score, probe_for
from served import loopback, served
from test_pool import Asks, check, context_at, ids_of, pool_of

from ada_guard import ConfigError, Guard, Policy, ProbeChecker, RethinkChecker, Schedule
from ada_guard.checking import AskLookahead, AskProbe
from ada_guard.cli.describe import TESTED_PACKED
from ada_guard.errors import ProbeWarning
from ada_guard.local import LocalModel
from ada_guard.local.blocks import BLOCK_INPUT, HookPoint, reading
from ada_guard.local.lower_blocks import keep_lower_blocks
from ada_guard.probe import LinearProbe
from ada_guard.reference import PROBE_FILE
from ada_guard.sidecar.companion import LocalSidecar
from ada_guard.sidecar.pool import Pool

LAYER = 2
USER = [{"role": "user", "content": "How do I bake bread?"}]


def saved(folder: Path, family: str = "llama", **overrides: Any) -> Path:
    tiny_models.build(family, **overrides).save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


def both(folder: Path, family: str = "llama", **overrides: Any) -> tuple[LocalModel, LocalModel]:
    """The whole model and its lower blocks, with the same probe."""
    saved(folder, family, **overrides)
    probe = probe_for(LocalModel.from_pretrained(folder), LAYER)
    return (
        LocalModel.from_pretrained(folder, probe=probe),
        LocalModel.from_pretrained(folder, probe=probe, probe_only=True),
    )


def state_at(model: LocalModel, ids: torch.Tensor, point: HookPoint) -> torch.Tensor:
    with torch.inference_mode(), reading(model.model, [point], stop=True) as states:
        model.model(ids, use_cache=False)
    return states.by_layer[point.layer]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[LocalModel, LocalModel]:
    return both(tmp_path)


@pytest.fixture
def nothing_said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert "UNEXPECTED" not in caplog.text + "".join(capsys.readouterr())


@pytest.mark.parametrize("family", TESTED_PACKED)
def test_states_are_those_of_the_whole_model_to_the_bit(family: str, tmp_path: Path, nothing_said: None) -> None:
    whole, lower = both(tmp_path, family)
    assert whole.probe is not None
    ids = torch.tensor([[(7 * i) % 250 for i in range(40)]])
    point = whole.probe.hook_point
    assert torch.equal(state_at(whole, ids, point), state_at(lower, ids, point))


@pytest.mark.parametrize("family", TESTED_PACKED)
def test_a_pool_of_lower_blocks_scores_as_the_whole_model(family: str, tmp_path: Path) -> None:
    whole, lower = both(tmp_path, family)
    ids = ids_of(random.Random(1), 30)
    scores = []
    for model in (whole, lower):
        with pool_of(model) as pool:
            slot = pool.open(list(ids), frozenset({AskProbe}))
            scores.append(check(pool, slot).harm_probability)
            assert pool.stats().packed
    # Whether the prompt was read before the check or with it is a matter of time, and rounds differently.
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[1] == pytest.approx(fresh_score(whole, ids), abs=1e-4)


def test_weights_above_are_neither_read_nor_kept(tmp_path: Path) -> None:
    whole, lower = both(tmp_path)
    kept = {name for name, _ in lower.model.named_parameters()}
    gone = {name for name, _ in whole.model.named_parameters()} - kept
    assert {name.split(".")[2] for name in gone if "layers" in name} == {"2", "3"}
    assert "lm_head.weight" in gone
    assert f"model.layers.{LAYER}.input_layernorm.weight" in kept
    (tmp_path / "model.safetensors").rename(tmp_path / "whole.safetensors")
    _without(tmp_path / "whole.safetensors", gone, tmp_path / "model.safetensors")
    again = LocalModel.from_pretrained(tmp_path, probe=whole.probe, probe_only=True)
    assert all(torch.equal(again.model.get_parameter(name), lower.model.get_parameter(name)) for name in kept)


def _without(source: Path, names: set[str], target: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({k: v for k, v in load_file(source).items() if k not in names}, target, metadata={"format": "pt"})


def test_a_head_that_is_tied_to_the_embeddings_stays_and_costs_nothing(tmp_path: Path, nothing_said: None) -> None:
    whole, lower = both(tmp_path, tie_word_embeddings=True)
    assert lower.model.lm_head.weight is lower.model.model.embed_tokens.weight
    assert whole.fingerprint.weights_below[: LAYER + 1] == lower.fingerprint.weights_below


@pytest.mark.parametrize("position", [BLOCK_INPUT, "post_attention_layernorm", "self_attn.o_proj"])
def test_other_positions_keep_what_comes_before_them(position: str, tmp_path: Path) -> None:
    whole = LocalModel.from_pretrained(saved(tmp_path))
    lower = LocalModel.from_pretrained(tmp_path)
    point = HookPoint(layer=LAYER, position=position)
    keep_lower_blocks(lower.model, point)
    ids = torch.tensor([[(7 * i) % 250 for i in range(40)]])
    assert torch.equal(state_at(whole, ids, point), state_at(lower, ids, point))


def test_a_probe_fits_the_lower_blocks_of_its_own_model_and_warns_of_other_weights(tmp_path: Path) -> None:
    own = saved(tmp_path / "own")
    probe = probe_for(LocalModel.from_pretrained(own), LAYER)
    LocalModel.from_pretrained(own, probe=probe, probe_only=True)  # warnings are errors
    other = saved(tmp_path / "other", seed=1)
    with pytest.warns(ProbeWarning, match=r"\(weights differ\)"):
        LocalModel.from_pretrained(other, probe=probe, probe_only=True)


def test_what_differs_above_the_probe_only_is_no_other_model(tmp_path: Path) -> None:
    net = tiny_models.build("llama")
    probe = probe_for(LocalModel(net, tiny_models.tokenizer()), LAYER)
    with torch.no_grad():
        net.model.layers[LAYER + 1].mlp.up_proj.weight.neg_()
        net.lm_head.weight.neg_()
    net.save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    LocalModel.from_pretrained(tmp_path, probe=probe, probe_only=True)
    with pytest.warns(ProbeWarning, match=r"\(weights differ\)"):
        LocalModel.from_pretrained(tmp_path, probe=probe)


def test_a_card_that_cannot_tell_the_weights_says_so(tmp_path: Path) -> None:
    probe = probe_for(LocalModel.from_pretrained(saved(tmp_path)), LAYER)
    card = probe.card.model_dump()
    del card["fingerprint"]["weights_below"]
    older = LinearProbe(weight=probe.weight, bias=probe.bias, card=type(probe.card)(**card))
    LocalModel.from_pretrained(tmp_path, probe=older)
    with pytest.warns(ProbeWarning, match="cannot be told"):
        LocalModel.from_pretrained(tmp_path, probe=older, probe_only=True)


def test_a_probe_only_companion_decides_as_the_whole_model(nothing_said: None) -> None:
    policy = Policy(schedule=Schedule.every(5), release="audit")
    text = "Mix the flour with water, knead it, let it rise and bake it for an hour. " * 3
    bundled = LinearProbe.load(PROBE_FILE)
    own = {"fingerprint": LocalModel.from_pretrained("reference").fingerprint}
    probe = LinearProbe(weight=bundled.weight, bias=bundled.bias, card=bundled.card.model_copy(update=own))
    found = []
    for probe_only in (False, True):
        guard = Guard.for_sidecar("reference", probe=probe, probe_only=probe_only, policy=policy)
        found.append(guard.check(USER, text))
        guard.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("checker", [RethinkChecker(), None], ids=["rethink", "cascade"])
def test_a_lookahead_is_refused_before_any_token(checker: Any, pair: tuple[LocalModel, LocalModel]) -> None:
    from ada_guard import CascadeChecker

    guard = Guard(sidecar=pair[1], checker=checker or CascadeChecker(low=0.3, high=0.6))
    with pytest.raises(ConfigError, match="only the blocks up to the probe's layer are loaded"):
        guard.session(USER)
    guard.close()


def test_such_a_model_generates_nothing_and_says_why(pair: tuple[LocalModel, LocalModel]) -> None:
    guard = Guard(pair[1])
    with pytest.raises(ConfigError, match="it can neither generate"):
        list(guard.stream(USER, max_new_tokens=3))
    with pytest.raises(ConfigError, match="it can neither generate"):
        pair[1].model(torch.tensor([[1, 2, 3]]))


def test_probe_only_needs_a_probe_and_a_sidecar_that_is_loaded_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a probe"):
        LocalModel.from_pretrained(saved(tmp_path), probe_only=True)
    with pytest.raises(ConfigError, match="probe_only= belongs to"):
        Guard.for_sidecar("http://127.0.0.1:1", probe_only=True)


def test_a_model_that_is_not_packed_must_be_whole(tmp_path: Path, pair: tuple[LocalModel, LocalModel]) -> None:
    _, lower = both(tmp_path, "lfm2")
    with pytest.raises(ConfigError, match="without probe_only"):
        LocalSidecar(lower)
    with pytest.raises(ConfigError, match="switched off"):
        Pool(pair[1], packed=False)


def test_an_architecture_whose_code_wants_all_its_parts_is_refused(tmp_path: Path) -> None:
    probe = probe_for(LocalModel.from_pretrained(saved(tmp_path, "falcon_h1")), LAYER)
    with pytest.raises(ConfigError, match="falcon_h1 cannot be loaded in part"):
        LocalModel.from_pretrained(tmp_path, probe=probe, probe_only=True)


def test_more_streams_fit_into_the_same_memory(pair: tuple[LocalModel, LocalModel]) -> None:
    places = []
    for model in pair:
        with pool_of(model, kv_bytes=1 << 20) as pool:
            slot = pool.open([5] * 20, frozenset({AskProbe}))
            check(pool, slot)
            assert pool._tenancy is not None
            places.append(pool._tenancy.memory._arena.tokens)  # type: ignore[attr-defined]  # a PackedMemory
    assert places[1] == 2 * places[0]


def test_a_check_that_looks_ahead_nevertheless_fails_closed(pair: tuple[LocalModel, LocalModel]) -> None:
    from ada_guard import CheckError

    with pool_of(pair[1]) as pool:
        slot = pool.open([5] * 20, frozenset({AskProbe, AskLookahead}))
        with pytest.raises(CheckError):
            pool.check(slot, 20, Asks(AskProbe, AskLookahead), context_at(0)).result(60)
        assert check(pool, pool.open([5] * 20, frozenset({AskProbe}))).harm_probability is not None


def test_the_default_checker_of_such_a_companion_is_the_probe(pair: tuple[LocalModel, LocalModel]) -> None:
    guard = Guard(sidecar=LocalSidecar(pair[1]))
    guard.connect()
    assert isinstance(guard.checker, ProbeChecker)
    guard.close()


@loopback
def test_a_server_of_lower_blocks_is_ready_and_refuses_rethink(pair: tuple[LocalModel, LocalModel]) -> None:
    with served(LocalSidecar(pair[1])) as server:
        assert httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200
        guard = Guard.for_sidecar(server.url, check="probe")
        assert guard.check(USER, "Mix it and bake it.").harm_probability is not None
        guard.close()
        asking = Guard.for_sidecar(server.url, check="rethink")
        with pytest.raises(ConfigError, match="only the blocks up to the probe's layer are loaded"):
            asking.session(USER)
        asking.close()
