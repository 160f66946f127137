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
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape
from foveate.pruning.knee import knee_count
from foveate.pruning.method import PruningMethod
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
    "received": {"score": "received", "min_keep": 2},
    "pooled": {"score": "pooled", "knee": "iqr", "min_keep": 1},
    "prompt": {"score": "prompt", "knee": "recursive", "min_keep": 1, "max_keep": 12},
}

# One item of several tiles, with and without CLS rows; the method is named by the score, as above.
TILED_OPTIONS: dict[str, dict[str, object]] = {
    "cls_full": {"score": "cls_full", "min_keep": 1, "spread": "tile"},
    "cls_mean": {"score": "cls_mean", "min_keep": 3},
    "cosine": {"score": "cosine", "min_keep": 1, "spread": "tile", "knee": "cumulative"},
    "received": {"score": "received", "min_keep": 1, "spread": "tile"},
    "received, image": {"score": "received", "min_keep": 1, "knee": "recursive"},
    "pooled": {"score": "pooled", "min_keep": 2, "spread": "tile", "round_to": 3},
    "prompt": {"score": "prompt", "min_keep": 1, "spread": "tile", "knee": "iqr"},
}

DECODER_OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "faithful": {"profile": "faithful"},
    "safe, rope free": {"profile": "safe", "ratio": 0.3, "rope_free": True},
    "knee, all rows": {
        "rule": "knee",
        "query": "all",
        "min_keep": 2,
        "profile": "faithful",
        "text_ratio": 0.2,
    },
    "knee, last row": {"rule": "knee", "knee": "cumulative", "query": "last", "profile": "safe"},
}


