"""Every method and every knee, exported once per session, next to its torch module and its oracle."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from foveate.export.translations import TRANSLATIONS
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.knee import knee_count
from foveate.pruning.registry import make_method
from foveate.pruning.selection import remap, select_top
from foveate.pruning.spec import KneeConfig, Site

torch.set_num_threads(1)

SCALE = 0.35  # softmax scale of the decoder's attention in these tests

# Few variants, so that tracing stays short; each option that changes the graph is in one of them. The eager
# modules meet their oracles under many more.
KNEE_OPTIONS: dict[str, dict[str, object]] = {
    "chord": {"knee": "chord"},
    "recursive": {"knee": "recursive"},
    "cumulative": {"knee": "cumulative"},
    "iqr": {"knee": "iqr"},
    "drop": {"knee": "derivative", "smooth": 5, "skip": 2, "knee_scale": 1.3},
    "bend": {"knee": "derivative", "smooth": 1, "skip": 0, "difference": 2},
}

ENCODER_OPTIONS: dict[str, dict[str, object]] = {
    "chord": {"min_keep": 1},
    "drop": {**KNEE_OPTIONS["drop"], "min_keep": 1},
    "limits": {"knee": "recursive", "knee_scale": 1.5, "min_keep": 3, "max_keep": 9, "round_to": 4},
    "cls_mean": {"score": "cls_mean", "knee": "iqr", "min_keep": 1},
    "cosine": {"score": "cosine", "knee": "cumulative", "min_keep": 1},
}

DECODER_OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "safe, rope free": {"profile": "safe", "ratio": 0.3, "rope_free": True},
    "knee, all rows": {"rule": "knee", "query": "all", "min_keep": 2, "text_ratio": 0.2},
    "knee, last row": {"rule": "knee", "knee": "cumulative", "query": "last", "profile": "safe"},
}


class Knees(nn.Module):
    """Curve and size in, one count per knee rule out; and the shared selection code on the side."""

    def forward(self, curve: Tensor, size: Tensor, count: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        counts = (knee_count(curve, size, KneeConfig.from_dict(each)) for each in KNEE_OPTIONS.values())
        chosen = select_top(curve, count)
        return (*counts, chosen.order, remap(index, chosen))


class Encoder(nn.Module):
    """Evidence and budget in, order and count of every encoder method out."""

    def __init__(self) -> None:
        super().__init__()
        self.methods = nn.ModuleList(
            make_method("cls-knee", options, Site.ENCODER) for options in ENCODER_OPTIONS.values()
        )
        self.methods.append(make_method("random", {"seed": 5}, Site.ENCODER))

    def forward(
        self,
        features: Tensor,
        cls: Tensor,
        query: Tensor,
        key: Tensor,
        keep_ratio: Tensor,
        keep_tokens: Tensor,
        seed: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for method, options in zip(self.methods, [*ENCODER_OPTIONS.values(), {}], strict=True):
            # query and key are `[layer, b, n+1, c]`; cls_full reads one layer, cls_mean both.
            used = range(2) if options.get("score") == "cls_mean" else range(1)
            evidence = EncoderEvidence(
                features, cls, {i: query[i] for i in used}, {i: key[i] for i in used}, 2
            )
            outputs.extend(
                method(evidence, Budget(keep_ratio, keep_tokens), seed if method.needs_seed else None)
            )
        return tuple(outputs)


class Decoder(nn.Module):
    """Evidence and budget in, order and count of every decoder method out."""

    def __init__(self) -> None:
        super().__init__()
        self.methods = nn.ModuleList(
            make_method("text-relevance", options, Site.DECODER) for options in DECODER_OPTIONS.values()
        )
        self.methods.append(make_method("random", {}, Site.DECODER))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_plain: Tensor,
        key_plain: Tensor,
        token_role: Tensor,
        query_index: Tensor,
        length: Tensor,
        keep_ratio: Tensor,
        keep_tokens: Tensor,
        seed: Tensor,
    ) -> tuple[Tensor, ...]:
        evidence = DecoderEvidence(
            query, key, query_plain, key_plain, query[:, 0], token_role, query_index, length, SCALE
        )
        outputs: list[Tensor] = []
        for method in self.methods:
            outputs.extend(
                method(evidence, Budget(keep_ratio, keep_tokens), seed if method.needs_seed else None)
            )
        return tuple(outputs)


@dataclass
class Traced:
    """A module in its two forms; ``run`` insists that they agree to the last index."""

    module: nn.Module
    proto: onnx.ModelProto
    names: Sequence[str]
    session: ort.InferenceSession = field(init=False)

    def __post_init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(self.proto.SerializeToString(), options, ["CPUExecutionProvider"])

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Outputs of the exported graph, equal to those of the module."""
        with torch.no_grad():
            eager = [each.numpy() for each in self.module(*map(torch.from_numpy, inputs))]
        used = {each.name for each in self.session.get_inputs()}
        feeds = {name: value for name, value in zip(self.names, inputs, strict=True) if name in used}
        exported: list[np.ndarray] = self.session.run(None, feeds)
        for number, (ours, theirs) in enumerate(zip(eager, exported, strict=True)):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(
                ours, theirs, err_msg=f"output {number}: torch and onnxruntime differ"
            )
        return exported


