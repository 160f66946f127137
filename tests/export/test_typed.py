"""Half precision on GPUs: the typed pass and its kernels against float32 and numpy; words and ranges."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor

from foveate.export.blocks.linear import Linear
from foveate.export.graph_file import write_graph
from foveate.export.precision import LinearLayer, PrecisionPlan, find_layers, parse_precision
from foveate.export.precision.forms import find_forms
from foveate.export.precision.quantize import by_block
from foveate.export.precision.rewrite import rewrite
from foveate.export.precision.storage import store
from foveate.export.precision.typed import is_cache, type_graph, typed_stage
from foveate.export.precision.typed_forms import tune
from foveate.export.precision.words import HALVES
from foveate.export.stage import Stage, StageModule, TensorSpec
from foveate.export.targets import default_layouts, find_target
from foveate.export.trace import read_parameters, trace_stage
from foveate.export.weights import WEIGHTS_FILE, plan_placements, write_weights
from foveate.runtime.errors import UsageError
from foveate.tools.parity.rounded import in_float32

B, S, G, HEADS, E, CAPACITY = 1, 5, 2, 4, 32, 24  # the CPU's GroupQueryAttention wants one row behind a cache
WIDTH = HEADS * E
INPUTS = (
    TensorSpec("hidden", "float32", ("batch", "sequence", WIDTH)),
    TensorSpec("length", "int64", ("batch",)),
    TensorSpec("cache_length", "int64", ("batch",)),
    TensorSpec("past_key_0", "float32", ("batch", G, "capacity_0", E)),
    TensorSpec("past_value_0", "float32", ("batch", G, "capacity_0", E)),
)
OUTPUTS = (
    TensorSpec("hidden_out", "float32", ("batch", "sequence", WIDTH)),
    TensorSpec("present_key_0", "float32", ("batch", G, "capacity_0", E)),
    TensorSpec("present_value_0", "float32", ("batch", G, "capacity_0", E)),
)
NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
GPU = ("cuda", "tensorrt")
KERNELS = [
    (target, kernel, half)
    for target in GPU
    for kernel in find_forms(target)
    for half in NUMPY
    if HALVES.get(kernel, half) == half  # kernels with a type of their own
]


class Block(StageModule):
    """Attention around a residual, as a decoder layer has it."""

    def __init__(self, target: str) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self.target = find_target(target)
        self.q_proj = Linear(WIDTH, WIDTH, bias=True)
        self.k_proj, self.v_proj = Linear(WIDTH, G * E, bias=False), Linear(WIDTH, G * E, bias=False)
        self.o_proj = Linear(WIDTH, WIDTH, bias=False)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        x = feeds["hidden"]
        mixed, key, value = self.target.cached_attention(
            self.q_proj(x),
            self.k_proj(x),
            self.v_proj(x),
            feeds["past_key_0"],
            feeds["past_value_0"],
            feeds["length"],
            feeds["cache_length"],
            num_heads=HEADS,
            num_kv_heads=G,
            scale=E**-0.5,
        )
        return {"hidden_out": x + self.o_proj(mixed), "present_key_0": key, "present_value_0": value}


@functools.cache
def _stage(target: str) -> Stage:
    return Stage("decoder", INPUTS, OUTPUTS, lambda: Block(target))


@functools.cache
def _traced(target: str) -> ir.Model:
    return trace_stage(_stage(target), find_target(target))


@functools.cache
def _weights() -> Mapping[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = {name: parameter.shape for name, parameter in read_parameters(_stage("tensorrt")).items()}
    return {name: torch.randn(shape, generator=draw) * WIDTH**-0.5 for name, shape in shapes.items()}


def _feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    caches = {
        f"past_{part}_0": rng.standard_normal((B, G, CAPACITY, E), np.float32) for part in ("key", "value")
    }
    return {
        "hidden": rng.standard_normal((B, S, WIDTH), np.float32),
        "length": np.array([S]),
        "cache_length": np.array([7]),
        **caches,
    }


LARGEST = float(np.abs(_feeds()["hidden"]).max()) * 1.5


def _open(target: str, kernel: str, half: str | None, folder: Path) -> ir.Model:
    """Writes the graph with its weights; the typed pass included where there is a half type."""
    parameters = read_parameters(_stage(target))
    layers = find_layers({"decoder": parameters})
    form = None if kernel == "fp32" else tune(find_forms(target)[kernel], half, LARGEST)
    forms = {layer.weight: form for layer in layers if form is not None}
    loaders = {name: lambda value=value: value for name, value in _weights().items()}
    stored, found = store(parameters, loaders, forms, half_table=None)
    placements, _ = plan_placements(stored)
    model = _traced(target).clone()
    rewrite(model, forms)
    if half is not None:
        type_graph(model, half)
    write_graph(model, folder / "graph.onnx", placements)
    write_weights(folder / WEIGHTS_FILE, placements, found, lambda done: None)
    return ir.load(folder / "graph.onnx")


def _run(model: ir.Model, folder: Path) -> dict[str, np.ndarray]:
    """Outputs in float32; half types are computed in float32 and rounded behind every operator."""
    for half in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        in_float32(model, half)
    ir.save(model, folder / "run.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "run.onnx", options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, _feeds()), strict=True))


def _filled(outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What means something: rows that are no padding, slots that were written."""
    feeds = _feeds()
    found = []
    for row, (length, start) in enumerate(zip(feeds["length"], feeds["cache_length"], strict=True)):
        found.append(outputs["hidden_out"][row, :length])
        found += [outputs[f"present_{part}_0"][row, :, : start + length] for part in ("key", "value")]
    return found


