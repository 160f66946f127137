"""random: uniform, repeatable, changed by its seed, and never mixed up with text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.methods.random import PRIME, Config, Method, hash_index
from foveate.pruning.selection import Selection
from foveate.pruning.spec import Site
from foveate.tools.parity import oracles


def encoder(n: int, seeds: list[int] | None, ratio: float = 0.0, config: Config | None = None) -> Selection:
    b = len(seeds or [0])
    rows, tile = torch.zeros(b, n, 3), torch.zeros(b, n, dtype=torch.int64)
    given = EncoderEvidence(rows, rows, None, {}, {}, 1, lambda score: score, tile)
    seed = None if seeds is None else torch.tensor(seeds)
    budget = Budget(torch.full((b,), ratio), torch.zeros(b, dtype=torch.int64))
    selection: Selection = Method(config or Config(), Site.ENCODER)(given, budget, seed)
    return selection


def kept(selection: Selection, b: int = 0) -> list[int]:
    chosen: list[int] = selection.order[b, : selection.count[b]].tolist()
    return chosen


def test_hash_is_one_to_one_and_exact() -> None:
    index = torch.arange(20000)
    hashed = hash_index(index, torch.tensor(7))
    assert len(set(hashed.tolist())) == 20000
    assert 0 <= int(hashed.min()) <= int(hashed.max()) < PRIME
    for i in (0, 1, 19999):
        value = i
        for key in (668265263, 374761393, 1274126177, 2147001325):
            value = pow(value + 7 + key, 5, PRIME)
        assert hashed[i] == value


def test_int64_never_overflows() -> None:
    extreme = torch.tensor([0, PRIME - 1])
    wanted = [0, PRIME - 1]
    for key in (668265263, 374761393, 1274126177, 2147001325):
        wanted = [pow(i + 2 * PRIME - 2 + key, 5, PRIME) for i in wanted]
    assert hash_index(extreme, torch.tensor(2 * PRIME - 2)).tolist() == wanted


def test_seeds() -> None:
    selection = encoder(100, [0, 1, 0, PRIME])
    assert kept(selection, 0) == kept(selection, 2) == kept(selection, 3) != kept(selection, 1)
    assert kept(encoder(100, None)) == kept(selection, 0)
    baked = encoder(100, [3], config=Config(seed=4))
    assert kept(baked) == kept(encoder(100, [7]))


def test_equal_to_the_oracle() -> None:
    for n in (1, 2, 10, 77):
        for seed in (0, 5, 2**45 + 3):
            selection = encoder(n, [seed], ratio=0.3)
            wanted = oracles.random_order(range(n), (), n, {}, seed=seed, keep_ratio=float(np.float32(0.3)))
            assert (selection.order[0].tolist(), int(selection.count)) == wanted


def test_uniform() -> None:
    """Chi-squared over tokens, and over neighbouring pairs, for 4000 seeds: no token or pair is favoured."""
    n, draws = 16, 4000
    selection = encoder(n, list(range(draws)), ratio=0.25)
    chosen = torch.zeros(draws, n)
    chosen.scatter_(1, selection.order[:, :4], 1.0)
    share = chosen.mean(0)
    assert (selection.count == 4).all()
    # Standard deviation of a share is sqrt(0.25 * 0.75 / 4000) = 0.0068; 4.5 of them.
    assert (share - 0.25).abs().max() < 0.031
    together = (chosen.T @ chosen / draws)[~torch.eye(n, dtype=torch.bool)]
    # Pairs: 4 * 3 / (16 * 15) = 0.05, deviation 0.0034.
    assert (together - 0.05).abs().max() < 0.016


def test_it_ranks_by_nothing() -> None:
    assert encoder(9, [1]).score is None
    assert not Method.ranks


def decoder(roles: list[list[int]], length: list[int], seed: list[int], ratio: float = 0.0) -> Selection:
    b, s = len(roles), len(roles[0])
    rows: Tensor = torch.full((b, 1), -1)
    state = torch.zeros(b, 1, s, 2)
    given = DecoderEvidence(
        state, state, state, state, state[:, 0], torch.tensor(roles), rows, torch.tensor(length), 1.0
    )
    budget = Budget(torch.full((b,), ratio), torch.zeros(b, dtype=torch.int64))
    selection: Selection = Method(Config(), Site.DECODER)(given, budget, torch.tensor(seed))
    return selection


def test_decoder_drops_visual_tokens_only() -> None:
    roles = [[0, 1, 1, 1, 1, 2, 2, 0, 1, 1], [0, 2, 2, 2, 0, 0, 1, 1, 1, 1]]
    selection = decoder(roles, [8, 6], [1, 2])
    assert selection.count.tolist() == [6, 6]
    assert {0, 5, 6, 7} <= set(kept(selection))
    assert kept(selection, 1) == [0, 1, 2, 3, 4, 5]
    assert decoder([[0]], [1], [3]).order.tolist() == [[0]]
    assert kept(decoder(roles[:1], [8], [1], ratio=1.0)) == list(range(8))


@pytest.mark.parametrize("seed", range(5))
def test_budget_is_exact(seed: int) -> None:
    for ratio, wanted in {0.01: 1, 0.1: 10, 0.33: 33, 1.0: 100}.items():
        assert encoder(100, [seed], ratio).count.item() == wanted
