"""setok: equal to its oracle, centres against a plain clustering, threshold and budgets, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from twins import build, compare_encoder, encoder_evidence, model_shape

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.setok import Config, Method, owners, peaks, square_distances, start
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget
from foveate.tools.parity.methods.setok import place_code

BUDGETS = [Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.3), Budget(keep_tokens=99)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"neighbours": 3, "threshold": 0.2},
    {"normalise": False, "threshold": 0.1, "depth": 1, "heads": 4},
    {"neighbours": 50, "threshold": 9.0, "inner": 8},
    {"threshold": 0.0},
]


def request(*tokens: int) -> Asked:
    return Asked(torch.zeros(len(tokens)), torch.tensor(tokens))


@pytest.mark.parametrize("options", OPTIONS)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in ("random", "sharp", "clusters"):
        for seed, grid in enumerate([(1, 1), (1, 2), (3, 3), (4, 5), (6, 5)]):
            evidence = encoder_evidence(seed, b=4, grid=grid, kind=kind)
            compared += compare_encoder("setok", options, evidence, BUDGETS, grid=grid)
    assert compared > 45


@pytest.mark.parametrize("kind", ["ties", "equal", "zero"])
def test_equal_patches_have_places(kind: str) -> None:
    """The sine code parts equal patches; where it leaves ties, the oracle calls them fragile."""
    for seed in range(4):
        evidence = encoder_evidence(seed, b=4, kind=kind)
        compare_encoder("setok", {}, evidence, BUDGETS)


def test_exact_ties_keep_the_lower_index() -> None:
    """Points on a line at whole distances: 0 and 1, 10 and 11, 20 and 21 are three equal pairs."""
    x = torch.tensor([[0.0, 1, 10, 11, 20, 21]]).unsqueeze(-1)
    square = (x - x.transpose(1, 2)) ** 2
    gamma, distance = peaks(square, 2)
    density = np.exp(-0.5)
    # Equal densities: the lower index counts as denser, the first has the largest distance of all.
    np.testing.assert_allclose(gamma[0], density * np.array([21, 1, 9, 1, 9, 1]), rtol=1e-6)
    centre = torch.tensor([[True, False, True, False, True, False]])
    assert owners(distance, centre).tolist() == [[0, 0, 2, 2, 4, 4]]
    between = torch.tensor([[0.0, 5.0, 10.0]]).unsqueeze(-1)
    distance = (between - between.transpose(1, 2)).abs()
    assert owners(distance, torch.tensor([[True, False, True]])).tolist() == [[0, 0, 2]]
    same = torch.zeros(1, 3, 3)
    assert owners(same, torch.tensor([[False, True, True]])).tolist() == [[1, 1, 2]]


def test_distances_are_means_over_channels() -> None:
    x = encoder_evidence(6).features + 100  # far from the origin
    plain = ((x.unsqueeze(2) - x.unsqueeze(1)) ** 2).mean(dim=-1)
    torch.testing.assert_close(square_distances(x), plain, rtol=1e-4, atol=1e-4)
    assert (square_distances(x).diagonal(dim1=1, dim2=2) == 0).all()


def test_places_are_the_sine_code() -> None:
    method = build("setok", "encoder")
    assert isinstance(method, Method)
    codes = method.places(torch.zeros(1, 20, 16))
    wanted = np.stack([place_code(i, 5, 16) for i in range(20)])
    np.testing.assert_allclose(codes, wanted, atol=1e-6)
    assert method.places(torch.zeros(1, 20, 6)).shape == (20, 6)


def test_the_count_follows_the_picture_or_the_budget() -> None:
    method = build("setok", "encoder", {"threshold": 0.62})
    evidence = encoder_evidence(7, b=6)
    assert len(set(method(evidence, request(*[0] * 6)).count.tolist())) > 1
    chosen = method(evidence, request(1, 2, 7, 19, 20, 50))
    assert chosen.count.tolist() == [1, 2, 7, 19, 20, 20]
    assert chosen.features is not None
    assert torch.equal(chosen.features[4:], evidence.features[4:])
    nobody = build("setok", "encoder", {"threshold": 50.0, "neighbours": 4})
    assert nobody(evidence, request(*[0] * 6)).count.tolist() == [4] * 6


def test_first_weights_give_the_mean_of_a_cluster_with_its_places() -> None:
    method = build("setok", "encoder")
    assert isinstance(method, Method)
    start(method)
    patches = encoder_evidence(8).features
    selection, owner = method.cluster(patches, request(3, 3))
    rows = method.merge(patches, owner)
    for item in range(2):
        for centre in selection.order[item, :3].tolist():
            wanted = (patches + method.places(patches))[item][owner[item] == centre].mean(dim=0)
            torch.testing.assert_close(rows[item, centre], wanted, rtol=1e-5, atol=1e-5)


def test_refusals() -> None:
    shape = model_shape()
    with pytest.raises(UsageError, match="place of every patch"):
        Method(Config()).build(shape._replace(encoder=shape.encoder._replace(grid=None)))
    with pytest.raises(UsageError, match="heads"):
        Method(Config(heads=3)).build(shape)
    with pytest.raises(UsageError, match="threshold"):
        Config(threshold=-1.0)
