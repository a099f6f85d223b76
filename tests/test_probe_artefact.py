"""The artefact: what it refuses, what it warns of, and that nothing half-written is loaded."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from probe_stores import Invented, rows, store
from probes import probe_for
from safetensors.torch import save_file

from ada_guard import CascadeChecker, Check, ConfigError, Guard, Policy, ProbeChecker, Schedule
from ada_guard.checking import Calibration
from ada_guard.errors import ProbeWarning
from ada_guard.local import LocalModel
from ada_guard.local.fingerprint import fingerprint
from ada_guard.probe import LinearProbe, ProbeCard
from ada_guard.probe.fit import FitSettings, fit_probe

USER = [{"role": "user", "content": "bread and rice"}]


@pytest.fixture(scope="module")
def tiny() -> LocalModel:
    return LocalModel(tiny_models.build("llama"), tiny_models.tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> LinearProbe:
    folder = tmp_path_factory.mktemp("fitted")
    how = Invented(layers=(1,), places=("safety_tokens",))
    return fit_probe(store(folder / "s", rows(160), how), FitSettings(target_fpr=0.15))


def changed(probe: LinearProbe, **change: Any) -> LinearProbe:
    card = ProbeCard.model_validate({**probe.card.model_dump(), **change})
    return LinearProbe(weight=probe.weight, bias=probe.bias, card=card)


def test_a_report_card_survives_saving(fitted: LinearProbe, tmp_path: Path) -> None:
    fitted.save(tmp_path / "new" / "probe.safetensors")
    loaded = LinearProbe.load(tmp_path / "new" / "probe.safetensors")
    assert loaded.card == fitted.card
    assert loaded.card.report is not None
    assert torch.equal(loaded.weight, fitted.weight)
    assert loaded.bias == pytest.approx(fitted.bias, rel=1e-6)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["probe.safetensors"]


def test_a_probe_of_an_older_format_loads(fitted: LinearProbe, tmp_path: Path) -> None:
    news = {"revision", "early_tokens", "confidence", "threshold_choice", "report"}
    card = {**fitted.card.model_dump(mode="json", exclude=news), "format": 1, "fit": {"seed": 0}}
    card["fingerprint"].pop("adapters")
    file = tmp_path / "p"
    save_file({"weight": fitted.weight, "bias": torch.zeros(1)}, file, metadata={"card": json.dumps(card)})
    loaded = LinearProbe.load(file).card
    assert (loaded.format, loaded.fit) == (1, {"seed": 0})
    assert (loaded.report, loaded.revision, loaded.threshold_choice) == (None, None, "calibrated")
    assert (loaded.fingerprint.adapters, loaded.early_tokens) == ((), ())
    assert loaded.thresholds == fitted.card.thresholds


def test_a_format_of_the_future_is_refused(fitted: LinearProbe, tmp_path: Path) -> None:
    card = {**fitted.card.model_dump(mode="json"), "format": 3, "news": True}
    save_file({"weight": fitted.weight, "bias": torch.zeros(1)}, tmp_path / "p", metadata={"card": json.dumps(card)})
    with pytest.raises(ConfigError, match="format 3, this version knows 2: upgrade"):
        LinearProbe.load(tmp_path / "p")


@pytest.mark.parametrize(
    "card", ['{"format": ' + "1" * 6000 + "}", "[" * 100_000, '{"format": "of my own"}', "null", '{"bias": NaN}']
)
def test_a_hostile_card_is_one_line_that_repeats_none_of_it(fitted: LinearProbe, tmp_path: Path, card: str) -> None:
    save_file({"weight": fitted.weight, "bias": torch.zeros(1)}, tmp_path / "p", metadata={"card": card})
    with pytest.raises(ConfigError) as error:
        LinearProbe.load(tmp_path / "p")
    assert "\n" not in str(error.value)
    assert "my own" not in str(error.value)
    assert len(str(error.value)) < 200 + len(str(tmp_path))


def test_no_prefix_of_a_file_is_ever_loaded(fitted: LinearProbe, tmp_path: Path) -> None:
    fitted.save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ConfigError, match="is not a probe"):
            LinearProbe.load(tmp_path / "cut")


def test_a_probe_that_cannot_be_written_leaves_nothing_behind(fitted: LinearProbe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write the probe"):
        fitted.save(tmp_path / "file" / "probe.safetensors")
    (tmp_path / "there.safetensors").mkdir()
    with pytest.raises(ConfigError, match="cannot write the probe"):
        fitted.save(tmp_path / "there.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "there.safetensors"]


@pytest.mark.parametrize(
    ("part", "message"),
    [("config", "another shape"), ("layer", "layer"), ("hidden_size", "hidden size"), ("header", "Safety Tokens")],
)
def test_another_layer_size_or_header_is_refused(tiny: LocalModel, part: str, message: str) -> None:
    probe = probe_for(tiny)
    change = {
        "config": {"fingerprint": {**probe.card.model_dump()["fingerprint"], "config": "x"}},
        "layer": {"layer": 9},
        "hidden_size": {"hidden_size": 7},
        "header": {"header_ids": (1, 2)},
    }[part]
    with pytest.raises(ConfigError, match=message):
        LocalModel(tiny.model, tiny.tokenizer, probe=changed(probe, **change))


def test_other_weights_of_the_same_shape_are_warned_of_and_the_probe_is_used(tiny: LocalModel) -> None:
    tuned = copy.deepcopy(tiny.model)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight.neg_()
    with pytest.warns(ProbeWarning, match=r"fitted on another model \(weights differ\)"):
        model = LocalModel(tuned, tiny.tokenizer, probe=probe_for(tiny))
    assert model.probe is not None


def test_another_dtype_is_warned_of(tiny: LocalModel) -> None:
    with pytest.warns(ProbeWarning, match=r"dtype \(float32 then, bfloat16 now\) differ"):
        LocalModel(copy.deepcopy(tiny.model).to(torch.bfloat16), tiny.tokenizer, probe=probe_for(tiny))


def test_another_tokenizer_with_the_same_header_is_warned_of(tiny: LocalModel) -> None:
    probe = probe_for(tiny)
    other = changed(probe, fingerprint={**probe.card.model_dump()["fingerprint"], "tokenizer": "x"})
    with pytest.warns(ProbeWarning, match="tokenizer"):
        LocalModel(tiny.model, tiny.tokenizer, probe=other)


def test_another_revision_is_named_where_the_weights_differ_and_not_where_they_are_the_same(tiny: LocalModel) -> None:
    probe = changed(probe_for(tiny), revision="a" * 40)
    facts: dict[str, Any] = {
        "layers": 4,
        "hidden_size": 64,
        "header_ids": probe.card.header_ids,
        "revision": "b" * 40,
    }
    probe.require_fits(**facts, fingerprint=tiny.fingerprint)
    other = changed(probe, fingerprint={**probe.card.model_dump()["fingerprint"], "weights": "x"})
    with pytest.warns(ProbeWarning, match="weights, revision differ"):
        other.require_fits(**facts, fingerprint=tiny.fingerprint)


class Adapter(torch.nn.Module):
    """A layer with the attributes of peft's tuner layers."""

    def __init__(self) -> None:
        super().__init__()
        self.active_adapters = ["style", "domain"]
        self.merged_adapters: list[str] = []
        self.disable_adapters = False


