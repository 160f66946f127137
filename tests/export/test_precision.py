"""Kernels against their definition in numpy, on both targets; what is shared, what stays, what is refused."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny
import torch
from torch import Tensor

from foveate.export import export_model
from foveate.export.blocks.linear import Linear
from foveate.export.graph_file import write_graph
from foveate.export.precision import KERNELS, LinearLayer, PrecisionPlan, find_layers, parse_precision
from foveate.export.precision.forms import find_forms
from foveate.export.precision.quantize import by_block, by_column, pack_nibbles
from foveate.export.precision.rewrite import rewrite
from foveate.export.precision.storage import store
from foveate.export.stage import Stage, StageModule, TensorSpec
from foveate.export.targets import find_target
from foveate.export.trace import read_parameters, trace_stage
from foveate.export.weights import WEIGHTS_FILE, plan_placements, write_weights
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import UsageError

K, N, HIDDEN = 192, 72, 160
INPUTS = (TensorSpec("x", "float32", ("batch", "sequence", K)),)
OUTPUTS = (
    TensorSpec("first", "float32", ("batch", "sequence", N)),
    TensorSpec("second", "float32", ("batch", "sequence", N)),
    TensorSpec("third", "float32", ("batch", "sequence", 48)),
)
QUANTIZED = tuple(kernel for kernel in KERNELS if kernel != "fp32")
# GPUs' own kernels are in test_typed.py.
CPU_KERNELS = [(target, kernel) for target in ("onnxruntime", "portable") for kernel in find_forms(target)]


class Products(StageModule):
    """Two layers of one input, one of them with a bias; a chain; and one too small to gain."""

    def __init__(self) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self.one = Linear(K, N, bias=True)
        self.two = Linear(K, N, bias=False)
        self.small = Linear(N, 48, bias=False)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        first, second = self.one(feeds["x"]), self.two(feeds["x"])
        return {"first": first, "second": second, "third": self.small(torch.tanh(first))}


STAGE = Stage("decoder", INPUTS, OUTPUTS, Products)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = {name: parameter.shape for name, parameter in read_parameters(STAGE).items()}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


@functools.cache
def _traced(target: str) -> ir.Model:
    return trace_stage(STAGE, find_target(target))


def _open(target: str, kernel: str, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Writes the graph and its weights; returns the graph's path."""
    parameters = read_parameters(STAGE)
    forms = {layer.weight: find_forms(target)[kernel] for layer in find_layers({"decoder": parameters})}
    loaders = {name: lambda value=value: value for name, value in weights.items()}
    stored, found = store(parameters, loaders, forms, half_table=None)
    placements, _ = plan_placements(stored)
    model = _traced(target).clone()
    rewrite(model, forms)
    write_graph(model, folder / "graph.onnx", placements)
    write_weights(folder / WEIGHTS_FILE, placements, found, lambda done: None)
    return folder / "graph.onnx"


def _quantized(x: np.ndarray, kernel: str) -> np.ndarray:
    """Activations `[r, k]` as a kernel shows them, by its definition."""
    if kernel == "int8":
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        scale = (high - low) / 255 or 1.0
        zero = round(-low / scale)
        return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    width = {"int8-row": x.shape[1], "int8-block": 64, "int4-block": 64}.get(kernel)
    if width is None:
        return x
    blocks = x.reshape(x.shape[0], -1, width)
    scale = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / 127, 1e-30)
    return (np.rint(blocks / scale) * scale).reshape(x.shape)


def _weight(weight: Tensor, kernel: str) -> np.ndarray:
    if kernel == "fp16":
        return weight.half().float().numpy()
    if kernel.endswith("block"):
        return by_block(weight, int(kernel[3]), 64).dequantized().numpy()
    return by_column(weight).dequantized().numpy()


