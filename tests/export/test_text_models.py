"""Each text model's decoder graph against transformers, read in chunks through caches of its own.

What the parity ladder can only show for whole models is shown here for the decoder alone: positions of one
and of three axes, norms of queries and keys, DeepStack rows, windows, images that see themselves in both
directions. transformers gets the whole sequence at once, with masks written as loops from the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from foveate.export.blocks.text_models import TEXT_MODELS, DecoderConfig, rope_constants
from foveate.export.decoder_specs import plan_segments
from foveate.export.decoder_stages import fused_stage
from foveate.export.stage import Stage
from foveate.export.targets import find_target
from foveate.export.trace import read_parameters, trace_stage

torch.set_num_threads(1)
VOCAB, CAPACITY = 40, 64
CHUNKS = (21, 1, 6, 1)
LENGTH = sum(CHUNKS)
MROPE = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 1, 1]}


@dataclass(frozen=True)
class Case:
    """A text configuration, and what the decoder is fed with besides."""

    options: Mapping[str, Any] = field(default_factory=dict)
    levels: int = 0
    target: str = "onnxruntime"


COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {
    "sliding_window": 7,
    "query_pre_attn_scalar": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CASES: Mapping[str, Case] = {
    "llama": Case(),
    "mistral": Case({"sliding_window": None}),
    "qwen2": Case(),
    "qwen2_vl_text": Case({"rope_parameters": MROPE}),
    "qwen2_5_vl_text": Case({"rope_parameters": MROPE}),
    "qwen3": Case({"head_dim": 16}),
    "qwen3_vl_text": Case({"rope_parameters": MROPE}, levels=2),
    "gemma3_text": Case(GEMMA),
    "gemma3_text, portable": Case(GEMMA, target="portable"),
}


def test_every_text_model_has_a_case() -> None:
    assert {name.split(",")[0] for name in CASES} == set(TEXT_MODELS)


def make_model(kind: str, case: Case) -> tuple[Any, dict[str, Any]]:
    """A seeded text model of transformers, and the configuration that its file would hold."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **{**COMMON, **case.options})
    config._attn_implementation = "eager"
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 1
            spread = 1.5 / fan**0.5 if parameter.dim() > 1 else 0.2
            parameter.add_(torch.randn_like(parameter) * spread)
    return model, config.to_dict()


def open_graph(
    model: Any, config: DecoderConfig, head: Tensor, target: ModuleType
) -> onnxruntime.InferenceSession:
    """The decoder's graph with the model's weights in it."""
    stage: Stage = fused_stage(config, plan_segments(config.num_layers, ()), target)
    weights = {f"language_model.{name}": value for name, value in model.state_dict().items()}
    weights |= {"lm_head.weight": head, **rope_constants(config)}
    graph = trace_stage(stage, target)
    for name, parameter in read_parameters(stage).items():
        if name in graph.graph.initializers:
            value = weights[name].t() if parameter.transposed else weights[name]
            array = value.detach().contiguous().numpy()
            graph.graph.initializers[name].const_value = ir.tensor(array, name=name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), options)


