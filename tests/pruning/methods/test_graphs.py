"""Every registered method, traced alone: its graph chooses and merges as its oracle does.

A new method file is here by itself. `VARIANTS` adds options that change what is traced; they stand in the
same graph. What the modules do before they are traced is tested file by file next to this one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence

import onnx
import onnxruntime as ort
import pytest
import torch
import twins
from torch import Tensor, nn
from torch.export import Dim
from twins import Budget

from foveate.export.targets.onnxruntime import OPSET
from foveate.export.translations import TRANSLATIONS
from foveate.pruning.budget import Budget as Asked
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.registry import list_methods, make_method
from foveate.pruning.selection import Selection
from foveate.pruning.spec import Site
from foveate.runtime.errors import UsageError

Options = Mapping[str, object]

# Method -> further options whose graphs differ. Options of the knee methods are in ../conftest.py.
VARIANTS: dict[str, Sequence[Options]] = {
    "prumerge": ({"plus": True, "neighbours": 5},),
    "visionzip": ({"score": "received"},),
    "fastv": ({"query": "all"},),
}

# What methods use of the operators that ONNX Runtime and TensorRT (onnx-tensorrt) both have. Loop: the greedy
# choices of pruning/greedy.py.
ALLOWED_OPS = {
    *(
        "Abs",
        "Add",
        "And",
        "ArgMax",
        "ArgMin",
        "Cast",
        "CastLike",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "Cos",
    ),
    *("Div", "Equal", "Erf", "Exp", "Expand", "Floor", "Gather", "GatherElements", "Gelu", "Greater"),
    *("GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop"),
    *("MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax"),
    *(
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
    ),
    *("Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where"),
}

ENCODER = ("features", "cls", "query", "key", "hidden", "extra", "projected", "prompt", "text")
DECODER = (
    *("query", "key", "query_plain", "key_plain", "hidden", "embedded"),
    *("token_role", "query_index", "length", "entered"),
)
# Axes of the graph's inputs: free ones by a letter ("n" only for methods that take any number of candidates);
# what is not listed is `[b]`.
ENCODER_AXES = {
    **dict.fromkeys(("features", "projected"), ("b", "n", "")),
    **dict.fromkeys(("query", "key", "hidden"), ("", "b", "n", "")),
    **dict.fromkeys(("extra",), ("b", "", "")),
}
DECODER_AXES = {
    **dict.fromkeys(("query", "key", "query_plain", "key_plain"), ("b", "", "s", "")),
    **dict.fromkeys(("hidden", "embedded"), ("b", "s", "")),
    **{"token_role": ("b", "s"), "query_index": ("b", "t")},
}

GRID = (4, 4)
SHAPE = twins.model_shape(GRID)
ENCODER_KINDS = ("random", "clusters")
DECODER_KINDS = ("random", "several images", "mixed batch", "decode")
BUDGETS = (
    (Budget(), Budget(keep_ratio=0.4, seed=3), Budget(keep_tokens=5)),
    (Budget(keep_ratio=1.0), Budget(), Budget(keep_tokens=1)),
)


class Graph(nn.Module):
    """Evidence as tensors in; order, count and, where a method merges, features of each variant out."""

    def __init__(self, methods: Sequence[PruningMethod], site: str) -> None:
        super().__init__()
        self.methods, self.site = nn.ModuleList(methods), site
        self.names: tuple[str, ...] = ()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=True))
        budget = Asked(given["keep_ratio"], given["keep_tokens"])
        outputs: list[Tensor] = []
        for method in self.methods:
            assert isinstance(method, PruningMethod)
            evidence = encoder(method, given) if self.site == "encoder" else decoder(given)
            chosen = method(evidence, budget, given["seed"] if method.needs_seed else None)
            outputs += [chosen.order, chosen.count]
            outputs += [] if chosen.features is None else [chosen.features]
        return tuple(outputs)


def encoder(method: PruningMethod, given: Mapping[str, Tensor]) -> EncoderEvidence:
    features, shape = given["features"], SHAPE.encoder
    layers = method.layers(shape)
    return EncoderEvidence(
        features=features,
        patches=features,
        cls=given["cls"],
        query={i: given["query"][i] for i in layers},
        key={i: given["key"][i] for i in layers},
        num_heads=twins.HEADS,
        pool=lambda score: score,
        tile=torch.zeros_like(features[:, :, 0], dtype=torch.int64),
        prompt=given["prompt"],
        projected=given["projected"],
        hidden={i: given["hidden"][i] for i in method.hidden_layers(shape)},
        extra=given.get("extra"),
        text=given["text"],
    )


def decoder(given: Mapping[str, Tensor]) -> DecoderEvidence:
    return DecoderEvidence(**{name: given[name] for name in DECODER}, scale=twins.SCALE)  # type: ignore[arg-type]


def feeds_of(
    evidence: EncoderEvidence | DecoderEvidence, budget: Asked, seed: Tensor | None
) -> dict[str, Tensor]:
    """The graph's inputs: layers stacked, zeros for those that were not asked for."""
    asked = {"keep_ratio": budget.keep_ratio, "keep_tokens": budget.keep_tokens}
    asked["seed"] = torch.zeros_like(budget.keep_tokens) if seed is None else seed
    if isinstance(evidence, DecoderEvidence):
        return {name: getattr(evidence, name).contiguous() for name in DECODER} | asked
    b, n, w = evidence.features.shape
    found = {name: getattr(evidence, name) for name in ENCODER}
    for name, depth in (("query", twins.LAYERS), ("key", twins.LAYERS), ("hidden", twins.LAYERS + 1)):
        rows = torch.zeros(b, n + 1, w)
        found[name] = torch.stack([found[name].get(i, rows) for i in range(depth)])
    return {name: value.contiguous() for name, value in found.items() if value is not None} | asked


