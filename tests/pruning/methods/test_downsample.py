"""downsample: equal to the oracle, exact budgets, square cells, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import build, compare_encoder, encoder_evidence, model_shape

from foveate.pruning import budget as budgets
from foveate.pruning.methods.downsample import Config, Method, cells
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [
    Budget(),
    Budget(keep_tokens=1),
    Budget(keep_ratio=0.3),
    Budget(keep_tokens=99),
    Budget(keep_tokens=5),
]


@pytest.mark.parametrize("options", [{}, {"ratio": 1.0}, {"ratio": 0.07}])
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    for seed, grid in enumerate([(1, 1), (1, 2), (3, 1), (4, 4), (4, 5), (7, 6), (2, 9), (12, 12)]):
        evidence = encoder_evidence(seed, b=5, grid=grid)
        assert compare_encoder("downsample", options, evidence, BUDGETS, grid=grid) == 5


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (4, 5), (7, 2), (5, 13)])
def test_any_number_of_cells(grid: tuple[int, int]) -> None:
    n = grid[0] * grid[1]
    index = torch.arange(n).expand(n, -1)
    cell, middle = cells(index, torch.arange(1, n + 1), grid)
    for count in range(1, n + 1):
        assert cell[count - 1].unique().tolist() == list(range(count))
        assert cell[count - 1][middle[count - 1]].tolist() == list(range(count))  # one each, in raster order


def test_square_numbers_give_square_cells() -> None:
    cell, middle = cells(torch.arange(576)[None], torch.tensor([64]), (24, 24))
    wanted = [[row // 3 * 8 + column // 3 for column in range(24)] for row in range(24)]
    assert cell.reshape(24, 24).tolist() == wanted
    assert middle.reshape(24, 24).nonzero().tolist() == [
        [r, c] for r in range(1, 24, 3) for c in range(1, 24, 3)
    ]


def test_it_is_average_pooling() -> None:
    grid = (24, 24)
    evidence = encoder_evidence(1, b=2, grid=grid)
    budget = budgets.Budget(torch.zeros(2), torch.full((2,), 144))
    chosen = build("downsample", "encoder", grid=grid)(evidence, budget)
    kept = chosen.order[:, :144, None].expand(-1, -1, 16)
    picture = evidence.features.transpose(1, 2).reshape(2, 16, 24, 24)
    wanted = torch.nn.functional.avg_pool2d(picture, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(chosen.features.gather(1, kept), wanted)


def test_a_budget_for_everything_leaves_everything_alone() -> None:
    evidence = encoder_evidence(6)
    budget = budgets.Budget(torch.ones(2), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(build("downsample", "encoder")(evidence, budget).features, evidence.features)


def test_refusals() -> None:
    shape = model_shape()
    shape = shape._replace(encoder=shape.encoder._replace(grid=None))
    for ask in (lambda method: method.build(shape), lambda method: method.layers(shape.encoder)):
        with pytest.raises(UsageError, match="one grid"):
            ask(Method(Config()))
