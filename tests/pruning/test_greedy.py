"""The greedy operators: plain loops, any batch, the same picks in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from foveate.export.stage import Stage, StageModule, TensorSpec
from foveate.export.targets import find_target
from foveate.export.trace import trace_stage
from foveate.pruning.greedy import cosine_matrix, map_rounds, spread_rounds

INPUTS = (
    TensorSpec("kernel", "float32", ("batch", "rows", "rows")),
    TensorSpec("first", "int64", ("batch",)),
    TensorSpec("count", "int64", ("batch",)),
)
OUTPUTS = (TensorSpec("spread", "int64", ("batch", "rows")), TensorSpec("map", "int64", ("batch", "rows")))


class Both(StageModule):
    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        kernel, count = feeds["kernel"], feeds["count"]
        return {"spread": spread_rounds(kernel, feeds["first"], count), "map": map_rounds(kernel, count)}


@pytest.fixture(scope="module", params=["onnxruntime", "portable"])
def session(request: pytest.FixtureRequest) -> ort.InferenceSession:
    """Both loops, by the exporter's own way."""
    stage = Stage("loops", INPUTS, OUTPUTS, lambda: Both(INPUTS, OUTPUTS))
    proto = ir.to_proto(trace_stage(stage, find_target(request.param)))
    assert [node.op_type for node in proto.graph.node].count("Loop") == 2
    assert {node.domain for node in proto.graph.node} == {""}
    assert b"pkg.torch" not in proto.SerializeToString()  # no stack traces, in the loops' bodies either
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def kernels(kind: str, b: int, n: int, seed: int) -> Tensor:
    """Cosines, scaled by relevance as CDPruner does for ``scaled``; ``flat`` has two dimensions only."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(b, n, 2 if kind == "flat" else 48, generator=draw)
    if kind == "twins":
        rows = rows[:, torch.arange(n) // 2]
    weight = torch.rand(b, n, generator=draw) if kind == "scaled" else torch.ones(b, n)
    return cosine_matrix(rows) * weight.unsqueeze(1) * weight.unsqueeze(2)


@pytest.mark.parametrize("kind", ["plain", "scaled", "flat", "twins"])
def test_torch_and_onnxruntime_pick_alike(session: ort.InferenceSession, kind: str) -> None:
    for seed, (b, n) in enumerate([(1, 1), (1, 2), (3, 5), (2, 24), (4, 40)]):
        kernel = kernels(kind, b, n, seed)
        count = torch.randint(1, n + 1, (b,), generator=torch.Generator().manual_seed(seed))
        feeds = {"kernel": kernel, "first": count % n, "count": count}
        exported = session.run(None, {name: value.numpy() for name, value in feeds.items()})
        rounds = int(count.max())
        for taken, eager in zip(exported, Both(INPUTS, OUTPUTS)(*feeds.values()), strict=True):
            np.testing.assert_array_equal(taken, eager.numpy())
            for row in taken:  # every round takes one candidate that no other round has taken
                assert sorted(row)[:rounds] == list(range(rounds))
                assert sorted(row)[rounds:] == [n] * (n - rounds)


def test_spread_is_farthest_point_first() -> None:
    for seed in range(20):
        kernel = kernels("plain", 1, 12, seed)
        taken = spread_rounds(kernel, torch.tensor([4]), torch.tensor([12]))[0]
        order = taken.argsort().tolist()
        assert order[0] == 4
        for number in range(1, 12):
            reach = {i: max(kernel[0, i, j].item() for j in order[:number]) for i in order[number:]}
            assert min(reach, key=lambda i: (reach[i], i)) == order[number]


def test_map_maximises_the_determinant_step_by_step() -> None:
    for seed in range(20):
        kernel = kernels("scaled", 1, 10, seed)[0].double().numpy() + 1e-9 * np.eye(10)
        taken = map_rounds(torch.from_numpy(kernel).float().unsqueeze(0), torch.tensor([5]))[0]
        order = taken.argsort().tolist()[:5]
        for number in range(5):
            gains = {
                i: np.linalg.det(kernel[np.ix_([*order[:number], i], [*order[:number], i])])
                for i in range(10)
                if i not in order[:number]
            }
            assert max(gains, key=lambda i: gains[i]) == order[number]


def test_spanned_candidates_come_last_by_their_diagonal() -> None:
    """Two distinct rows, eight tokens: both first, then by relevance; numbers stay finite."""
    weight = torch.tensor([0.5, 1.0, 0.7, 0.1, 0.9, 0.3, 0.2, 0.8])
    rows = torch.eye(4)[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])].unsqueeze(0)
    kernel = cosine_matrix(rows) * weight.unsqueeze(0) * weight.unsqueeze(1)
    assert map_rounds(kernel, torch.tensor([8]))[0].argsort().tolist() == [1, 4, 7, 2, 0, 5, 6, 3]


def test_a_short_run_is_the_head_of_a_long_one() -> None:
    kernel = kernels("plain", 3, 15, 1)
    for run in (lambda c: spread_rounds(kernel, torch.zeros(3).long(), c), lambda c: map_rounds(kernel, c)):
        long, short = run(torch.tensor([15, 2, 9])), run(torch.tensor([4, 4, 1]))
        assert torch.equal(long < 4, short < 4)
