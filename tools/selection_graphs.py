"""Graphs of `selection_cost`: one method alone, one decoder layer, one connector, with noise for weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from foveate.export.decoder_specs import plan_segments
from foveate.export.decoder_stages import fused_stage
from foveate.export.families import Family, find_family
from foveate.export.stage import Stage, StageModule, TensorSpec
from foveate.export.targets import find_target
from foveate.export.trace import read_parameters, trace_stage
from foveate.export.vision_stage import model_shape
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, ModelShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.registry import make_method
from foveate.pruning.spec import Site
from foveate.tools.large_shapes import SHAPES

TARGET: Final = "onnxruntime"
FIXED: Final = 35
"""Tokens before the picture: BOS and the template's words."""

Arrays = Mapping[str, np.ndarray]


class Model(NamedTuple):
    """A published model's sizes, as read from its configuration."""

    family: Family
    config: Any
    shape: ModelShape

    @property
    def candidates(self) -> int:
        """Visual tokens of a picture."""
        assert self.shape.candidates is not None
        return self.shape.candidates


class Session:
    """A graph in ONNX Runtime, on one thread, with noise for weights."""

    def __init__(self, stage: Stage) -> None:
        parameters = read_parameters(stage)
        graph = trace_stage(stage, find_target(TARGET))
        draw = np.random.default_rng(0)
        for name, value in graph.graph.initializers.items():
            if name in parameters:
                noise = draw.standard_normal(parameters[name].shape, dtype=np.float32) * np.float32(0.02)
                value.const_value = ir.tensor(noise, name=name)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = ort.InferenceSession(
            ir.to_proto(graph).SerializeToString(), options, ["CPUExecutionProvider"]
        )
        self.inputs = stage.inputs
        self._takes = {each.name for each in self._session.get_inputs()}

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Every output by its name."""
        names = [each.name for each in self._session.get_outputs()]
        found = self._session.run(names, {name: feeds[name] for name in feeds if name in self._takes})
        return dict(zip(names, found, strict=True))


def noise_feeds(specs: tuple[TensorSpec, ...], sizes: Mapping[str, int], known: Arrays) -> Arrays:
    """The inputs of a graph: what is known, noise elsewhere, zeros for whole numbers."""
    draw = np.random.default_rng(1)
    feeds = {}
    for spec in specs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
        if spec.name in known:
            feeds[spec.name] = known[spec.name]
        elif spec.dtype == "float32":
            feeds[spec.name] = draw.standard_normal(shape, dtype=np.float32)
        else:
            feeds[spec.name] = np.zeros(shape, np.int64)
    return feeds


def read_model(name: str) -> Model:
    """One of `large_shapes.SHAPES`."""
    _, family = find_family(SHAPES[name])
    config = family.Config.read(SHAPES[name])
    return Model(family, config, model_shape(family, config))


# --- one method ---------------------------------------------------------------------------------------------


class Choice(StageModule):
    """Evidence in; order, count and, where the method merges, rows out."""

    def __init__(self, model: Model, stage: Stage, site: Site) -> None:
        super().__init__(stage.inputs, stage.outputs)
        self.model, self.method = model, build(model, stage.name, site)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        evidence = self._decoder(feeds) if "token_role" in feeds else self._encoder(feeds)
        budget = Budget(feeds["keep_ratio"], feeds["keep_tokens"])
        chosen = self.method(evidence, budget, feeds["seed"] if self.method.needs_seed else None)
        found = {"order": chosen.order, "count": chosen.count}
        return found if chosen.features is None else found | {"rows": chosen.features}

    def _encoder(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        def layers(part: str) -> dict[int, Tensor]:
            names = [name for name in feeds if name.startswith(f"{part}_")]
            return {int(name.rpartition("_")[2]): feeds[name] for name in names}

        return EncoderEvidence(
            features=feeds["features"],
            patches=feeds["features"],
            cls=feeds["cls"],
            query=layers("query"),
            key=layers("key"),
            num_heads=self.model.config.vision.num_heads,
            pool=lambda score: score,
            tile=torch.zeros_like(feeds["features"][:, :, 0], dtype=torch.int64),
            prompt=feeds["prompt"],
            projected=feeds["projected"],
            hidden=layers("hidden"),
            extra=feeds.get("extra"),
            text=feeds["text"],
        )

    def _decoder(self, feeds: dict[str, Tensor]) -> DecoderEvidence:
        rows = ("query", "key", "query_plain", "key_plain", "hidden", "token_role", "query_index", "length")
        return DecoderEvidence(
            **{name: feeds[name] for name in rows},
            scale=self.model.config.text.attention_scale,
            entered=feeds["entered"],
            embedded=feeds["embedded"],
        )


def build(model: Model, name: str, site: Site) -> PruningMethod:
    """The method, with weights of the model's sizes where it has some."""
    method = make_method(name, {}, site)
    method.build(model.shape)
    method.requires_grad_(False)
    return method


