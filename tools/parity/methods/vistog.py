"""vistog: every patch joins the semantic token most like it; a group is its token and its patches' mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params

CLOSE = 2e-5  # logits nearer than this, relative to their spread, may change places in float32
EPS = 1e-5  # of the layer norms


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Merged groups of one item, in slots 0, 1, ...; all patches for a budget that keeps them all."""
    if facts.extra is None or "token_embedding" not in facts.adapter:
        raise NoOracleError("vistog needs its adapter, and an encoder that its tokens run through")
    weights = {name: np.asarray(value, np.float64) for name, value in facts.adapter.items()}
    tokens = np.asarray(facts.extra(facts.adapter["token_embedding"]), np.float64)  # m c
    patches = np.asarray(facts.features, np.float64)  # n c
    n, groups = len(patches), len(tokens)
    count = final_count(groups, n, budget.keep_ratio, budget.keep_tokens, {})
    if count > groups and count == n:
        return Choice(tuple(range(n)), False, patches)
    count = min(count, groups)
    members, fragile = _assign(tokens[:count], patches, weights)
    rows = [_merge(tokens[g], [patches[i] for i in members[g]], weights) for g in range(count)]
    return Choice(tuple(range(count)), fragile, np.stack(rows))


def _assign(
    tokens: np.ndarray, patches: np.ndarray, weights: Mapping[str, np.ndarray]
) -> tuple[list[list[int]], bool]:
    """Patches of each group, and whether one of them could as well be in another."""
    queries = [_norm(token, weights, "norm_group") @ weights["q_proj.weight"] for token in tokens]
    members: list[list[int]] = [[] for _ in tokens]
    fragile = False
    for i, patch in enumerate(patches):
        key = _norm(patch, weights, "norm_patch") @ weights["k_proj.weight"]
        alike = [math.fsum(query * key) / math.sqrt(len(key)) for query in queries]
        best = max(range(len(alike)), key=lambda g: (alike[g], -g))
        others = [value for g, value in enumerate(alike) if g != best]
        size = max(math.sqrt(math.fsum(q * q)) for q in queries) * math.sqrt(math.fsum(key * key))
        fragile |= bool(others) and alike[best] - max(others) <= CLOSE * size / math.sqrt(len(key))
        members[best].append(i)
    return members, fragile


def _merge(token: np.ndarray, patches: list[np.ndarray], weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """The token, plus the mean over `members + 1` of what it holds, plus a perceptron of both."""
    total = np.zeros_like(token)
    for patch in patches:
        total = total + patch @ weights["v_proj.weight"]
    merged = token + total / (len(patches) + 1) @ weights["out_proj.weight"] + weights["out_proj.bias"]
    hidden = _norm(merged, weights, "norm_out") @ weights["mlp.fc1.weight"] + weights["mlp.fc1.bias"]
    active = np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in hidden])
    return np.asarray(merged + active @ weights["mlp.fc2.weight"] + weights["mlp.fc2.bias"])


def _norm(row: np.ndarray, weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    mean = math.fsum(row) / len(row)
    variance = math.fsum((x - mean) ** 2 for x in row) / len(row)
    scaled = np.array([(x - mean) / math.sqrt(variance + EPS) for x in row])
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])