def trace(module: nn.Module, inputs: dict[str, Tensor], fixed: dict[str, set[int]]) -> Traced:
    """Exports with every axis dynamic except the ``fixed`` ones."""
    free = torch.export.Dim.DYNAMIC
    shapes = {
        name: {axis: free for axis in range(value.dim()) if axis not in fixed.get(name, set())}
        for name, value in inputs.items()
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=23,
            optimize=False,
            verbose=False,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            custom_translation_table=TRANSLATIONS,
        )
    assert program is not None
    return Traced(module, program.model_proto, list(inputs))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@pytest.fixture(scope="session")
def knees() -> Traced:
    inputs = {
        "curve": torch.rand(3, 21).sort(descending=True)[0],
        "size": _zeros(3) + 20,
        "count": _zeros(3) + 4,
        "index": _zeros(3, 5),
    }
    return trace(Knees(), inputs, {})


@pytest.fixture(scope="session")
def encoder() -> Traced:
    b, n, c = 3, 19, 8
    inputs = {
        "features": torch.randn(b, n, c),
        "cls": torch.randn(b, c),
        "query": torch.randn(2, b, n + 1, c),
        "key": torch.randn(2, b, n + 1, c),
        "keep_ratio": torch.zeros(b),
        "keep_tokens": _zeros(b),
        "seed": _zeros(b),
    }
    fixed = {"features": {2}, "cls": {1}, "query": {0, 3}, "key": {0, 3}}
    return trace(Encoder(), inputs, fixed)


@pytest.fixture(scope="session")
def decoder() -> Traced:
    b, h, g, s, t, head_dim = 3, 6, 2, 17, 5, 4
    inputs = {
        "query": torch.randn(b, h, s, head_dim),
        "key": torch.randn(b, g, s, head_dim),
        "query_plain": torch.randn(b, h, s, head_dim),
        "key_plain": torch.randn(b, g, s, head_dim),
        "token_role": _zeros(b, s),
        "query_index": _zeros(b, t),
        "length": _zeros(b) + s,
        "keep_ratio": torch.zeros(b),
        "keep_tokens": _zeros(b),
        "seed": _zeros(b),
    }
    fixed = {name: {1, 3} for name in ("query", "key", "query_plain", "key_plain")}
    return trace(Decoder(), inputs, fixed)


@pytest.fixture(scope="session")
def knee_options() -> dict[str, dict[str, object]]:
    return KNEE_OPTIONS


@pytest.fixture(scope="session")
def encoder_options() -> dict[str, dict[str, object]]:
    return ENCODER_OPTIONS


@pytest.fixture(scope="session")
def decoder_options() -> dict[str, dict[str, object]]:
    return DECODER_OPTIONS