class Knees(nn.Module):
    """Curve and size in, one count per knee rule out; and the shared selection code on the side."""

    def forward(self, curve: Tensor, size: Tensor, count: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        counts = (knee_count(curve, size, KneeConfig.from_dict(each)) for each in KNEE_OPTIONS.values())
        chosen = select_top(curve, count)
        return (*counts, chosen.order, remap(index, chosen))


def make_scorer(options: dict[str, object]) -> PruningMethod:
    """The method that has the score in ``options``."""
    saliency = options.get("score") in ("received", "pooled", "prompt")
    return make_method("saliency-knee" if saliency else "cls-knee", options, Site.ENCODER)


def layers_read(options: dict[str, object]) -> range:
    """Which of the two recorded layers a score is shown; cls_mean is shown both."""
    return range(2) if options.get("score") == "cls_mean" else range(1)


class Encoder(nn.Module):
    """Evidence of one-tile items and budget in; order, count and score of every encoder method out."""

    def __init__(self) -> None:
        super().__init__()
        self.methods = nn.ModuleList(make_scorer(options) for options in ENCODER_OPTIONS.values())
        self.methods.append(make_method("random", {"seed": 5}, Site.ENCODER))

    def forward(
        self,
        features: Tensor,
        cls: Tensor,
        query: Tensor,
        key: Tensor,
        pooled: Tensor,
        prompt: Tensor,
        keep_ratio: Tensor,
        keep_tokens: Tensor,
        seed: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for method, options in zip(self.methods, [*ENCODER_OPTIONS.values(), {}], strict=True):
            # query and key are `[layer, b, n+1, c]`.
            evidence = EncoderEvidence(
                features=features,
                patches=features,
                cls=cls,
                query={i: query[i] for i in layers_read(options)},
                key={i: key[i] for i in layers_read(options)},
                num_heads=2,
                pool=lambda score: score,
                tile=torch.zeros_like(features[:, :, 0], dtype=torch.int64),
                pooled=pooled,
                prompt=prompt,
                projected=features,
            )
            outputs.extend(choose(method, evidence, Budget(keep_ratio, keep_tokens), seed))
        return tuple(outputs)


class Tiled(nn.Module):
    """Evidence of one item of `t` tiles in; order, count and score out.

    Two neighbouring patches make a token, with the mean of their scores; each tile ends with a newline token,
    with the largest score of its tile; ``pick [n]`` says which of these are candidates.
    """

    def __init__(self, *, has_cls: bool) -> None:
        super().__init__()
        self.options = [
            each for name, each in TILED_OPTIONS.items() if has_cls or not name.startswith(("cls", "cos"))
        ]
        self.methods = nn.ModuleList(map(make_scorer, self.options))
        self.has_cls = has_cls

    def forward(
        self,
        patches: Tensor,
        cls: Tensor,
        query: Tensor,
        key: Tensor,
        pooled: Tensor,
        prompt: Tensor,
        pick: Tensor,
        tile: Tensor,
        keep_ratio: Tensor,
        keep_tokens: Tensor,
    ) -> tuple[Tensor, ...]:
        def pool(score: Tensor) -> Tensor:
            t, p = score.shape
            token = score.reshape(t, p // 2, 2).mean(dim=2)  # t (m 2) -> t m
            line = torch.cat([token, token.amax(dim=1, keepdim=True)], dim=1)  # t m+1
            return line.reshape(1, -1).index_select(1, pick)  # t m+1 -> 1 n

        projected = pool_rows(patches, pick)
        rows = slice(None) if self.has_cls else slice(1, None)
        shape = EncoderShape(2, 2, (0,), has_cls=self.has_cls, has_pool=True)
        outputs: list[Tensor] = []
        for method in self.methods:
            assert isinstance(method, PruningMethod)
            evidence = EncoderEvidence(
                features=projected,
                patches=patches,
                cls=cls if self.has_cls else None,
                query={i: query[i, :, rows] for i in method.layers(shape)},
                key={i: key[i, :, rows] for i in method.layers(shape)},
                num_heads=2,
                pool=pool,
                tile=tile,
                pooled=pooled,
                prompt=prompt,
                projected=projected,
            )
            outputs.extend(choose(method, evidence, Budget(keep_ratio, keep_tokens), None))
        return tuple(outputs)


def pool_rows(patches: Tensor, pick: Tensor) -> Tensor:
    """Rows of the candidates `[1, n, c]`: a token's first patch, the tile's last for a newline."""
    c = patches.shape[2]
    line = torch.cat([patches[:, ::2], patches[:, -1:]], dim=1)  # t m+1 c
    return line.reshape(1, -1, c).index_select(1, pick)  # t m+1 c -> 1 n c


def choose(
    method: nn.Module, evidence: EncoderEvidence, budget: Budget, seed: Tensor | None
) -> tuple[Tensor, ...]:
    """Order, count and, where the method ranks, the score."""
    assert isinstance(method, PruningMethod)
    chosen = method(evidence, budget, seed if method.needs_seed else None)
    assert (chosen.score is not None) == method.ranks
    return (chosen.order, chosen.count, *((chosen.score,) if method.ranks else ()))


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
            chosen = method(evidence, Budget(keep_ratio, keep_tokens), seed if method.needs_seed else None)
            outputs.extend((chosen.order, chosen.count))
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
            message = f"output {number}: torch and onnxruntime differ"
            if ours.dtype == np.float32:  # scores are close; what follows from them is equal
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=message)
            else:
                np.testing.assert_array_equal(ours, theirs, err_msg=message)
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
        "pooled": torch.rand(b, n),
        "prompt": torch.randn(b, c),
        "keep_ratio": torch.zeros(b),
        "keep_tokens": _zeros(b),
        "seed": _zeros(b),
    }
    fixed = {"features": {2}, "cls": {1}, "query": {0, 3}, "key": {0, 3}, "prompt": {1}}
    return trace(Encoder(), inputs, fixed)


@pytest.fixture(scope="session", params=[True, False], ids=["with CLS", "without CLS"])
def tiled(request: pytest.FixtureRequest) -> Traced:
    t, p, n, c = 5, 14, 23, 8
    inputs = {
        "patches": torch.randn(t, p, c),
        "cls": torch.randn(t, c),
        "query": torch.randn(2, t, p + 1, c),
        "key": torch.randn(2, t, p + 1, c),
        "pooled": torch.rand(t, p),
        "prompt": torch.randn(1, c),
        "pick": torch.arange(n),
        "tile": _zeros(1, n),
        "keep_ratio": torch.zeros(1),
        "keep_tokens": _zeros(1),
    }
    fixed = {"patches": {2}, "cls": {1}, "query": {0, 3}, "key": {0, 3}, "prompt": {0, 1}}
    fixed |= {"tile": {0}, "keep_ratio": {0}, "keep_tokens": {0}}
    return trace(Tiled(has_cls=request.param), inputs, fixed)


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
