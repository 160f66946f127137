"""setok: patches gather around density peaks; clusters are merged by attention inside, then among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params

CLOSE = 4e-5  # relative: densities, gammas and distances nearer than this may change places in float32
EPS = 1e-5  # of the layer norms

Weights = Mapping[str, np.ndarray]


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Centres of one item and their merged clusters; all patches for a budget that keeps them all."""
    if facts.grid is None or "out_proj.weight" not in facts.adapter:
        raise NoOracleError("setok needs its adapter, and one picture whose patches have places")
    weights = {name: np.asarray(value, np.float64) for name, value in facts.adapter.items()}
    patches = np.asarray(facts.features, np.float64)
    n = len(patches)
    codes = np.stack([place_code(i, facts.grid[1], patches.shape[1]) for i in range(n)])
    distance = _distances(patches, codes, bool(params.get("normalise", True)))
    near = min(math.ceil(64 * n / 729) if params.get("neighbours") is None else params["neighbours"], n)
    gamma, unsure = _peaks(distance, near)
    threshold = float(params.get("threshold", 0.45))
    passed = sum(value > threshold for value in gamma)
    count = final_count(passed or near, n, budget.keep_ratio, budget.keep_tokens, {})
    if budget.keep_ratio or budget.keep_tokens:
        if count == n:
            return Choice(tuple(range(n)), False, patches)
    else:
        unsure |= any(abs(value - threshold) <= CLOSE * max(threshold, 1e-3) for value in gamma)
    ranking = sorted(range(n), key=lambda i: (-gamma[i], i))
    if count < n:
        last, next_one = gamma[ranking[count - 1]], gamma[ranking[count]]
        unsure |= last - next_one <= CLOSE * max(abs(last), 1e-3)
    centres = sorted(ranking[:count])
    owner, unclear = _owners(distance, centres)
    rows = merge(patches + codes, owner, centres, weights, int(params.get("heads", 2)))
    return Choice(tuple(centres), unsure or unclear, rows)


def place_code(index: int, columns: int, width: int) -> np.ndarray:
    """Sine and cosine in turn, of the row in the first half of the channels, of the column in the second."""
    half = 2 * math.ceil(width / 4)
    code = []
    for at in divmod(index, columns):
        for j in range(half // 2):
            angle = at / 10000 ** (2 * j / half)
            code += [math.sin(angle), math.cos(angle)]
    return np.array(code[:width])


def _distances(patches: np.ndarray, codes: np.ndarray, normalise: bool) -> np.ndarray:
    """Root of the mean squared difference of every two patches, places added."""
    rows = []
    for patch, code in zip(patches, codes, strict=True):
        rows.append((standard(patch) if normalise else patch) + code)
    distance = np.zeros((len(rows), len(rows)))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            distance[i, j] = math.sqrt(float(((one - other) ** 2).sum()) / len(one))
    return distance


def _peaks(distance: np.ndarray, near: int) -> tuple[list[float], bool]:
    """Density times distance to the nearest denser patch, and whether noise could change who is denser."""
    n = len(distance)
    density = [math.exp(-math.fsum(sorted(d * d for d in row)[:near]) / near) for row in distance]
    unsure, gamma = False, []
    for i in range(n):
        denser = [j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        room = CLOSE * max(density[i], 1e-30)
        close = [j for j in range(n) if j != i and abs(density[j] - density[i]) <= room]
        close = [j for j in close if not _tied(distance, i, j, near)]
        gap = min((distance[i, j] for j in denser), default=distance.max())
        turned = min((distance[i, j] for j in denser if j not in close), default=distance.max())
        # A rival matters where it would be, or is, the nearest denser patch.
        nearest_rival = min((distance[i, j] for j in close), default=math.inf)
        unsure |= turned != gap or nearest_rival < gap
        gamma.append(density[i] * gap)
    return gamma, unsure


def _tied(distance: np.ndarray, i: int, j: int, near: int) -> bool:
    """Whether two densities are one number by construction: lone patches, a pair of mutual neighbours."""
    if near > 2:
        return False
    pair = all(sorted(set(distance[one]))[1:2] == [distance[i, j]] for one in (i, j))
    return near == 1 or pair


def _owners(distance: np.ndarray, centres: Sequence[int]) -> tuple[list[int], bool]:
    """The nearest centre of every patch; centres own themselves."""
    owner, unclear = [], False
    for i in range(len(distance)):
        if i in centres:
            owner.append(i)
            continue
        order = sorted(centres, key=lambda j: (distance[i, j], j))
        owner.append(order[0])
        if len(order) > 1:
            unclear |= distance[i, order[1]] - distance[i, order[0]] <= CLOSE * max(
                distance[i, order[1]], 1e-3
            )
    return owner, unclear


def merge(
    x: np.ndarray, owner: Sequence[int], centres: Sequence[int], weights: Weights, heads: int
) -> np.ndarray:
    """Merged clusters ``[k, c]`` of patches with their places ``[n, c]``."""
    means = []
    for centre in centres:
        members = [i for i in range(len(x)) if owner[i] == centre]
        means.append(_block(x[members], weights, "inner", heads).mean(axis=0))
    rows = _block(np.stack(means), weights, "outer", heads)
    return np.asarray(rows @ weights["out_proj.weight"] + weights["out_proj.bias"])


def _block(x: np.ndarray, weights: Weights, name: str, heads: int) -> np.ndarray:
    """Attentions behind one shared norm, then a perceptron behind its own."""
    depth = 0
    while f"{name}.attentions.{depth}.q_proj.weight" in weights:
        x = x + _attention(_norms(x, weights, f"{name}.norm1"), weights, f"{name}.attentions.{depth}", heads)
        depth += 1
    hidden = _linear(_norms(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
    active = np.array([[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in hidden])
    return np.asarray(x + _linear(active, weights, f"{name}.mlp.fc2"))


def _attention(x: np.ndarray, weights: Weights, name: str, heads: int) -> np.ndarray:
    query, key, value = (_linear(x, weights, f"{name}.{part}_proj") for part in ("q", "k", "v"))
    width = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for at in range(0, x.shape[1], width):
        part = slice(at, at + width)
        for i in range(len(x)):
            logits = [float(query[i, part] @ key[j, part]) / math.sqrt(width) for j in range(len(x))]
            powers = [math.exp(logit - max(logits)) for logit in logits]
            for j, power in enumerate(powers):
                mixed[i, part] += power / math.fsum(powers) * value[j, part]
    return _linear(mixed, weights, f"{name}.out_proj")


def _linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    return np.asarray(x @ weights[f"{name}.weight"] + weights[f"{name}.bias"])


def _norms(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    rows = np.stack([standard(row) for row in x])
    return np.asarray(rows * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def standard(row: np.ndarray) -> np.ndarray:
    """A row with mean 0 and variance 1."""
    mean = math.fsum(row) / len(row)
    variance = math.fsum((v - mean) ** 2 for v in row) / len(row)
    return np.asarray((row - mean) / math.sqrt(variance + EPS))
