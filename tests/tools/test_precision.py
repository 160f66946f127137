"""Measuring an fp32 bundle: recorded is what layers saw, trials leave nothing behind, plans follow errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.products import products_of

from foveate.export.precision import LinearLayer, PrecisionPlan, parse_precision
from foveate.export.precision.sensitivity import Call, layer_errors
from foveate.runtime.backends.onnxruntime import Backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import InputError
from foveate.tools.precision.choose import LIMITS, Settings, chooser, measured_plan
from foveate.tools.precision.distance import distance
from foveate.tools.precision.harm import Group, most_harmful
from foveate.tools.precision.measure import Judge, LayerErrors
from foveate.tools.precision.probe import keep_all, pipeline_of, read_logits, record
from foveate.tools.precision.prompts import built_in_probes, own_probes
from foveate.tools.precision.trial import Trials, trial

SHOWN = built_in_probes()[:1]


@pytest.fixture
def bundle(shallow_bundle: Path) -> Bundle:
    return Bundle.open(shallow_bundle, check="none")


def test_recorded_rows_are_what_the_layer_was_given(bundle: Bundle) -> None:
    layers = list(products_of(bundle))
    calls, logits = record(bundle, layers, SHOWN, threads=1)
    assert set(calls) == {layer.name for layer in layers}
    pipeline = pipeline_of(bundle, Backend(1))
    options = keep_all(bundle)
    features = pipeline.prepare(SHOWN[0].question, [SHOWN[0].picture], options).visual.features
    (call,) = calls["connector.linear_1"]
    np.testing.assert_allclose(call.rows.numpy(), features, atol=1e-5)  # 25 rows: all of them
    assert (call.low, call.high) == pytest.approx((min(features.min(), 0), max(features.max(), 0)), abs=1e-5)
    np.testing.assert_allclose(logits, read_logits(pipeline, SHOWN), atol=1e-4)


def test_a_trial_is_another_model_and_leaves_nothing(bundle: Bundle) -> None:
    before = sorted(path.name for path in (bundle.path / "onnx").iterdir())
    layers = list(products_of(bundle))
    wanted = read_logits(pipeline_of(bundle, Backend(1)), SHOWN)
    found = {}
    for words in ("fp32", "int8", "int4"):
        with trial(bundle, layers, PrecisionPlan(parse_precision(words))) as changed:
            assert changed.stage_path("decoder") != bundle.stage_path("decoder")
            found[words] = distance(read_logits(pipeline_of(changed, Backend(1)), SHOWN), wanted).relative
    assert found["fp32"] < 1e-5 < found["int8"] < found["int4"]
    assert sorted(path.name for path in (bundle.path / "onnx").iterdir()) == before


def test_a_second_trial_encodes_only_what_is_new(bundle: Bundle) -> None:
    layers, folder = list(products_of(bundle)), bundle.path / "onnx"
    plan = PrecisionPlan(parse_precision("int4"))
    raised = replace(plan, kernels={"connector.linear_1": "fp32", layers[-1].name: "int8-block"})
    alone = []
    for each in (plan, raised):
        with trial(bundle, layers, each) as changed:
            alone.append(read_logits(pipeline_of(changed, Backend(1)), SHOWN))
    with Trials(bundle, layers) as trials:
        for each, wanted in zip((plan, raised, plan), (*alone, alone[0]), strict=True):
            with trials.under(each) as changed:
                got = read_logits(pipeline_of(changed, Backend(1)), SHOWN)
            np.testing.assert_array_equal(got, wanted)
        first, second = (path.stat().st_size for path in sorted(folder.glob(".trial-weights-*")))
        assert second < first / 2
    assert not list(folder.glob(".trial-*"))


def test_errors_are_measured_when_they_are_asked_for() -> None:
    rows = torch.randn(9, 96, generator=torch.Generator().manual_seed(1))
    weight, loaded = torch.randn(96, 32, generator=torch.Generator().manual_seed(2)), []
    calls = [Call(rows, float(rows.min()), float(rows.max()))]
    errors = LayerErrors(calls, lambda: loaded.append("once") or weight, ("int4-block", "int8-row"))
    assert not loaded
    assert errors["int8-row"] == errors["int8-row"] == layer_errors(calls, weight, ["int8-row"])["int8-row"]
    assert loaded == ["once"]
    assert dict(errors) == layer_errors(calls, weight, ["int4-block", "int8-row"])
    assert errors.get("int8-block") is None


STAGE_SIZES = {"vision": 8, "projector": 2, "decoder": 8, "head": 1}


def _groups() -> list[list[LinearLayer]]:
    every = [f"{stage}.{i}" for stage, size in STAGE_SIZES.items() for i in range(size)]
    return [[LinearLayer(name, name.partition(".")[0], 64, 64, ("x",))] for name in every]


@pytest.mark.parametrize("seed", range(4))
def test_harm_that_adds_up_is_found_in_order(seed: int) -> None:
    harm = {
        group[0].name: h for group, h in zip(_groups(), np.random.default_rng(seed).random(19), strict=True)
    }

    def share(groups: Sequence[Group]) -> float:
        return sum(harm[group[0].name] for group in groups)

    found = list(most_harmful(_groups(), sum(harm.values()), share))
    assert [group[0].name for _, group in found] == sorted(harm, key=lambda name: -harm[name])
    assert [each for each, _ in found] == pytest.approx(sorted(harm.values(), reverse=True))


@pytest.mark.parametrize("worst", ["decoder.0", "decoder.7", "vision.3", "head.0"])
def test_one_run_that_stands_out_takes_few_measurements(worst: str) -> None:
    measured = []

    def share(groups: Sequence[Group]) -> float:
        measured.append(len(groups))
        return sum(10.0 if group[0].name == worst else 0.01 for group in groups)

    ranked = most_harmful(_groups(), 10.18, share)
    value, group = next(ranked)
    assert (group[0].name, value) == (worst, pytest.approx(10.0))
    assert len(measured) <= 5  # two splits by stage, three halvings of eight runs
    assert not list(most_harmful([], 1.0, share))


def test_runs_of_layers_go_up_until_the_logits_are_near_enough(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, words = list(products_of(bundle)), parse_precision("int4")
    plain = PrecisionPlan(words)
    _, wanted = record(bundle, layers, SHOWN, threads=1)
    with Trials(bundle, layers) as trials:
        judge = Judge(trials, SHOWN, wanted, 1, lambda what, done, total: None)
        known = judge.divergence(plain)
        assert judge.share(plain, known, layers) == pytest.approx(known, rel=1e-3)
        assert judge.share(plain, known, []) == pytest.approx(0, abs=1e-3 * known)
    monkeypatch.setitem(cast("dict[str, float]", LIMITS), "int4", known / 2)
    shown: list[str] = []
    plan = measured_plan(
        bundle, layers, plain, SHOWN, threads=1, progress=lambda what, done, total: shown.append(what)
    )
    assert 0 < len(plan.kernels) < len(layers)
    with Trials(bundle, layers) as trials:
        assert Judge(trials, SHOWN, wanted, 1, lambda *_: None).divergence(plan) <= known / 2
    assert {"reading probes", "measuring layers", "encoding", "looking for what harms"} <= set(shown)


def test_a_choice_says_what_it_found(bundle: Bundle) -> None:
    layers, said = list(products_of(bundle)), []
    plan = chooser(Settings(threads=1), said.append)(bundle, layers, parse_precision("vision=int8"))
    assert plan.measured
    assert {layer.name for layer in layers if layer.stage == "vision"} == set(plan.errors)
    assert "nats from fp32" in plan.reason
    assert plan.reason in said[-1]


def test_nothing_is_measured_on_request_or_where_all_is_fp32(bundle: Bundle) -> None:
    layers = list(products_of(bundle))
    plan = chooser(Settings(measure=False, threads=1))(bundle, layers, parse_precision("int8"))
    assert (plan.measured, plan.kernels) == (False, {})
    assert not chooser()(bundle, layers, parse_precision("fp32")).measured


def test_distance_ignores_a_constant() -> None:
    logits = np.array([[1.0, 2.0, 4.0]], np.float32)
    assert distance(logits + 7, logits).relative == pytest.approx(0, abs=1e-6)
    other = distance(logits[:, ::-1], logits)
    assert other.tokens == 0
    assert other.divergence == pytest.approx(
        sum(p * np.log(p / q) for p, q in zip(_soft([1, 2, 4]), _soft([4, 2, 1]), strict=True))
    )


def _soft(values: list[float]) -> list[float]:
    powers = [np.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def test_own_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures"):
        own_probes(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.png"):
        own_probes(tmp_path)
    Image.new("RGB", (20, 30)).save(tmp_path / "broken.png")
    (probe,) = own_probes(tmp_path)
    assert probe.picture.size == (20, 30)
    with pytest.raises(InputError, match="no pictures"):
        chooser(Settings(calibration=tmp_path / "absent"))
