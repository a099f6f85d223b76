"""A guarded stream of a real transformers model: promises 2, 4 and 8, and bad input."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from probes import probe_for

from ada_guard import CascadeChecker, Check, Done, Event, Guard, Halt, Policy, ProbeChecker, RethinkChecker, Schedule
from ada_guard.checking import AskLookahead, AskProbe, Calibration, CheckContext, Checking
from ada_guard.errors import CheckError, ConfigError, GenerationError
from ada_guard.local import LocalModel, LocalStream
from ada_guard.local.blocks import HookPoint, reading
from ada_guard.probe import LinearProbe, ProbeCard
from ada_guard.sidecar.protocol import Conversation
from ada_guard.steps import run
from ada_guard.verdict import Decision, Verdict

USER = [{"role": "user", "content": "How do I bake bread?"}]


class AlwaysPass:
    """Asks for everything and passes; flags from a depth on if told to."""

    name = "always"
    asks = frozenset({AskProbe, AskLookahead})

    def __init__(self, flag_from: int = 10**9) -> None:
        self.flag_from = flag_from

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> AlwaysPass:
        return self

    def check(self, context: CheckContext) -> Checking:
        p = yield AskProbe()
        yield AskLookahead(max_tokens=3, undecided=lambda _: True)
        flagged = context.depth >= self.flag_from
        decision = Decision.FLAG if flagged else Decision.PASS
        return Verdict(decision=decision, checker="always", depth=context.depth, harm_probability=p)


@pytest.fixture(scope="module")
def probed(tiny: LocalModel) -> LocalModel:
    return LocalModel(tiny.model, tiny.tokenizer, probe=probe_for(tiny), name="tiny")


def guard_of(model: LocalModel, interval: int = 1, flag_from: int = 10**9, **kwargs: Any) -> Guard:
    return Guard(model, checker=AlwaysPass(flag_from), policy=Policy(schedule=Schedule.every(interval)), **kwargs)


def done_of(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.9, "seed": 5},
    "top-p": {"temperature": 1.2, "top_p": 0.8, "seed": 6},
    "top-k and penalty": {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.3, "seed": 7},
}


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("interval", [1, 25])
@pytest.mark.parametrize("check_pass", ["fused", "separate"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_benign_stream_is_untouched(
    probed: LocalModel, settings: dict[str, Any], check_pass: Any, interval: int, how: str
) -> None:
    guard = guard_of(probed, interval, check_pass=check_pass)
    plain = list(guard.unguarded(USER, max_new_tokens=60, **settings))
    if how == "sync":
        events = list(guard.stream(USER, max_new_tokens=60, **settings))
    else:

        async def collect() -> list[Event]:
            return [event async for event in guard.astream(USER, max_new_tokens=60, **settings)]

        events = asyncio.run(collect())
    text = "".join(e.to_dict().get("text", "") for e in events)
    assert text == "".join(e.to_dict().get("text", "") for e in plain)
    assert done_of(events).token_ids == done_of(plain).token_ids
    assert done_of(events).finish_reason == done_of(plain).finish_reason
    assert done_of(events).checks >= done_of(events).generated_tokens // interval


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_tokens_are_those_of_transformers_own_generate(probed: LocalModel, settings: dict[str, Any]) -> None:
    prompt = torch.tensor([probed.encode(USER).ids])
    theirs = {k: v for k, v in settings.items() if k not in ("seed", "temperature")}
    if settings["temperature"]:
        theirs |= {"do_sample": True, "temperature": settings["temperature"]}
        torch.manual_seed(settings["seed"])
    else:
        theirs["do_sample"] = False
    out = probed.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=60, **theirs)
    expected = [i for i in out[0, prompt.shape[1] :].tolist() if i != probed.tokenizer.eos_token_id]
    events = list(guard_of(probed).stream(USER, max_new_tokens=60, **settings))
    assert list(done_of(events).token_ids) == expected


def test_a_separate_check_is_bit_identical_in_bf16() -> None:
    model = LocalModel(tiny_models.build("llama", dtype=torch.bfloat16), tiny_models.tokenizer())
    guard = guard_of(LocalModel(model.model, model.tokenizer, probe=probe_for(model)), check_pass="separate")
    for seed in range(5):
        settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.0, "seed": seed}
        guarded, plain = list(guard.stream(USER, **settings)), list(guard.unguarded(USER, **settings))
        assert done_of(guarded).token_ids == done_of(plain).token_ids


def test_a_check_leaves_cache_random_state_and_hooks_as_it_found_them(probed: LocalModel) -> None:
    stream = LocalStream(probed, probed.encode(USER), max_new_tokens=30, temperature=0)
    for _ in range(5):
        run(stream.pull())
    stream.context.next_logits()
    before = [(layer.keys.clone(), layer.values.clone()) for layer in stream.context.cache.layers]
    random_state = torch.get_rng_state()
    with stream.reinjected(frozenset({AskProbe, AskLookahead}), depth=5) as header:
        header.harm_probability()
        header.lookahead(4, lambda _: True)
    for layer, (keys, values) in zip(stream.context.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert _hooks(probed.model) == 0


def _hooks(net: torch.nn.Module) -> int:
    hooks: list[OrderedDict[int, Any]] = [h for m in net.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    return sum(len(h) for h in hooks)


class Bomb(torch.nn.Module):
    """Raises once, at one call."""

    def __init__(self, inner: torch.nn.Module, at: int) -> None:
        super().__init__()
        self.inner, self.calls, self.at = inner, 0, at

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("UNSAFE text of a foreign library")
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("check_pass", ["fused", "separate"])
@pytest.mark.parametrize("at", [2, 3, 5])
def test_after_a_check_that_failed_half_way_the_stream_goes_on_unharmed(check_pass: Any, at: int) -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    model = LocalModel(model.model, model.tokenizer, probe=probe_for(model))
    expected = done_of(list(guard_of(model).unguarded(USER, max_new_tokens=20, temperature=0))).token_ids

    stream = LocalStream(model, model.encode(USER), check_pass=check_pass, max_new_tokens=20, temperature=0)
    for _ in range(3):
        run(stream.pull())
    net = model.model.model
    net.layers[3].mlp = Bomb(net.layers[3].mlp, at=at)
    failures: list[Exception] = []
    for depth in (3, 4):
        try:
            with stream.reinjected(frozenset({AskProbe, AskLookahead}), depth=depth) as header:
                header.harm_probability()
                header.lookahead(4, lambda _: True)
        except CheckError as error:
            failures.append(error)
        run(stream.pull())
    got = [*stream.context.ids[0, len(model.encode(USER).ids) :].tolist()]
    while (delta := run(stream.pull())) is not None:
        got += delta.token_ids
    assert [str(error) for error in failures] == ["RuntimeError"]
    assert tuple(got) == expected
    assert _hooks(model.model) == 0


def test_a_cut_stops_the_generation(probed: LocalModel) -> None:
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    handle = probed.model.register_forward_hook(count)
    try:
        events = list(guard_of(probed, interval=5, flag_from=10).stream(USER, max_new_tokens=200, temperature=0))
    finally:
        handle.remove()
    assert any(isinstance(e, Halt) for e in events)
    assert done_of(events).generated_tokens == 10
    lookaheads = 2 * 2  # two checks, three lookahead tokens each, the first of which rides with the header
    assert steps <= 1 + 10 + lookaheads


def test_closing_early_frees_the_cache(probed: LocalModel) -> None:
    source, session = guard_of(probed)._open(Conversation(messages=USER), {"max_new_tokens": 50})
    cache = weakref.ref(source.context.cache)
    del session
    run(source.pull())
    run(source.close())
    gc.collect()
    assert cache() is None


def test_streams_on_one_guard_in_threads_and_tasks_do_not_see_each_other(probed: LocalModel) -> None:
    guard = guard_of(probed, interval=3)
    asked = [[{"role": "user", "content": f"Question {i}?"}] for i in range(4)]
    settings: dict[str, Any] = {"max_new_tokens": 25, "temperature": 0.9, "seed": 1}
    solo = [done_of(list(guard.stream(messages, **settings))).token_ids for messages in asked]
    assert len(set(solo)) > 1
    got: dict[int, tuple[int, ...]] = {}

    def threaded(i: int) -> None:
        got[i] = done_of(list(guard.stream(asked[i], **settings))).token_ids

    async def tasks() -> list[tuple[int, ...]]:
        async def one(i: int) -> tuple[int, ...]:
            return done_of([event async for event in guard.astream(asked[i], **settings)]).token_ids

        return await asyncio.gather(*(one(i) for i in range(4)))

    threads = [threading.Thread(target=threaded, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    from_tasks = asyncio.run(tasks())
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(4)] == solo
    assert from_tasks == solo


def test_nothing_leaks_into_the_consumer_between_steps(probed: LocalModel) -> None:
    stream = guard_of(probed).stream(USER, max_new_tokens=3, temperature=0)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()


def test_stop_string_is_trimmed_and_finish_reason_is_stop(probed: LocalModel) -> None:
    whole = guard_of(probed).complete(USER, max_new_tokens=60, temperature=0).text
    stop = whole[10:12]
    done = guard_of(probed).complete(USER, max_new_tokens=60, temperature=0, stop=stop)
    assert done.text == whole[: whole.find(stop)]
    assert done.finish_reason == "stop"


def test_eos_is_neither_counted_nor_shown(probed: LocalModel) -> None:
    ids = done_of(list(guard_of(probed).stream(USER, max_new_tokens=30, temperature=0))).token_ids
    first_seen = {token: i for i, token in reversed(list(enumerate(ids)))}
    eos, at = max(first_seen.items(), key=lambda item: item[1])
    events = list(
        guard_of(probed, interval=100).stream(USER, max_new_tokens=30, temperature=0, eos_token_id=[eos, 299])
    )
    assert done_of(events).token_ids == ids[:at]
    assert done_of(events).finish_reason == "stop"
    assert [e.depth for e in events if isinstance(e, Check)] == ([at] if at else [])


def test_length_is_the_finish_reason_at_the_limit(probed: LocalModel) -> None:
    done = done_of(list(guard_of(probed).stream(USER, max_new_tokens=7, temperature=0)))
    assert (done.finish_reason, done.generated_tokens) == ("length", 7)


def test_prefill_counts_in_depth_is_checked_first_and_is_not_released(probed: LocalModel) -> None:
    messages = [*USER, {"role": "assistant", "content": "First, mix"}]
    tokens = len(probed.tokenizer.encode("First, mix", add_special_tokens=False))
    events = list(guard_of(probed, interval=5).stream(messages, max_new_tokens=7, temperature=0))
    assert [e.depth for e in events if isinstance(e, Check)] == [tokens, tokens + 5, tokens + 7]
    assert not "".join(e.to_dict().get("text", "") for e in events).startswith("First")
    assert done_of(events).generated_tokens == 7


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_chunking_does_not_matter_to_a_companion(probed: LocalModel, size: int) -> None:
    text = "Mix flour — 漢字 and 🙂 water.\n\n  Then bake it,  slowly; " * 2
    guard = guard_of(probed, interval=7)

    def in_steps_of(step: int) -> list[tuple[object, ...]]:
        session = guard.session(USER)
        events: list[Event] = []
        for start in range(0, len(text), step):
            events += session.push(text[start : start + step])
        events += session.close()
        assert "".join(e.to_dict().get("text", "") for e in events) == text
        # Where tokens of one release were fed together or apart, floats may differ in the last digits.
        return [
            (e.depth, e.decision, round(e.harm_probability or 0, 5)) if isinstance(e, Check) else (type(e).__name__,)
            for e in events
        ]

    assert in_steps_of(size) == in_steps_of(3)


def test_companion_check_sees_exactly_the_settled_ids(probed: LocalModel) -> None:
    text = "Mix flour and water, then bake it."
    guard = guard_of(probed, interval=6)
    session = guard.session(USER)
    checks = [e for e in [*session.push(text), *session.close()] if isinstance(e, Check)]
    ids = probed.tokenizer.encode(text, add_special_tokens=False)
    assert [c.depth for c in checks] == [*range(6, len(ids) + 1, 6), *([len(ids)] if len(ids) % 6 else [])]
    point = HookPoint(layer=2, position="input_layernorm")
    assert probed.probe is not None
    for check in checks:
        full = torch.tensor([[*probed.encode(USER).ids, *ids[: check.depth], *probed.spec.probe.ids]])
        with torch.inference_mode(), reading(probed.model, [point]) as states:
            probed.model(full, use_cache=False)
        fresh = probed.probe.harm_probability(states.by_layer[2][0, -1].float())
        assert check.harm_probability == pytest.approx(fresh, abs=1e-5)


def test_a_model_that_fails_raises_without_its_text() -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    assert model.shortcuts.few_rows  # tried now, before the bomb is placed
    model.model.model.layers[1].mlp = Bomb(model.model.model.layers[1].mlp, at=4)
    guard = Guard(model, checker=RethinkChecker(lookahead_tokens=1), policy=Policy(schedule=Schedule.every(50)))
    with pytest.raises(GenerationError) as caught:
        list(guard.stream(USER, max_new_tokens=20, temperature=0))
    assert "UNSAFE" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "temperature": 1.0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"max_new_tokens": 0},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"no_such_setting": 1},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_generation_settings_that_cannot_work_are_refused_before_any_token(
    probed: LocalModel, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        guard_of(probed).stream(USER, **settings)
    assert "\n" not in str(caught.value)


def test_prompt_and_prefill_that_are_too_long_are_refused_before_any_token(probed: LocalModel) -> None:
    guard = guard_of(probed)
    for messages in (
        [{"role": "user", "content": "bread " * 200}],
        [*USER, {"role": "assistant", "content": "bread " * 200}],
    ):
        with pytest.raises(ConfigError, match="too long"):
            guard.stream(messages)
        with pytest.raises(ConfigError, match="too long"):
            guard.astream(messages)


def test_max_new_tokens_is_cut_to_the_context_with_room_for_a_check(probed: LocalModel) -> None:
    done = done_of(list(guard_of(probed, interval=100).stream(USER, max_new_tokens=10_000, temperature=0)))
    assert done.finish_reason == "length"
    context = probed.context_tokens
    assert context is not None
    used = len(probed.encode(USER).ids) + done.generated_tokens
    assert used + len(probed.spec.rethink.ids) < context


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_size": 32}, "hidden size"),
        ({"layer": 9}, "layer"),
        ({"header_ids": (1, 2)}, "Safety Tokens"),
        ({"fingerprint": {"config": "x", "tokenizer": "y", "weights": "z"}}, "another shape"),
    ],
)
def test_a_probe_that_cannot_read_the_model_is_refused(
    tiny: LocalModel, tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    probe = probe_for(tiny)
    card = ProbeCard.model_validate({**probe.card.model_dump(), **change})
    weight = torch.zeros(card.hidden_size)
    LinearProbe(weight=weight, bias=0.0, card=card).save(tmp_path / "probe.safetensors")
    loaded = LinearProbe.load(tmp_path / "probe.safetensors")
    with pytest.raises(ConfigError, match=part):
        LocalModel(tiny.model, tiny.tokenizer, probe=loaded)


def test_a_probe_survives_saving(tiny: LocalModel, tmp_path: Path) -> None:
    probe = probe_for(tiny)
    probe.save(tmp_path / "probe.safetensors")
    loaded = LinearProbe.load(tmp_path / "probe.safetensors")
    assert torch.equal(loaded.weight, probe.weight)
    assert loaded.card == probe.card
    assert [file.name for file in tmp_path.iterdir()] == ["probe.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not a probe", b"\x80\x04N."])
def test_a_file_that_is_no_probe_is_refused_and_not_executed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "probe.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="not a probe"):
        LinearProbe.load(file)
    with pytest.raises(ConfigError, match="no probe file"):
        LinearProbe.load(tmp_path / "missing")


def test_a_model_in_training_mode_is_refused(tiny: LocalModel) -> None:
    net = copy.deepcopy(tiny.model).train()
    with pytest.raises(ConfigError, match="training mode"):
        LocalModel(net, tiny.tokenizer)


@pytest.mark.parametrize("device", ["cuda:7", "mps", "abacus"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        LocalModel.from_pretrained("reference", device=device)


def test_an_unknown_model_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(ConfigError) as caught:
            LocalModel.from_pretrained(name)
        assert "\n" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_a_nan_score_fails_closed(tiny: LocalModel) -> None:
    probe = probe_for(tiny)
    broken = LinearProbe(weight=probe.weight * float("nan"), bias=0.0, card=probe.card)
    guard = Guard(LocalModel(tiny.model, tiny.tokenizer, probe=broken))
    events = list(guard.stream(USER, max_new_tokens=20, temperature=0))
    assert [e.decision for e in events if isinstance(e, Check)] == ["unchecked"]
    assert done_of(events).released_tokens == 0


def _texts(thing: object, seen: set[int], depth: int = 12) -> list[str]:
    """Every text that can be reached from an object through attributes, containers and suspended frames."""
    if id(thing) in seen or depth == 0 or isinstance(thing, (type, torch.Tensor, torch.nn.Module)):
        return []
    seen.add(id(thing))
    if isinstance(thing, str):
        return [thing]
    inner: list[object] = []
    if isinstance(thing, dict):
        inner += [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)) or type(thing).__name__ == "deque":
        inner += list(thing)  # type: ignore[call-overload]  # each of them is iterable
    elif (frame := getattr(thing, "gi_frame", None)) is not None:
        inner += [*frame.f_locals.values()]
    elif type(thing).__module__.startswith("ada_guard"):
        inner += [getattr(thing, name, None) for name in getattr(thing, "__slots__", ())]
        inner += list(getattr(thing, "__dict__", {}).values())
    return [text for part in inner for text in _texts(part, seen, depth - 1)]


def test_after_a_cut_no_held_text_can_be_reached_from_the_stream(probed: LocalModel) -> None:
    guard = guard_of(probed, interval=10, flag_from=20)
    whole = guard_of(probed).complete(USER, max_new_tokens=25, temperature=0)
    stream = guard.stream(USER, max_new_tokens=60, temperature=0)
    released = ""
    for event in stream:
        released += event.to_dict().get("text", "") if type(event).__name__ == "Release" else ""
        if isinstance(event, Halt):
            break
    held = whole.released[len(released) : len(released) + 6]
    assert len(held) == 6
    assert not [text for text in _texts(stream, set()) if held in text]


class NotFinite(torch.nn.Module):
    """Spoils the last row of every pass of several rows, as an overflow would."""

    def __init__(self, inner: torch.nn.Module, value: float) -> None:
        super().__init__()
        self.inner, self.value = inner, value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs).clone()
        if out.shape[1] > 1:
            out[:, -1] = self.value
        return out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("checker", ["probe", "rethink"])
def test_a_state_that_is_not_finite_fails_closed(value: float, checker: str) -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    probed = LocalModel(model.model, model.tokenizer, probe=probe_for(model))
    layer = model.model.model.layers[2]
    if checker == "probe":
        layer.input_layernorm = NotFinite(layer.input_layernorm, value)
    else:
        model.model.lm_head = NotFinite(model.model.lm_head, float("nan"))
    guard = Guard(probed, checker=ProbeChecker() if checker == "probe" else RethinkChecker())
    events = list(guard.stream(USER, max_new_tokens=20, temperature=0))
    assert [e.decision for e in events if isinstance(e, Check)] == ["unchecked"]
    assert done_of(events).released_tokens == 0


def test_a_probe_check_without_a_probe_is_refused_and_a_cascade_says_that_it_is_rethink(tiny: LocalModel) -> None:
    for checker in (ProbeChecker(), ProbeChecker(threshold=0.5)):
        with pytest.raises(ConfigError, match="needs a probe"):
            Guard(tiny, checker=checker)
    with pytest.warns(UserWarning, match="rethink alone"):
        assert Guard(tiny, checker=CascadeChecker(low=0.1, high=0.9)).checker.name == "rethink"


def test_check_raises_where_the_checker_abstains(probed: LocalModel) -> None:
    class Abstains(AlwaysPass):
        def check(self, context: CheckContext) -> Checking:
            return Verdict(decision=Decision.ABSTAIN, checker="always", depth=context.depth)
            yield

    with pytest.raises(CheckError, match="could not be made"):
        Guard(probed, checker=Abstains()).check(USER, "Mix.")


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_halves_of_a_character_are_joined_and_lone_ones_replaced(probed: LocalModel, size: int) -> None:
    text = "fire \ud83d\ude42 and \ud83d alone"
    session = guard_of(probed).session(USER)
    events: list[Event] = []
    for start in range(0, len(text), size):
        events += session.push(text[start : start + size])
    events += session.close()
    assert "".join(e.to_dict().get("text", "") for e in events) == "fire \U0001f642 and \ufffd alone"


def test_a_message_that_is_no_valid_text_is_refused_without_showing_it(probed: LocalModel) -> None:
    with pytest.raises(ConfigError) as caught:
        guard_of(probed).stream([{"role": "user", "content": "UNSAFE \ud83d"}])
    assert "UNSAFE" not in str(caught.value)


def test_two_guards_on_one_network_share_its_lock(tiny: LocalModel) -> None:
    assert LocalModel(tiny.model, tiny.tokenizer).lock is tiny.lock


def test_states_of_another_threads_pass_are_not_read(tiny: LocalModel) -> None:
    point = HookPoint(layer=2, position="input_layernorm")
    ids = torch.tensor([[5, 6, 7]])
    with reading(tiny.model, [point]) as states:
        thread = threading.Thread(target=lambda: tiny.model(ids, use_cache=False))
        thread.start()
        thread.join()
    assert states.by_layer == {}


def test_fine_tuned_weights_have_another_fingerprint_and_another_dtype_has_not(tiny: LocalModel) -> None:
    net = copy.deepcopy(tiny.model)
    assert LocalModel(net.to(torch.bfloat16), tiny.tokenizer).fingerprint == tiny.fingerprint
    tuned = copy.deepcopy(tiny.model)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight.add_(
            0.01 * torch.randn_like(tuned.model.layers[1].self_attn.q_proj.weight)
        )
    assert LocalModel(tuned, tiny.tokenizer).fingerprint.differences(tiny.fingerprint) == ["weights"]


@pytest.mark.parametrize("change", [{"variant": "reasonning"}, {"dtype": "flaot32"}, {"device": "cpu:x"}])
def test_mistyped_loading_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LocalModel.from_pretrained("reference", **change)