def _off(got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    pairs = list(zip(_filled(got), _filled(wanted), strict=True))
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The block in float32."""
    folder = tmp_path_factory.mktemp("exact")
    return _run(_open("tensorrt", "fp32", None, folder), folder)


# Relative rounding of a half type, of 8 bits, of 4 bits and of three bits behind the point.
SIZES = {
    "fp16": 1e-3,
    "bf16": 8e-3,
    "int8-static": 0.02,
    "int8-weight": 0.01,
    "int4-weight": 0.12,
    "fp8": 0.05,
}


@pytest.mark.parametrize(("target", "kernel", "half"), KERNELS)
def test_a_typed_block_is_near_float32(
    target: str, kernel: str, half: str, exact: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = _open(target, kernel, half, tmp_path)
    types = {value.name: str(value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)}
    assert {name for name, dtype in types.items() if dtype == half.upper()} == {
        name for name in types if is_cache(str(name))
    }
    off = _off(_run(model, tmp_path), exact)
    assert off < SIZES[kernel] + (8e-3 if half == "bfloat16" else 1e-3)
    assert off > 1e-5, "nothing was rounded"


@pytest.mark.parametrize("target", GPU)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_products_are_rounded_where_they_say(target: str, half: str, tmp_path: Path) -> None:
    """New slots of the value cache are one product: rounded operands, a rounded result, nothing else."""
    kernel = {"float16": "fp16", "bfloat16": "bf16"}[half]
    got = _run(_open(target, kernel, half, tmp_path), tmp_path)["present_value_0"]
    dtype, feeds = NUMPY[half], _feeds()
    x = feeds["hidden"].astype(dtype).astype(np.float32)
    weight = _weights()["v_proj.weight"].numpy().astype(dtype).astype(np.float32)
    product = (x @ weight).reshape(B, S, G, E).transpose(0, 2, 1, 3)
    for row, start in enumerate(feeds["cache_length"]):
        new = got[row, :, start : start + feeds["length"][row]]
        wanted = product[row, :, : new.shape[1]]
        step = np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float32)
        step = np.abs(wanted) * 2**-7 if half == "bfloat16" else step
        assert (np.abs(new - wanted) <= step).all()
        old = feeds["past_value_0"][row, :, :start].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(got[row, :, :start], old)


def test_casts_stand_only_where_the_stream_is_left_and_entered(tmp_path: Path) -> None:
    graph = _open("tensorrt", "fp16", "float16", tmp_path).graph
    for node in graph:
        if node.op_type == "TensorScatter":
            assert {str(value.dtype) for value in node.inputs[:2] if value is not None} == {"FLOAT16"}
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT16.value:
            source = node.inputs[0]
            assert source is not None
            assert source.producer() is None or source.producer().op_type != "Cast"  # type: ignore[union-attr]
    products = [node for node in graph if node.op_type == "MatMul"]
    assert len(products) == 4
    # The value goes from its product into the cache, and the mixed values into theirs, without leaving half.
    value, mixed = products[2], products[3]
    assert "Cast" not in _between(value.outputs[0], "TensorScatter")
    assert mixed.inputs[0] is not None
    assert str(mixed.inputs[0].dtype) == "FLOAT16"
    assert "Cast" not in _behind(mixed.inputs[0], "Attention")


def _between(value: ir.Value, op: str) -> list[str]:
    """Operators from a value on to the first `op`; the first reader of each."""
    found: list[str] = []
    while (node := next(iter(value.uses())).node).op_type != op:
        found.append(node.op_type)
        value = node.outputs[0]
    return found


def _behind(value: ir.Value, op: str) -> list[str]:
    """Operators from a value back to the last `op`."""
    found: list[str] = []
    while (node := value.producer()) is not None and node.op_type != op:
        found.append(node.op_type)
        assert node.inputs[0] is not None
        value = node.inputs[0]
    assert node is not None, f"no {op} is behind it"
    return found


def test_a_stage_is_declared_as_its_graph_is(tmp_path: Path) -> None:
    graph = _open("tensorrt", "bf16", "bfloat16", tmp_path).graph
    stage = typed_stage(_stage("tensorrt"), "bfloat16")
    for specs, values in ((stage.inputs, graph.inputs), (stage.outputs, graph.outputs)):
        wanted = [(spec.name, "FLOAT" if spec.dtype == "float32" else spec.dtype.upper()) for spec in specs]
        assert [(value.name, str(value.dtype)) for value in values] == wanted
    assert typed_stage(_stage("tensorrt"), None) == _stage("tensorrt")


def test_scales_of_blocks_are_positive_where_they_have_to_be() -> None:
    weight = torch.randn(256, 24, generator=torch.Generator().manual_seed(2))
    signed, positive = by_block(weight, 4, 128), by_block(weight, 4, 128, positive=True)
    assert (signed.scale < 0).any()
    assert (positive.scale > 0).all()
    assert (positive.codes.min(), positive.codes.max()) == (-8, 7)
    errors = [float((each.dequantized() - weight).norm() / weight.norm()) for each in (signed, positive)]
    assert errors[0] < errors[1] < 1.1 * errors[0]


# --- words --------------------------------------------------------------------------------------------------


def test_words_of_each_target() -> None:
    half = dict.fromkeys(("vision", "projector", "decoder", "head"), "fp16")
    assert parse_precision("fp16", "tensorrt") == parse_precision("fp16", "cuda") == half
    assert parse_precision("decoder=int4", "tensorrt") == half | {"decoder": "int4"}
    assert (
        parse_precision("int4", "tensorrt") == parse_precision("int4", "cuda") == half | {"decoder": "int4"}
    )
    assert parse_precision("int8", "tensorrt")["head"] == "int8"
    assert parse_precision("int8", "cuda")["head"] == "fp16"
    for words, target in (("fp32", "cuda"), ("fp8", "cuda"), ("bf16", "onnxruntime"), ("auto", "tensorrt")):
        with pytest.raises(UsageError, match="Wanted"):
            parse_precision(words, target)
    with pytest.raises(UsageError, match="--target portable"):
        parse_precision("vision=fp32", "cuda")
    assert default_layouts("tensorrt") == default_layouts("cuda") == ("segmented",)
    assert default_layouts("portable") == ("fused", "segmented")


def test_the_half_type_is_the_one_that_is_named() -> None:
    def plan(words: str, target: str = "tensorrt") -> PrecisionPlan:
        return PrecisionPlan(parse_precision(words, target), target=target)

    assert plan("int4").half("decoder") == plan("fp16").half("vision") == "float16"
    assert plan("int4,head=bf16").half("decoder") == "bfloat16"
    assert plan("vision=fp32,decoder=bf16").half("vision") is None
    assert plan("fp32").table() is None
    assert plan("bf16").table() == "bfloat16"
    assert plan("fp16", "onnxruntime").half("decoder") is None
    assert plan("fp16", "onnxruntime").table() == "float16"


def test_blocks_that_do_not_come_out_even_stay_in_half() -> None:
    plan = PrecisionPlan(parse_precision("int4,head=bf16", "tensorrt"), target="tensorrt")
    even, odd = (LinearLayer(str(k), "decoder", k, 64, ("decoder",)) for k in (128, 96))
    assert (plan.kernel(even), plan.kernel(odd), plan.usual(odd)) == ("int4-weight", "bf16", "int4-weight")


def test_ranges_have_to_be_known() -> None:
    layers = [LinearLayer("one", "decoder", 64, 64, ("decoder",))]
    plan = PrecisionPlan(parse_precision("int8", "tensorrt"), target="tensorrt")
    with pytest.raises(UsageError, match="1 layers that were not measured, one first"):
        plan.check_ranges(layers)
    PrecisionPlan(plan.stages, target="tensorrt", ranges={"one": 3.0}).check_ranges(layers)
    PrecisionPlan(plan.stages, {"one": "fp16"}, target="tensorrt").check_ranges(layers)