@pytest.mark.parametrize(("target", "kernel"), CPU_KERNELS)
def test_kernels_compute_what_they_are_defined_to(
    target: str, kernel: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    session = onnxruntime.InferenceSession(_open(target, kernel, weights, tmp_path))
    x = np.random.default_rng(5).standard_normal((2, 5, K), dtype=np.float32)
    x[1, 2] *= 20  # a row that dwarfs the others
    rows = x.reshape(-1, K)
    # Standard block-wise weights are multiplied by the activations as they are, unless the runtime fuses.
    exact = target == "portable" and kernel.endswith("block")
    shown = rows if exact else _quantized(rows, kernel)
    first = shown @ _weight(weights["one.weight"], kernel) + weights["one.bias"].numpy()
    second = shown @ _weight(weights["two.weight"], kernel)
    got = session.run(None, {"x": x})
    tolerance = 0.02 * float(np.abs(second).max()) if exact else 2e-4 * float(np.abs(second).max())
    assert np.abs(got[0].reshape(first.shape) - first).max() < tolerance
    assert np.abs(got[1].reshape(second.shape) - second).max() < tolerance
    # The small layer stayed what it was.
    third = np.tanh(got[0]) @ weights["small.weight"].numpy()
    assert np.abs(got[2] - third).max() < 1e-4


def test_rows_do_not_depend_on_one_another(weights: dict[str, Tensor], tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(_open("onnxruntime", "int8-row", weights, tmp_path))
    x = np.random.default_rng(6).standard_normal((3, 4, K), dtype=np.float32)
    x[1] *= 50
    x[2, 1:] = 0.0
    together = session.run(None, {"x": x})
    for row in range(3):
        alone = session.run(None, {"x": x[row : row + 1]})
        assert all((a[0] == b[row]).all() for a, b in zip(alone, together, strict=True))
    assert session.run(None, {"x": x[:, :0]})[0].shape == (3, 0, N)


def test_products_of_one_input_quantize_it_once_and_take_the_bias(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    ops = [node.op_type for node in onnx.load(_open("onnxruntime", "int8", weights, tmp_path)).graph.node]
    assert ops.count("DynamicQuantizeLinear") == 1
    assert ops.count("MatMulIntegerToFloat") == 2
    assert ops.count("MatMul") == 1
    assert "Add" not in ops


@pytest.mark.parametrize(
    ("kernel", "fused"), [("int8", "MatMulIntegerToFloat"), ("int4-block", "MatMulNBits")]
)
def test_standard_operators_become_onnxruntime_s_fused_ones(
    kernel: str, fused: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    graph = _open("portable", kernel, weights, tmp_path)
    assert {node.domain for node in onnx.load(graph, load_external_data=False).graph.node} == {""}
    onnxruntime.InferenceSession(graph, options)
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    assert [node.op_type for node in optimized.graph.node].count(fused) == 2


def test_weights_of_four_bits_use_the_whole_range() -> None:
    weight = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    found = by_block(weight, 4, 128)
    assert found.codes.min() == -8
    assert found.codes.max() == 7
    plain = weight.reshape(2, 128, 8)
    scale = plain.abs().amax(dim=1, keepdim=True) / 7
    usual = ((plain / scale).round().clamp(-8, 7) * scale).reshape(256, 8)
    assert (found.dequantized() - weight).square().sum() < (usual - weight).square().sum()
    assert by_block(torch.zeros(40, 3), 4, 32).dequantized().abs().max() == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_large_weight_is_rounded_as_its_columns_are(bits: int) -> None:
    k, n = 1000, 700  # in several pieces, the last block of inputs and the last piece not full
    weight = torch.randn(k, n, generator=torch.Generator().manual_seed(3))
    whole = by_block(weight, bits, 64)
    for column in (0, 261, 262, 263, 523, 524, n - 1):
        alone = by_block(weight[:, column : column + 1], bits, 64)
        assert torch.equal(whole.codes[:, column : column + 1], alone.codes)
        assert torch.equal(whole.scale[:, column : column + 1], alone.scale)


def test_packing_puts_the_first_value_into_the_low_half() -> None:
    assert pack_nibbles(torch.tensor([1, 2, -1, 7, 5])).tolist() == [0x21, 0x7F, 0x05]


def test_words() -> None:
    plain = {"vision": "fp32", "projector": "fp32", "decoder": "fp32", "head": "fp32"}
    assert parse_precision("fp32") == plain
    assert parse_precision("int4") == plain | {
        "vision": "int8",
        "projector": "int8",
        "decoder": "int4",
        "head": "int8",
    }
    assert parse_precision("int8, head=fp32")["head"] == "fp32"
    assert parse_precision("decoder=int8") == plain | {"decoder": "int8"}
    for wrong in ("int3", "heart=int8", "head=int9", ""):
        with pytest.raises(UsageError, match="Wanted"):
            parse_precision(wrong)


def test_plans_are_checked_against_the_model() -> None:
    layers = find_layers({"decoder": read_parameters(STAGE)})
    assert [layer.name for layer in layers] == ["one", "two"]
    PrecisionPlan({"decoder": "int8"}, {"two": "fp32"}).check(layers, QUANTIZED, "onnxruntime")
    with pytest.raises(UsageError, match="small"):
        PrecisionPlan({}, {"small": "int8"}).check(layers, QUANTIZED, "onnxruntime")
    with pytest.raises(UsageError, match="int4-block for one"):
        PrecisionPlan({"decoder": "int4"}).check(layers, ("int8",), "elsewhere")
    with pytest.raises(UsageError, match="unknown kernel"):
        PrecisionPlan({}, {"one": "int2"})


def test_an_export_is_written_as_it_was_chosen(tmp_path: Path) -> None:
    odd = "language_model.layers.0.mlp.down_proj"

    def choose(bundle: Bundle, layers: Sequence[LinearLayer], words: Mapping[str, str]) -> PrecisionPlan:
        for layer in layers:
            for graph in layer.graphs:
                assert _places(bundle, graph)[layer.weight]
        assert {layer.stage for layer in layers} == {"vision", "projector", "decoder", "head"}
        return PrecisionPlan(words, {odd: "int4-block"}, {odd: 0.5}, measured=True, reason="to be seen")

    checkpoint = tiny.make_llava(tmp_path / "checkpoint", vision_options={"intermediate_size": 96})
    bundle = export_model(
        checkpoint, tmp_path / "bundle", plan=["text-relevance@2"], dtype="int8,head=fp32", choose=choose
    )
    precision = bundle.manifest.precision
    assert precision.stages == {"vision": "int8", "projector": "int8", "decoder": "int8", "head": "fp32"}
    assert {name: (layer.kernel, layer.error) for name, layer in precision.layers.items()} == {
        odd: ("int4-block", 0.5)
    }
    assert (precision.measured, precision.reason) == (True, "to be seen")
    whole, first, last = (_places(bundle, name) for name in ("decoder", "decoder_0", "decoder_1"))
    assert whole == first | last
    assert {f"{odd}.weight.int4", f"{odd}.weight.scale", "lm_head.weight"} <= set(whole)
    assert {name for name in whole if name.endswith("proj.weight")} == set()
    assert "language_model.embed_tokens.weight.half" in _places(bundle, "embed")
    assert not (bundle.path / "fp32").exists()
    for name in bundle.manifest.stages:
        onnxruntime.InferenceSession(bundle.stage_path(name))


def _places(bundle: Bundle, stage: str) -> dict[str, tuple[str, ...]]:
    """Where the weights file holds each parameter of a graph."""
    graph = onnx.load(bundle.stage_path(stage), load_external_data=False).graph
    return {value.name: tuple(e.value for e in value.external_data) for value in graph.initializer}
