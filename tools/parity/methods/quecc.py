"""quecc: one token for each tile of patches, by loops over tiles, heads and channels, in double precision."""

from __future__ import annotations

import math

import numpy as np

from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, Params

EPS = 1e-6


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """The first slots, with the tiles' tokens; everything as it was where the budget keeps everything."""
    features = np.asarray(facts.features, np.float64)
    n = len(features)
    given = budget.keep_ratio > 0 or budget.keep_tokens > 0
    if given and final_count(n, n, **budget.amount, params={}) >= n:
        return Choice(tuple(range(n)), features=features)
    assert facts.grid is not None
    assert facts.text is not None
    weights = {name: np.asarray(value, np.float64) for name, value in facts.adapter.items()}
    stride = tile_side(facts.grid, params.get("stride"))
    states = hidden_states(facts, params.get("states"))
    text = _norm(_linear(np.asarray(facts.text, np.float64), weights, "text_proj"), weights, "text_norm")
    queries = [_mapped(patch + text, weights, "query") for patch in features]
    keys = [_mapped(row, weights, "key") for row in states]
    values = [_mapped(row, weights, "value") for row in states]
    tokens = []
    for tile in tiles(facts.grid, stride):
        asked = weights["conv_bias"].copy()
        for place, patch in enumerate(tile):
            asked = asked + weights["conv"][place] * queries[patch]
        tokens.append(_attend(asked, [keys[p] for p in tile], [values[p] for p in tile], weights, params))
    return Choice(tuple(range(len(tokens))), features=np.stack(tokens))


def tile_side(grid: tuple[int, int], stride: int | None) -> int:
    """The given side, or the least one that divides the grid and is above a seventh of its longer side."""
    side = 2
    while stride is None:
        if grid[0] % side == 0 and grid[1] % side == 0 and side * 7 > max(grid):
            stride = side
        side += 1
    return stride


def tiles(grid: tuple[int, int], side: int) -> list[list[int]]:
    """The patches of each tile; tiles and patches in raster order."""
    return [
        [row * grid[1] + column for row in range(top, top + side) for column in range(left, left + side)]
        for top in range(0, grid[0], side)
        for left in range(0, grid[1], side)
    ]


def hidden_states(facts: EncoderFacts, chosen: list[int] | None) -> np.ndarray:
    """The hidden states that keys and values are made of, side by side, CLS left out: [n, m w]."""
    last = facts.feature_layer
    layers = chosen or [round(last * share / 23) for share in (12, 16, 22, 23)]
    skip = 1 if facts.has_cls else 0
    parts = [np.asarray(facts.hidden[i], np.float64)[0, skip:] for i in sorted(set(layers))]
    return np.concatenate(parts, axis=1)


def _attend(
    query: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray], weights: Params, params: Params
) -> np.ndarray:
    """One query [c] over the patches of its tile."""
    heads = int(params.get("heads", 8))
    asked = _linear(query, weights, "q_proj")
    looked = [_linear(key, weights, "k_proj") for key in keys]
    given = [_linear(value, weights, "v_proj") for value in values]
    width = len(asked) // heads
    mixed = np.zeros(len(asked))
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = [float(asked[part] @ key[part]) / math.sqrt(width) for key in looked]
        top = max(logits)
        powers = [math.exp(logit - top) for logit in logits]
        for power, value in zip(powers, given, strict=True):
            mixed[part] += power / math.fsum(powers) * value[part]
    return _linear(mixed, weights, "out_proj")


def _mapped(row: np.ndarray, weights: Params, name: str) -> np.ndarray:
    inner = _linear(row, weights, f"{name}.mlp.fc1")
    bent = np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in inner])
    return _norm(_linear(bent, weights, f"{name}.mlp.fc2"), weights, f"{name}.norm")


def _linear(row: np.ndarray, weights: Params, name: str) -> np.ndarray:
    return np.asarray(row @ weights[f"{name}.weight"] + weights[f"{name}.bias"])


def _norm(row: np.ndarray, weights: Params, name: str) -> np.ndarray:
    spread = math.sqrt(float(((row - row.mean()) ** 2).mean()) + EPS)
    return np.asarray((row - row.mean()) / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"])
