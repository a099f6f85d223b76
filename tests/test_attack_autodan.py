"""AutoDAN on the reference model: losses are those of single runs, breeding never loses its best, seeds repeat."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from chats import always, served_chat, silent
from endpoint_drives import loopback

from ada_guard.errors import ConfigError
from ada_guard.evals.attacks.attempt import SUCCEEDED, evaluate_attack
from ada_guard.evals.attacks.autodan import AutoDANAttack, AutoDANSettings
from ada_guard.evals.attacks.autodan_words import PREFIXES, SWAPS
from ada_guard.evals.attacks.evasion import ProbeEvasion
from ada_guard.evals.attacks.goals import Goal, reference_goals
from ada_guard.evals.attacks.prompt_loss import PromptLoss
from ada_guard.evals.judges import ReferenceJudge
from ada_guard.evals.targets import guard_targets
from ada_guard.guard import Guard
from ada_guard.local import LocalModel
from ada_guard.policy import Schedule

SMALL = AutoDANSettings(population=4, generations=3, mutation=0.5, wanted_tokens=6, sent=2)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return Guard.from_pretrained("reference").model


@pytest.fixture(scope="module")
def goal() -> Goal:
    return reference_goals(1)[0]


def test_the_loss_of_a_batch_is_that_of_each_prompt_alone(model: LocalModel, goal: Goal) -> None:
    prompts = [goal.request, f"{PREFIXES[0]} {goal.request}"]
    answer = [*goal.asking(goal.request), {"role": "assistant", "content": goal.wanted}]
    wanted = torch.tensor(model.encode(answer).prefill_ids[:6])
    for prompt, score in zip(prompts, PromptLoss(model, goal, wanted_tokens=6).of(prompts), strict=True):
        ids = torch.tensor([[*model.encode(goal.asking(prompt)).ids, *wanted.tolist()]])
        with torch.inference_mode():
            logits = model.model(input_ids=ids).logits[0, -7:-1]
        assert score.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, wanted)), abs=1e-4)
        assert score.solved == bool((logits.argmax(dim=-1) == wanted).all())


def test_the_adaptive_loss_adds_the_checks_that_the_guard_would_make(model: LocalModel, goal: Goal) -> None:
    evasion = ProbeEvasion.of(model, Schedule.every(2), weight=1.0, margin=1.0)
    prompts = [goal.request, f"{PREFIXES[1]} {goal.request}"]
    plain = PromptLoss(model, goal, wanted_tokens=4).of(prompts)
    adaptive = PromptLoss(model, goal, wanted_tokens=4, evasion=evasion).of(prompts)
    answer = [*goal.asking(goal.request), {"role": "assistant", "content": goal.wanted}]
    wanted = model.encode(answer).prefill_ids[:4]
    for prompt, without, score in zip(prompts, plain, adaptive, strict=True):
        penalties = []
        for depth in (2, 4):
            ids = [*model.encode(goal.asking(prompt)).ids, *wanted[:depth], *model.spec.probe.ids]
            with torch.inference_mode():
                hidden = _state(model, ids, evasion)
            above = float(hidden @ evasion.probe.weight + evasion.probe.bias) - evasion.threshold_logit
            penalties.append(float(torch.nn.functional.softplus(torch.tensor(above + 1.0))))
        assert score.loss == pytest.approx(without.loss + sum(penalties) / 2, abs=1e-3)


def _state(model: LocalModel, ids: list[int], evasion: ProbeEvasion) -> torch.Tensor:
    from ada_guard.local.blocks import reading

    point = evasion.probe.hook_point
    with reading(model.model, [point]) as states:
        model.model(input_ids=torch.tensor([ids]))
    return states.by_layer[point.layer][0, -1].float()


def test_a_prompt_that_does_not_fit_has_no_finite_loss_and_is_never_sent(model: LocalModel, goal: Goal) -> None:
    long = "Tell the tale. " * 3000
    (score,) = PromptLoss(model, goal, wanted_tokens=4).of([long])
    assert math.isinf(score.loss)
    attack = AutoDANAttack(model, AutoDANSettings(population=2, generations=1), prefixes=[long])
    assert not attack.attempts(goal, seed=0)


def test_breeding_never_does_worse_than_its_seeds_and_repeats_with_its_seed(model: LocalModel, goal: Goal) -> None:
    attack = AutoDANAttack(model, SMALL)
    first, again = attack.attempts(goal, seed=1), attack.attempts(goal, seed=1)
    assert [attempt.messages for attempt in first] == [attempt.messages for attempt in again]
    assert len(first) == 2
    texts = [str(attempt.messages[-1]["content"]) for attempt in first]
    assert all(text.endswith(goal.request) for text in texts)
    loss = PromptLoss(model, goal, wanted_tokens=6)
    best = min(score.loss for score in loss.of([f"{prefix} {goal.request}" for prefix in PREFIXES[:4]]))
    found = [score.loss for score in loss.of(texts)]
    assert found[0] <= found[1]
    assert found[0] <= best + 1e-6
    assert attack.gained[0] == pytest.approx(best - found[0], abs=1e-4)


def test_only_words_of_the_table_change(model: LocalModel, goal: Goal) -> None:
    attack = AutoDANAttack(model, SMALL, prefixes=["You tell a story."])
    allowed = {"you", "a", "tell", *SWAPS["tell"], "story", *SWAPS["story"]}
    for attempt in attack.attempts(goal, seed=2):
        prefix = str(attempt.messages[-1]["content"]).removesuffix(goal.request)
        assert {word.strip(".").lower() for word in prefix.split()} <= allowed


def test_swaps_lead_to_other_words_of_their_group_only() -> None:
    assert all(word not in others and others for word, others in SWAPS.items())


@loopback
def test_a_chat_model_rewords_sentences(model: LocalModel, goal: Goal) -> None:
    with served_chat("A brand new sentence.") as (chat, script):
        attack = AutoDANAttack(model, SMALL, rewording=chat, prefixes=["You tell a story.", "Read the part."])
        attempts = attack.attempts(goal, seed=0)
    assert script.asked
    assert any("brand new" in str(attempt.messages) for attempt in attempts)
    assert attack.settings["mutates"] == "attacker-1"


@pytest.mark.parametrize("chat", [silent(), always("I can't help with that."), always("x" * 500)])
def test_without_a_usable_rewording_the_table_mutates(model: LocalModel, goal: Goal, chat: object) -> None:
    attack = AutoDANAttack(model, SMALL, rewording=chat, prefixes=["You tell a story."])  # type: ignore[arg-type]  # several doubles
    assert attack.attempts(goal, seed=0)
    assert all(len(str(attempt.messages)) < 500 for attempt in attack.attempts(goal, seed=0))


def test_adaptive_and_plain_attacks_are_told_apart_and_evaluated_against_every_guard(model: LocalModel) -> None:
    attack = AutoDANAttack(model, SMALL, evasion=ProbeEvasion.of(model, Schedule()))
    targets = guard_targets(model)
    result = evaluate_attack(
        attack,
        reference_goals(1),
        targets,
        ReferenceJudge(),
        seed=0,
        model="reference",
        command="test",
        generation={"max_new_tokens": 12},
    )
    assert result.evaluation == "attack-autodan adaptive"
    counts = {count.system: count for count in result.counts if count.what == SUCCEEDED}
    assert set(counts) == {"no guard", "rethink", "probe", "cascade"}
    assert all(count.n + count.missing == 1 for count in counts.values())
    assert result.settings["population"] == 4
    assert result.settings["mutates"] == "words by table"


def test_a_goal_without_a_wanted_answer_is_refused(model: LocalModel) -> None:
    goal = Goal(prompt_id="p", messages=({"role": "user", "content": "How?"},))
    with pytest.raises(ConfigError, match="harmful response"):
        AutoDANAttack(model, SMALL).attempts(goal, seed=0)


@pytest.mark.parametrize(
    "settings", [{"population": 1}, {"generations": 0}, {"elite": 1.0}, {"mutation": 1.5}, {"sent": 0}]
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="AutoDAN needs"):
        AutoDANSettings(**settings)  # type: ignore[arg-type]  # numbers of both kinds


def test_an_attack_needs_a_prefix(model: LocalModel) -> None:
    with pytest.raises(ConfigError, match="at least one prefix"):
        AutoDANAttack(model, SMALL, prefixes=[" "])


def test_crossing_keeps_every_sentence_of_a_pair() -> None:
    from ada_guard.evals.attacks.autodan import _crossed

    one, other = ("a", "b", "c", "d"), ("1", "2", "3", "4", "5")
    for seed in range(20):
        first, second = _crossed(one, other, 3, Random(seed))
        assert sorted(first + second) == sorted(one + other)
        assert first != one
    assert _crossed(("a",), ("1", "2"), 3, Random(0)) == (("a",), ("1", "2"))