@pytest.mark.parametrize("name", CASES)
def test_chunked_decoder_equals_transformers(name: str) -> None:
    kind, case = name.split(",")[0], CASES[name]
    model, section = make_model(kind, case)
    config = DecoderConfig.read(section, deepstack_levels=case.levels)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, LENGTH, config.hidden_size, generator=generator)
    head = torch.randn(VOCAB, config.hidden_size, generator=generator) / config.hidden_size**0.5
    deepstack = torch.randn(1, LENGTH, max(case.levels, 1) * config.hidden_size, generator=generator)
    # Holes, as a cut leaves them, and two images: rows 4 to 9 and 12 to 15.
    positions = np.cumsum([0, *(1 + (i % 3 == 0) for i in range(LENGTH - 1))])
    block = np.array([0 if 4 <= i < 10 else 1 if 12 <= i < 16 else -1 for i in range(LENGTH)])
    axes = np.stack([positions, positions // 2 + 1, positions % 5], axis=1)
    triples = axes if config.rope.axes == 3 else positions[:, None]

    session = open_graph(model, config, head, find_target(case.target))
    got = run_chunks(session, config, hidden, deepstack, triples, block)
    wanted = run_transformers(model, config, hidden, deepstack, triples, block) @ head.t()
    # float32 through three layers of width 48 with values of size ten: a few hundred roundings.
    np.testing.assert_allclose(got, wanted[0].numpy(), atol=1e-4, rtol=0)


def run_chunks(
    session: onnxruntime.InferenceSession,
    config: DecoderConfig,
    hidden: Tensor,
    deepstack: Tensor,
    positions: np.ndarray,
    block: np.ndarray,
) -> np.ndarray:
    """Logits `[s, v]` of all rows, `CHUNKS` after one another."""
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    shape = (1, config.num_kv_heads, CAPACITY, config.head_dim)
    caches = [name for name in names if name.startswith(("past_key", "past_value"))]
    past = {name: np.zeros(shape, np.float32) for name in caches}
    past_position = np.full((1, CAPACITY), 999, np.int64)  # garbage behind the cache must not matter
    logits, start = [], 0
    for size in CHUNKS:
        rows = slice(start, start + size)
        spot = positions[None, rows] if config.rope.axes > 1 else positions[None, rows, 0]
        feeds: dict[str, np.ndarray] = {
            "hidden": hidden[:, rows].numpy(),
            "position_ids": spot,
            "length": np.array([size]),
            "cache_length_0": np.array([start]),
            "logits_index": np.arange(size)[None],
            "block": block[None, rows],
            "deepstack": deepstack[:, rows].numpy(),
            "past_position_0": past_position,
        }
        used = {name: value for name, value in feeds.items() if name in names}
        out = dict(zip(outputs, session.run(None, used | past), strict=True))
        past = {name: out[name.replace("past", "present")] for name in past}
        past_position = past_position.copy()
        past_position[0, rows] = positions[rows, 0]
        logits.append(out["logits"][0])
        start += size
    return np.concatenate(logits)


def run_transformers(
    model: Any,
    config: DecoderConfig,
    hidden: Tensor,
    deepstack: Tensor,
    positions: np.ndarray,
    block: np.ndarray,
) -> Tensor:
    """The same rows through transformers' layers at once, `[1, s, d]` after the final norm."""
    spots = torch.from_numpy(positions)
    x = hidden
    for i, layer in enumerate(model.layers):
        kind = getattr(layer.self_attn, "layer_type", None)
        window = config.windows[i] if config.windows else None
        x = layer(
            x,
            attention_mask=mask_by_loops(positions[:, 0], block, window, config.bidirectional_images),
            position_embeddings=rotation(model, spots, kind if config.windows else None)(x),
        )
        if i < config.deepstack_levels:
            d = config.hidden_size
            x = x + deepstack[:, :, i * d : (i + 1) * d]
    with torch.no_grad():
        return model.norm(x).detach()


def rotation(model: Any, positions: Tensor, kind: str | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    if positions.shape[1] == 3:
        return lambda x: model.rotary_emb(x, positions.t()[:, None])
    extra = {} if kind is None else {"layer_type": kind}
    return lambda x: model.rotary_emb(x, positions.t(), **extra)


def mask_by_loops(
    positions: np.ndarray, block: np.ndarray, window: int | None, bidirectional: bool
) -> Tensor:
    """What each query sees: rows before it, its own image, and nothing beyond the window."""
    s = len(positions)
    mask = torch.full((1, 1, s, s), torch.finfo(torch.float32).min)
    for i in range(s):
        for j in range(s):
            together = bidirectional and block[i] >= 0 and block[i] == block[j]
            near = window is None or positions[i] - positions[j] < window
            if (j <= i or together) and near:
                mask[0, 0, i, j] = 0.0
    return mask
