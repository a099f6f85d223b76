"""The suffix search: its gradient, its losses, what it sends, and that the adaptive one sees the guard's own scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import torch
from probes import fresh_score, probed
from torch.nn.functional import cross_entropy, softplus

from ada_guard import Schedule
from ada_guard.errors import ConfigError
from ada_guard.evals.attacks.evasion import ProbeEvasion, RethinkEvasion
from ada_guard.evals.attacks.gcg import QUICK_SEARCH, GCGAttack, GCGSettings
from ada_guard.evals.attacks.goals import Goal, reference_goals
from ada_guard.evals.attacks.suffix_loss import SuffixLoss, SuffixPlace
from ada_guard.local import LocalModel
from ada_guard.probe import LinearProbe
from ada_guard.prompt import encode_text
from ada_guard.reference import PROBE_FILE

GOAL = Goal(prompt_id="1", messages=({"role": "user", "content": "How so?"},), wanted="Sure, this is how it goes.")
SMALL = GCGSettings(steps=4, width=8, top_k=16, suffix_tokens=5, wanted_tokens=6, given_tokens=6, batch=3)


@pytest.fixture(scope="module")
def reference() -> LocalModel:
    return LocalModel.from_pretrained("reference", probe=LinearProbe.load(PROBE_FILE))


def place_of(model: LocalModel, goal: Goal = GOAL, tokens: int = 5) -> SuffixPlace:
    return SuffixPlace.found(model, goal, suffix_tokens=tokens, wanted_tokens=6)


@pytest.mark.parametrize("kind", ["gpt-2", "llama-3", "metaspace", "gemma", "llama-2"])
def test_a_place_is_found_for_each_kind_of_tokenizer(kind: str) -> None:
    tokenizer = tiny_models.trained_tokenizer(kind)
    model = LocalModel(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer, name="tiny")
    place = place_of(model)
    assert 1 <= len(place.start) <= 5
    assert place.fits(place.start)
    assert model.encode(place.messages(place.start)).ids == (*place.before, *place.start, *place.after)
    assert place.messages(place.start)[-1]["content"].startswith(GOAL.request)
    assert len(place.wanted) == 6


def test_ids_that_a_user_could_not_type_do_not_fit(tiny: LocalModel) -> None:
    place = place_of(tiny)
    control = tiny.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert not place.fits((control, *place.start[1:]))


def test_the_loss_is_the_mean_cross_entropy_of_the_wanted_tokens(tiny: LocalModel) -> None:
    place = place_of(tiny)
    ids = [*place.before, *place.start, *place.after, *place.wanted]
    with torch.no_grad():
        logits = tiny.model(torch.tensor([ids])).logits[0, -7:-1]
    expected = cross_entropy(logits, torch.tensor(place.wanted))
    found = SuffixLoss(place).of([place.start])
    torch.testing.assert_close(found.total[0], expected)
    assert bool(found.solved[0]) is (logits.argmax(dim=-1).tolist() == list(place.wanted))


@pytest.mark.parametrize("adaptive", [None, ProbeEvasion, RethinkEvasion])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_gradient_is_that_of_the_one_hot_rows(
    family: str, adaptive: type[ProbeEvasion] | type[RethinkEvasion] | None
) -> None:
    model = probed(LocalModel(tiny_models.build(family), tiny_models.tokenizer(), name="tiny"))
    place = place_of(model)
    evasion = None if adaptive is None else adaptive.of(model, Schedule.every(2))
    loss = SuffixLoss(place, evasion)
    gradient = loss.token_gradient(place.start)
    assert gradient.shape == (len(place.start), tiny_models.VOCABULARY)
    table = model.model.get_input_embeddings()
    step, at = 1e-3, 1
    token = int(gradient[at].abs().argmax())
    before = float(loss.of([place.start]).total[0])

    def nudged(_module: object, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if output.shape[1] <= len(place.before) + at:
            return output  # the Safety Tokens alone, behind a cache
        moved = output.clone()
        moved[:, len(place.before) + at] += step * output_of_token
        return moved

    output_of_token = table(torch.tensor([token]))[0].detach()
    handle = table.register_forward_hook(nudged)
    after = float(loss.of([place.start]).total[0])
    handle.remove()
    assert (after - before) / step == pytest.approx(float(gradient[at, token]), rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next"])
def test_the_adaptive_loss_holds_the_scores_that_the_guard_would_see(family: str) -> None:
    """With a cache that is cut back, and for layers that cannot be, without one."""
    model = probed(LocalModel(tiny_models.build(family), tiny_models.tokenizer(), name="tiny"))
    assert model.probe is not None
    place = place_of(model)
    evasion = ProbeEvasion.of(model, Schedule.every(2), weight=0.5, margin=0.25)
    prompt = [*place.before, *place.start, *place.after]
    scores = torch.tensor([fresh_score(model, [*prompt, *place.wanted[:depth]]) for depth in (2, 4, 6)])
    penalty = softplus(scores.logit() - evasion.threshold_logit + 0.25).mean()
    plain = SuffixLoss(place).of([place.start]).total[0]
    other = (*reversed(place.start[:-1]), place.start[0] + 1)
    found = SuffixLoss(place, evasion).of([place.start, other, place.start])
    torch.testing.assert_close(found.total[0], plain + 0.5 * penalty, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.total[2], found.total[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("begins", [None, "Sure"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next"])
def test_the_loss_against_rethink_holds_how_the_lookahead_of_each_check_begins(family: str, begins: str | None) -> None:
    model = LocalModel(tiny_models.build(family), tiny_models.tokenizer(), name="tiny")
    place = place_of(model)
    evasion = RethinkEvasion.of(model, Schedule.every(2), begins=begins, weight=0.5)
    first = place.wanted[0] if begins is None else encode_text(model.tokenizer, begins)[0]
    prompt = [*place.before, *place.start, *place.after]
    terms = []
    for depth in (2, 4, 6):  # the schedule's, and the end of what is wanted
        row = [*prompt, *place.wanted[:depth], *model.spec.rethink.ids]
        with torch.no_grad():
            logits = model.model(torch.tensor([row]), use_cache=False).logits[0, -1]
        terms.append(-logits.log_softmax(dim=-1)[first])
    plain = SuffixLoss(place).of([place.start]).total[0]
    other = (*reversed(place.start[:-1]), place.start[0] + 1)
    found = SuffixLoss(place, evasion).of([place.start, other, place.start])
    torch.testing.assert_close(found.total[0], plain + 0.5 * torch.stack(terms).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.total[2], found.total[0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(found.total[1], found.total[0])


@pytest.mark.parametrize("begins", ["", "I cannot help with that."])
def test_a_lookahead_that_is_to_begin_as_a_refusal_is_no_evasion(tiny: LocalModel, begins: str) -> None:
    with pytest.raises(ConfigError, match="a text that is no refusal"):
        RethinkEvasion.of(tiny, Schedule(), begins=begins)


@pytest.mark.parametrize("evading", [ProbeEvasion, RethinkEvasion])
def test_losses_do_not_depend_on_the_batch(
    tiny: LocalModel, evading: type[ProbeEvasion] | type[RethinkEvasion]
) -> None:
    model = probed(tiny)
    place = place_of(model)
    evasion = evading.of(model, Schedule.every(3))
    suffixes = [tuple((i + n) % 90 + 30 for i in range(len(place.start))) for n in range(5)]
    one, all_ = (SuffixLoss(place, evasion, batch=batch).of(suffixes) for batch in (1, 64))
    torch.testing.assert_close(one.total, all_.total, rtol=1e-4, atol=1e-4)


def test_a_search_leaves_no_hook_and_no_gradient_behind(tiny: LocalModel) -> None:
    model = probed(tiny)
    GCGAttack(model, SMALL, evasion=ProbeEvasion.of(model, Schedule())).attempts(GOAL, seed=0)
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert not any(module._forward_hooks for module in model.model.modules())
    assert not model.lock.locked()


def test_a_search_lowers_its_loss_and_is_the_same_for_a_seed(tiny: LocalModel) -> None:
    place = place_of(tiny)
    runs = [GCGAttack(tiny, SMALL).attempts(GOAL, seed=seed) for seed in (1, 1, 2)]
    sent = [run[0].messages[-1]["content"] for run in runs]
    assert sent[0] == sent[1] != sent[2]
    assert sent[0].isascii()
    ids = tiny.encode(runs[0][0].messages).ids
    suffix = ids[len(place.before) : len(ids) - len(place.after)]
    losses = SuffixLoss(place).of([place.start, suffix]).total
    assert losses[1] < losses[0]


def test_the_search_does_not_touch_the_global_random_state(tiny: LocalModel) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    GCGAttack(tiny, replace(SMALL, steps=1)).attempts(GOAL, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_adaptive_attack_needs_a_probe_and_any_attack_an_answer_to_elicit(tiny: LocalModel) -> None:
    with pytest.raises(ConfigError, match="needs a model with a linear probe"):
        ProbeEvasion.of(tiny, Schedule())
    with pytest.raises(ConfigError, match="needs an answer to elicit"):
        GCGAttack(tiny, SMALL).attempts(replace(GOAL, wanted=""), seed=0)
    with pytest.raises(ConfigError, match="whole numbers"):
        GCGSettings(steps=0)


def test_a_few_steps_lower_both_terms_on_the_reference_model(reference: LocalModel) -> None:
    (goal,) = reference_goals(1)
    search = replace(QUICK_SEARCH, steps=4, width=24)
    place = SuffixPlace.found(reference, goal, suffix_tokens=10, wanted_tokens=16)
    evasion = ProbeEvasion.of(reference, Schedule())
    attack = GCGAttack(reference, search, evasion=evasion)
    assert (attack.name, GCGAttack(reference).name) == ("gcg-adaptive", "gcg")
    (attempt,) = attack.attempts(goal, seed=0)
    ids = reference.encode(attempt.messages).ids
    suffix = ids[len(place.before) : len(ids) - len(place.after)]
    losses = SuffixLoss(place, evasion).of([place.start, suffix]).total
    assert losses[1] < losses[0]
    assert attack.settings["solved"] in (0, 1)


def test_a_few_steps_lower_the_loss_against_rethink_on_the_reference_model(reference: LocalModel) -> None:
    (goal,) = reference_goals(1)
    place = SuffixPlace.found(reference, goal, suffix_tokens=10, wanted_tokens=16)
    evasion = RethinkEvasion.of(reference, Schedule())
    attack = GCGAttack(reference, replace(QUICK_SEARCH, steps=4, width=24), evasion=evasion)
    assert attack.name == "gcg-rethink"
    assert attack.settings["evade_begins"] == "the wanted answer"
    (attempt,) = attack.attempts(goal, seed=0)
    ids = reference.encode(attempt.messages).ids
    suffix = ids[len(place.before) : len(ids) - len(place.after)]
    losses = SuffixLoss(place, evasion).of([place.start, suffix]).total
    assert losses[1] < losses[0]


def test_behind_the_given_tokens_the_models_own_words_are_elicited(reference: LocalModel) -> None:
    (goal,) = reference_goals(1)
    given = SuffixPlace.found(reference, goal, suffix_tokens=10, wanted_tokens=26)
    attack = GCGAttack(reference, replace(QUICK_SEARCH, wanted_tokens=26, given_tokens=9))
    own = SuffixPlace.found(reference, attack._in_own_words(goal), suffix_tokens=10, wanted_tokens=26)
    assert own.wanted[:8] == given.wanted[:8]
    assert len(own.wanted) == 26
    losses = [float(SuffixLoss(place).of([place.start]).total[0]) for place in (own, given)]
    assert losses[0] < losses[1]