def test_active_adapters_are_part_of_the_fingerprint(tiny: LocalModel) -> None:
    net = copy.deepcopy(tiny.model)
    net.adapter = Adapter()
    assert fingerprint(net, tiny.tokenizer).adapters == ("domain", "style")
    with pytest.warns(ProbeWarning, match="adapters differ"):
        LocalModel(net, tiny.tokenizer, probe=probe_for(tiny))
    net.adapter.merged_adapters = ["style"]
    assert fingerprint(net, tiny.tokenizer).adapters == ("domain",)
    net.adapter.disable_adapters = True
    assert fingerprint(net, tiny.tokenizer) == tiny.fingerprint


def test_the_same_model_is_not_warned_of(tiny: LocalModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalModel(tiny.model, tiny.tokenizer, probe=probe_for(tiny))


# -- calibration ------------------------------------------------------------------------------------------------------

CALIBRATION = Calibration(
    thresholds={25: 0.9, 100: 0.8}, low_thresholds={25: 0.2, 100: 0.1}, tokens=40, early_tokens=(5, 10, 15)
)


def test_a_denser_schedule_than_calibrated_is_warned_of() -> None:
    with pytest.warns(ProbeWarning, match="every 10 tokens, the probe was calibrated for every 25"):
        assert CALIBRATION.threshold_for(Schedule.every(10)) == 0.9


@pytest.mark.parametrize(
    ("schedule", "threshold"),
    [(Schedule(), 0.9), (Schedule.every(25), 0.9), (Schedule.every(100), 0.8), (Schedule.sparse(), 0.9)],
)
def test_a_schedule_within_the_calibration_is_not_warned_of(schedule: Schedule, threshold: float) -> None:
    assert CALIBRATION.threshold_for(schedule) == threshold


def test_early_depths_that_were_not_read_are_a_denser_schedule() -> None:
    with pytest.warns(ProbeWarning, match="every 3 tokens"):
        CALIBRATION.threshold_for(Schedule(early_tokens=(3, 5)))


@pytest.mark.parametrize("checker", [ProbeChecker(), CascadeChecker()])
def test_a_longer_answer_than_calibrated_is_warned_of_once_per_guard(tiny: LocalModel, checker: Any) -> None:
    probe = changed(probe_for(tiny), thresholds={1: 1.0}, low_thresholds={1: 1.0}, calibrated_tokens=20)
    model = LocalModel(tiny.model, tiny.tokenizer, probe=probe, name="tiny")
    guard = Guard(model, checker=checker, policy=Policy(schedule=Schedule.every(10), release="audit"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert depths(guard, 20) == [10, 20]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert depths(guard, 50) == [10, 20, 30, 40, 50]
        depths(guard, 50)
    (warning,) = seen
    assert warning.category is ProbeWarning
    assert "longer than the 20 tokens" in str(warning.message)


def test_a_threshold_of_ones_own_is_not_tied_to_a_length(tiny: LocalModel) -> None:
    probe = changed(probe_for(tiny), calibrated_tokens=20)
    model = LocalModel(tiny.model, tiny.tokenizer, probe=probe, name="tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        depths(Guard(model, checker=ProbeChecker(threshold=1.0), policy=Policy(schedule=Schedule.every(10))), 50)


def depths(guard: Guard, tokens: int) -> list[int]:
    events = guard.stream(USER, max_new_tokens=tokens, temperature=0)
    return [event.depth for event in events if isinstance(event, Check)]
