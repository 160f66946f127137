"""Measuring an fp32 bundle: recorded is what layers saw, trials leave nothing behind, plans follow errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny.products import products_of

from foveate.export.precision import PrecisionPlan, parse_precision
from foveate.runtime.backends.onnxruntime import Backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import InputError
from foveate.tools.precision.choose import Settings, chooser
from foveate.tools.precision.distance import distance
from foveate.tools.precision.probe import keep_all, pipeline_of, read_logits, record
from foveate.tools.precision.prompts import built_in_probes, own_probes
from foveate.tools.precision.trial import trial

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