def method_graph(model: Model, name: str, site: Site) -> Session:
    """A method's own arithmetic, traced as the exporter does it.

    Raises:
        FoveateError: it refuses such a model, or could not be traced.
    """
    with FakeTensorMode():
        inputs = _inputs(model, build(model, name, site), site)
        probe = Choice(model, Stage(name, inputs, (), StageModule), site)  # type: ignore[arg-type]
        merges = "rows" in probe.run({spec.name: spec.example() for spec in inputs})
    shape = model.shape
    size: int | str = model.candidates if site is Site.ENCODER else "sequence"
    width = shape.feature_width if site is Site.ENCODER else shape.hidden_size
    outputs = [TensorSpec("order", "int64", ("batch", size)), TensorSpec("count", "int64", ("batch",))]
    outputs += [TensorSpec("rows", "float32", ("batch", size, width))] if merges else []
    stage = Stage(name, inputs, tuple(outputs), lambda: Choice(model, stage, site))
    return Session(stage)


def _inputs(model: Model, method: PruningMethod, site: Site) -> tuple[TensorSpec, ...]:
    asked = (
        TensorSpec("keep_ratio", "float32", ("batch",)),
        TensorSpec("keep_tokens", "int64", ("batch",)),
        TensorSpec("seed", "int64", ("batch",)),
    )
    if site is Site.DECODER:
        return (*_decoder_inputs(model), *asked)
    shape = model.shape
    n, w, c, d = model.candidates, shape.encoder_width, shape.feature_width, shape.hidden_size
    tile = ("batch", n + shape.encoder.has_cls, w)
    layers, hidden = method.layers(shape.encoder), method.hidden_layers(shape.encoder)
    extra = method.extra_tokens()
    tokens = () if extra is None else (TensorSpec("extra", "float32", ("batch", int(extra.shape[0]), w)),)
    return (
        TensorSpec("features", "float32", ("batch", n, c)),
        TensorSpec("cls", "float32", ("batch", w)),
        *(TensorSpec(f"query_{i}", "float32", tile) for i in layers),
        *(TensorSpec(f"key_{i}", "float32", tile) for i in layers),
        *(TensorSpec(f"hidden_{i}", "float32", tile) for i in hidden),
        *tokens,
        TensorSpec("projected", "float32", ("batch", n, d)),
        TensorSpec("prompt", "float32", ("batch", d)),
        TensorSpec("text", "float32", ("batch", d)),
        *asked,
    )


def _decoder_inputs(model: Model) -> tuple[TensorSpec, ...]:
    text = model.config.text
    query = ("batch", text.num_heads, "sequence", text.head_dim)
    key = ("batch", text.num_kv_heads, "sequence", text.head_dim)
    rows = ("batch", "sequence", text.hidden_size)
    return (
        *(TensorSpec(name, "float32", query) for name in ("query", "query_plain")),
        *(TensorSpec(name, "float32", key) for name in ("key", "key_plain")),
        *(TensorSpec(name, "float32", rows) for name in ("hidden", "embedded")),
        TensorSpec("token_role", "int64", ("batch", "sequence")),
        TensorSpec("query_index", "int64", ("batch", "query")),
        *(TensorSpec(name, "int64", ("batch",)) for name in ("length", "entered")),
    )


def method_feeds(model: Model, session: Session, arriving: int, text: int, keep: int) -> Arrays:
    """Noise for evidence: `arriving` visual tokens and `text` rows behind them, `keep` of them to be kept."""
    s = FIXED + arriving + text
    role = np.repeat([0, 1, 2], [FIXED, arriving, text])[None]
    known = {
        "keep_ratio": np.zeros(1, np.float32),
        "keep_tokens": np.array([keep]),
        "token_role": role,
        "query_index": np.arange(FIXED + arriving, s)[None],
        "length": np.array([s]),
        "entered": np.array([model.candidates]),
    }
    return noise_feeds(session.inputs, {"batch": 1, "sequence": s, "query": text}, known)


# --- what it is compared with -------------------------------------------------------------------------------


def layer_graph(model: Model) -> Session:
    """One decoder layer with its cache; the head behind it has next to no vocabulary."""
    config = replace(model.config.text, num_layers=1, vocab_size=8)
    return Session(fused_stage(config, plan_segments(1, ()), find_target(TARGET)))


def layer_feeds(session: Session, rows: int) -> Arrays:
    """A prompt of `rows` tokens, nothing in the cache."""
    known = {
        "position_ids": np.arange(rows)[None],
        "length": np.array([rows]),
        "logits_index": np.array([[rows - 1]]),
    }
    return noise_feeds(session.inputs, {"batch": 1, "sequence": rows, "wanted": 1, "capacity_0": rows}, known)


class _Project(StageModule):
    def __init__(self, model: Model, inputs: Any, outputs: Any) -> None:
        super().__init__(inputs, outputs)
        self.connector: torch.nn.Module = model.family.Connector(model.config)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"projected": self.connector(feeds["features"])}


def connector_graph(model: Model) -> Session:
    """Features to the decoder's width."""
    inputs = (TensorSpec("features", "float32", ("rows", model.shape.feature_width)),)
    outputs = (TensorSpec("projected", "float32", ("rows", model.shape.hidden_size)),)
    return Session(Stage("connector", inputs, outputs, lambda: _Project(model, inputs, outputs)))


def connector_feeds(model: Model, session: Session) -> Arrays:
    """All tokens of a picture."""
    return noise_feeds(session.inputs, {"rows": model.candidates}, {})
