"""Each target's attention against plain torch: padding, caches, and positions with holes.

The holes matter: ONNX Runtime's own rotary embedding inside GroupQueryAttention ignores them on the first
prompt, so a target that moved RoPE into the operator would pass with consecutive positions and fail here.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor

from foveate.export.blocks.rope import Rope, RopeConfig, inverse_frequencies
from foveate.export.stage import Stage, StageModule, TensorSpec
from foveate.export.targets import find_target, list_targets
from foveate.export.trace import trace_stage
from foveate.runtime.errors import UsageError

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 6, 2, 8, 24
ROPE = RopeConfig(HEAD_DIM, 64, "default", 10000.0)
INPUTS = (
    TensorSpec("query", "float32", ("batch", "sequence", HEADS * HEAD_DIM)),
    TensorSpec("key", "float32", ("batch", "sequence", KV_HEADS * HEAD_DIM)),
    TensorSpec("value", "float32", ("batch", "sequence", KV_HEADS * HEAD_DIM)),
    TensorSpec("position_ids", "int64", ("batch", "sequence")),
    TensorSpec("length", "int64", ("batch",)),
    TensorSpec("cache_length", "int64", ("batch",)),
    TensorSpec("past_key", "float32", ("batch", KV_HEADS, "capacity_0", HEAD_DIM)),
    TensorSpec("past_value", "float32", ("batch", KV_HEADS, "capacity_0", HEAD_DIM)),
)
OUTPUTS = (
    TensorSpec("mixed", "float32", ("batch", "sequence", HEADS * HEAD_DIM)),
    *(
        TensorSpec(f"present_{p}", "float32", ("batch", KV_HEADS, "capacity_0", HEAD_DIM))
        for p in ("key", "value")
    ),
)


class AttentionStage(StageModule):
    def __init__(self, target: ModuleType) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self.target, self.rope = target, Rope(ROPE, 1.0)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        cos, sin = self.rope(feeds["position_ids"])
        results = self.target.cached_attention(
            self.target.rotary(feeds["query"], cos, sin, HEADS),
            self.target.rotary(feeds["key"], cos, sin, KV_HEADS),
            feeds["value"],
            feeds["past_key"],
            feeds["past_value"],
            feeds["length"],
            feeds["cache_length"],
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            scale=HEAD_DIM**-0.5,
        )
        return dict(zip(("mixed", "present_key", "present_value"), results, strict=True))


@pytest.fixture(scope="module", params=list_targets())
def session(request: pytest.FixtureRequest) -> onnxruntime.InferenceSession:
    target = find_target(request.param)
    model = trace_stage(Stage("attention", INPUTS, OUTPUTS, lambda: AttentionStage(target)), target)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(inverse_frequencies(ROPE)[0].numpy(), name=value.name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


class Oracle:
    """Attention by definition, one sequence at a time, every key kept in a list."""

    def __init__(self, batch: int) -> None:
        self.keys: list[list[Tensor]] = [[] for _ in range(batch)]
        self.values: list[list[Tensor]] = [[] for _ in range(batch)]

    def step(self, feeds: dict[str, np.ndarray], row: int) -> list[Tensor]:
        """Returns the mixed values of the row's valid tokens, each `[h * head_dim]`."""
        mixed = []
        for i in range(int(feeds["length"][row])):
            position = int(feeds["position_ids"][row, i])
            query, key, value = (torch.tensor(feeds[n][row, i]).double() for n in ("query", "key", "value"))
            self.keys[row].append(self._rotate(key.reshape(KV_HEADS, HEAD_DIM), position))
            self.values[row].append(value.reshape(KV_HEADS, HEAD_DIM))
            query = self._rotate(query.reshape(HEADS, HEAD_DIM), position)
            heads = []
            for h in range(HEADS):
                g = h * KV_HEADS // HEADS
                keys = torch.stack([k[g] for k in self.keys[row]])
                values = torch.stack([v[g] for v in self.values[row]])
                heads.append(torch.softmax(keys @ query[h] / HEAD_DIM**0.5, 0) @ values)
            mixed.append(torch.cat(heads))
        return mixed

    @staticmethod
    def _rotate(x: Tensor, position: int) -> Tensor:
        half = HEAD_DIM // 2
        angle = torch.tensor([position * 10000.0 ** (-2 * e / HEAD_DIM) for e in range(half)]).double()
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=1)


def _feeds(rng: np.random.Generator, batch: int, s: int) -> dict[str, np.ndarray]:
    def draw(width: int) -> np.ndarray:
        return rng.standard_normal((batch, s, width), dtype=np.float32)

    return {
        "query": draw(HEADS * HEAD_DIM),
        "key": draw(KV_HEADS * HEAD_DIM),
        "value": draw(KV_HEADS * HEAD_DIM),
    }


def _run_steps(
    session: onnxruntime.InferenceSession, lengths: list[list[int]], positions: list[np.ndarray]
) -> None:
    rng = np.random.default_rng(3)
    batch = len(lengths[0])
    oracle = Oracle(batch)
    shape = (batch, KV_HEADS, CAPACITY, HEAD_DIM)
    past = {name: np.zeros(shape, np.float32) for name in ("past_key", "past_value")}
    filled = np.zeros(batch, np.int64)
    for valid, where in zip(lengths, positions, strict=True):
        length = np.array(valid)
        feeds = _feeds(rng, batch, where.shape[1]) | past
        feeds |= {"position_ids": where, "length": length, "cache_length": filled}
        mixed, past["past_key"], past["past_value"] = session.run(None, feeds)
        for row in range(batch):
            for i, wanted in enumerate(oracle.step(feeds, row)):
                # float32 against float64: a sum of 24 terms of size one, 20 times the spacing at 1.
                np.testing.assert_allclose(mixed[row, i], wanted.numpy(), atol=2.4e-6, rtol=0)
        filled = filled + length


def test_holes_in_the_positions(session: onnxruntime.InferenceSession) -> None:
    holes = np.array([[0, 1, 5, 9, 10, 30]])
    _run_steps(session, [[6], [1], [1]], [holes, np.array([[31]]), np.array([[32]])])


def test_ragged_batch_with_padding(session: onnxruntime.InferenceSession) -> None:
    first = np.array([[0, 2, 3, 7, 8], [0, 1, 4, 0, 0], [0, 1, 2, 3, 0]])
    _run_steps(session, [[5, 3, 4], [1, 1, 1]], [first, np.array([[9], [5], [4]])])


def test_second_prompt_behind_a_cache(session: onnxruntime.InferenceSession) -> None:
    _run_steps(session, [[4], [3]], [np.array([[0, 1, 6, 7]]), np.array([[9, 12, 13]])])


def test_unknown_target_lists_known_ones() -> None:
    with pytest.raises(UsageError, match="onnxruntime, portable"):
        find_target("tflite")
