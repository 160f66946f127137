"""Errors of kernels as computed are those of ONNX Runtime's own kernels; choices follow the limits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from foveate.export.precision import LinearLayer, PrecisionPlan
from foveate.export.precision.sensitivity import (
    CHEAPEST,
    LIMITS,
    Call,
    choose_kernels,
    layer_errors,
    next_better,
)
from foveate.tools.precision.auto import Machine, measure_machine, product, resolve

SHAPES = ((256, 96), (160, 64), (352, 48))  # k, n: blocks of 128, 32 and 32 rows


ALL = ("fp16", "int8", "int8-row", "int8-block", "int4-block")


def _inputs(k: int, *, outlier: bool) -> np.ndarray:
    rng = np.random.default_rng(k)
    x = rng.standard_normal((1, 40, k), np.float32)
    if outlier:
        x[0, 3, 7] = 90.0
    return x


def _call(x: np.ndarray, rows: slice = slice(None)) -> Call:
    return Call(torch.from_numpy(x[0, rows]), float(x.min()), float(x.max()))


@pytest.mark.parametrize("outlier", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_errors_are_those_of_the_real_kernels(target: str, shape: tuple[int, int], outlier: bool) -> None:
    k, n = shape
    weight = torch.randn(k, n, generator=torch.Generator().manual_seed(n)) * 0.1
    x = _inputs(k, outlier=outlier)
    wanted = x.astype(np.float64) @ weight.numpy().astype(np.float64)
    # Standard operators leave activations in float where weights come in blocks.
    kernels = ALL if target == "onnxruntime" else ("fp16", "int8", "int8-row")
    computed = layer_errors([_call(x)], weight, kernels)
    for kernel in kernels:
        (got,) = product(target, kernel, weight, threads=1).run(None, {"x": x})
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert computed[kernel] == pytest.approx(error, rel=0.1), kernel


@pytest.mark.parametrize(
    ("kernel", "most", "dtype"), [("int8-static", 127, np.int8), ("fp8", 448, ml_dtypes.float8_e4m3fn)]
)
def test_errors_of_measured_ranges_are_those_of_their_definition(kernel: str, most: int, dtype: type) -> None:
    """Weights by output and activations in one range, scales in float16, in plain numpy."""
    weight = torch.randn(160, 64, generator=torch.Generator().manual_seed(1)).numpy() * 1e-3
    x = _inputs(160, outlier=True)

    def shown(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        codes = np.clip(values / scale, -most, most)
        codes = (np.rint(codes) if dtype is np.int8 else codes).astype(dtype)
        return codes.astype(np.float32) * scale

    scales = [np.abs(weight).max(axis=0) / most, np.abs(x).max() / most]
    by_output, one = (np.asarray(each, np.float16).astype(np.float32) for each in scales)
    wanted = x[0] @ weight
    error = np.linalg.norm(shown(x[0], one) @ shown(weight, by_output) - wanted) / np.linalg.norm(wanted)
    computed = layer_errors([_call(x)], torch.from_numpy(weight), [kernel])[kernel]
    # Float32 sums in another order: some 1e-7 of the outputs, of which the error itself is a hundredth or so.
    assert computed == pytest.approx(error, rel=1e-4)


def test_the_range_is_that_of_the_whole_call_also_where_rows_are_sampled() -> None:
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    x = _inputs(256, outlier=True)
    sampled = layer_errors([_call(x, slice(8, None))], weight, ["int8"])["int8"]
    alone = layer_errors([_call(x[:, 8:])], weight, ["int8"])["int8"]
    assert sampled > 5 * alone


def test_an_outlier_costs_the_dynamic_kernel_and_not_those_by_row() -> None:
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    plan = PrecisionPlan({"vision": "int8"})
    layers = [LinearLayer(name, "vision", 256, 64, ("vision",)) for name in ("plain", "spiky", "never run")]
    kernels = ("int8", "int8-row", "int8-block")
    errors = {
        name: layer_errors([_call(_inputs(256, outlier=name == "spiky"))], weight, kernels)
        for name in ("plain", "spiky")
    }
    found = choose_kernels(plan, layers, errors)
    assert found.kernels == {"spiky": "int8-row"}
    assert found.measured
    assert found.errors["spiky"] > LIMITS["int8"] > found.errors["plain"] > 0


def test_a_layer_that_no_kernel_fits_stays_in_fp32() -> None:
    layer = LinearLayer("hopeless", "decoder", 64, 64, ("decoder",))
    errors = {"hopeless": {"int4-block": 0.9, "int8-row": 0.5, "int8-block": 0.2}}
    found = choose_kernels(PrecisionPlan({"decoder": "int4"}), [layer], errors)
    assert found.kernels == {"hopeless": "fp32"}
    assert found.errors == {"hopeless": 0.9}


def test_zeros_have_no_error() -> None:
    call = Call(torch.zeros(3, 64), 0.0, 0.0)
    assert layer_errors([call], torch.ones(64, 64), ALL) == dict.fromkeys(ALL, 0.0)


def test_the_next_better_kernel_halves_the_error() -> None:
    errors = {"int4-block": 0.1, "int8-row": 0.06, "int8-block": 0.02}
    assert next_better(CHEAPEST["int4-block"], errors) == "int8-block"
    assert next_better(CHEAPEST["int8-block"], errors) == "fp32"
    assert next_better(CHEAPEST["int4-block"], {}) == "fp32"


LAYERS = (
    LinearLayer("v", "vision", 1024, 1024, ("vision",)),
    LinearLayer("d", "decoder", 8192, 8192, ("decoder",)),
)
AUTO = dict.fromkeys(("vision", "projector", "decoder", "head"), "auto")
FAST, SLOW = {"fp32": 1.0, "int8": 3.0}, {"fp32": 1.0, "int8": 0.8}


def test_auto_takes_eight_bits_where_they_are_faster() -> None:
    words, reason = resolve(AUTO, LAYERS, Machine(FAST, FAST, 2**34))
    assert set(words.values()) == {"int8"}
    assert "3.0 times" in reason
    assert "GiB" in reason


def test_auto_stays_in_fp32_where_they_are_not() -> None:
    words, reason = resolve(AUTO, LAYERS, Machine(SLOW, SLOW, 2**34))
    assert set(words.values()) == {"fp32"}
    assert reason.startswith("fp32:")


def test_auto_shrinks_what_would_not_fit() -> None:
    words, reason = resolve(AUTO, LAYERS, Machine(SLOW, SLOW, 2**28))  # 260 MiB in fp32, 65 in 8 bits
    assert set(words.values()) == {"int8"}
    assert "fp32 would not fit" in reason
    words, reason = resolve(AUTO, LAYERS, Machine(FAST, FAST, 50 * 2**20))
    assert (words["vision"], words["decoder"]) == ("int8", "int4")
    assert "8 bits would not fit" in reason


def test_auto_leaves_words_alone_that_were_said() -> None:
    said = {**AUTO, "vision": "fp32", "decoder": "int4"}
    words, _ = resolve(said, LAYERS, Machine(FAST, FAST, None))
    assert (words["vision"], words["decoder"], words["head"]) == ("fp32", "int4", "int8")


def test_the_machine_can_be_measured() -> None:
    found = measure_machine("onnxruntime", threads=1)
    assert found.rows["fp32"] == found.row["fp32"] == 1.0
    assert found.rows["int8"] > 0