def build(name: str, site: str) -> Graph:
    """The method and its variants, with seeded weights where it has some."""
    variants = ({}, *VARIANTS.get(name, ()))
    return Graph([twins.build(name, site, options, grid=GRID) for options in variants], site)


def takes_any_size(name: str) -> bool:
    """Whether an encoder method works without knowing the grid: then the number of candidates is free."""
    method, bare = make_method(name, {}, Site.ENCODER), SHAPE.encoder._replace(grid=None)
    try:
        method.build(SHAPE._replace(encoder=bare, candidates=None))
        method.layers(bare)
    except UsageError:
        return False
    return True


def trace(graph: Graph, size_is_free: bool) -> onnx.ModelProto:
    """The graph, traced on a batch of 3 (encoder) or 2."""
    evidence: EncoderEvidence | DecoderEvidence = twins.decoder_evidence(0, b=2)
    if graph.site == "encoder":
        method = graph.methods[0]
        assert isinstance(method, PruningMethod)
        evidence = twins.asked_for(method, twins.encoder_evidence(0, b=3, grid=GRID), GRID)
    size = len(evidence[0]) if graph.site == "decoder" else 3
    given = feeds_of(evidence, Asked(torch.zeros(size), torch.zeros(size, dtype=torch.int64)), None)
    graph.names = tuple(given)
    axes = ENCODER_AXES if graph.site == "encoder" else DECODER_AXES
    free = [axes.get(name, ("b",)) for name in given]
    shapes = [
        {i: Dim.DYNAMIC for i, axis in enumerate(each) if axis and (axis != "n" or size_is_free)}
        for each in free
    ]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            tuple(given.values()),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=list(given),
            dynamic_shapes=(tuple(shapes),),
            custom_translation_table=TRANSLATIONS,
        )
    assert program is not None
    return program.model_proto


def runner(session: ort.InferenceSession, graph: Graph, number: int) -> twins.Run:
    """The graph's variant `number` as if it were the method."""
    outputs = len(session.get_outputs()) // len(graph.methods)
    used = {each.name for each in session.get_inputs()}

    def run(evidence: EncoderEvidence | DecoderEvidence, budget: Asked, seed: Tensor | None) -> Selection:
        feeds = {n: v.numpy() for n, v in feeds_of(evidence, budget, seed).items() if n in used}
        found = [torch.from_numpy(each) for each in session.run(None, feeds)]
        order, count, *features = found[outputs * number : outputs * (number + 1)]
        return Selection(order, count, features=features[0] if features else None)

    return run


CUTS = [(info.name, str(site)) for info in list_methods() for site in info.sites if site is not Site.LAYERS]


@pytest.mark.parametrize(("name", "site"), CUTS)
def test_graph(name: str, site: str) -> None:
    graph = build(name, site)
    free = site == "encoder" and takes_any_size(name)
    proto = trace(graph, free)
    assert {node.op_type for node in nodes(proto.graph)} <= ALLOWED_OPS
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), settings, ["CPUExecutionProvider"])
    for number, options in enumerate(({}, *VARIANTS.get(name, ()))):
        method, run = graph.methods[number], runner(session, graph, number)
        assert isinstance(method, PruningMethod)
        compared = rows = 0
        for seed, asked in enumerate(BUDGETS):
            for kind in ENCODER_KINDS if site == "encoder" else DECODER_KINDS:
                rows += len(asked)
                if site == "decoder":
                    given = twins.decoder_evidence(seed, b=3, kind=kind)
                    compared += twins.compare_decoder(name, options, given, asked, method=method, run=run)
                    continue
                grid = (3, 3) if free and seed else GRID
                seen = twins.encoder_evidence(seed, b=3, grid=grid, kind=kind)
                compared += twins.compare_encoder(
                    name, options, seen, asked, method=method, grid=grid, run=run
                )
        assert compared >= rows / 2, "most of the evidence was a tie in float32"


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those of a graph and of the bodies inside it."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            found += nodes(attribute.g) if attribute.type == onnx.AttributeProto.GRAPH else []
    return found
