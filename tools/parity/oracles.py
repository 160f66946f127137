"""What the papers' rules choose, written as plain loops: the reference for every exported pruner.

Shares no code with ``foveate.pruning``; imports numpy and its other half, ``counts``, only. One image or one
sequence at a time, double precision throughout. Options come as the ``params`` of a manifest's cut; missing
ones take the documented default.

**What equal means.** Order and count of an exported graph must be *equal* to the oracle's. Both sides
follow one stated policy for ties: equal scores keep the lower index, and inside a knee rule values that
agree to within 1e-6 of the curve's height are equal. Beyond that, a rule that cuts a continuous curve can
always meet two scores closer than float32 can tell apart; then no two implementations need agree, and
:func:`fragile` says so. It explains a difference, it does not excuse one: the comparison stays an equality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from foveate.tools.parity.counts import Params, ceil_share, final_count, knee_count

FIXED, VISUAL, TEXT = 0, 1, 2


class Choice(NamedTuple):
    """``order``: kept candidates ascending, then the others ascending; ``count``: how many are kept."""

    order: list[int]
    count: int  # type: ignore[assignment]  # hides tuple.count


# Encoder site


def encoder_scores(
    kind: str,
    *,
    features: ArrayLike = (),
    cls: ArrayLike = (),
    query: Mapping[int, ArrayLike] | None = None,
    key: Mapping[int, ArrayLike] | None = None,
    num_heads: int = 1,
) -> list[float]:
    """Similarity of each patch to CLS for one tile.

    ``features [n, c]`` and ``cls [c]`` for ``cosine``; ``query`` and ``key``, layer -> raw projection
    ``[n+1, c]`` with CLS first, for ``cls_full`` (one layer) and ``cls_mean`` (any number).
    """
    if kind == "cosine":
        return [_cosine(patch, _double(cls)) for patch in _double(features)]
    total: list[float] = []
    for layer in sorted(query or {}):
        rows, columns = _double((query or {})[layer]), _double((key or {})[layer])
        width = rows.shape[1] // (1 if kind == "cls_full" else num_heads)
        heads = [
            _softmax(
                [
                    float(rows[0, at : at + width] @ each[at : at + width]) / math.sqrt(width)
                    for each in columns
                ]
            )
            for at in range(0, rows.shape[1], width)
        ]
        mean = [math.fsum(head[j] for head in heads) / len(heads) for j in range(1, len(columns))]
        total = [a + b for a, b in zip(total, mean, strict=True)] if total else mean
    return total


def received_scores(query: ArrayLike, key: ArrayLike, num_heads: int, skip: int) -> list[float]:
    """Attention that each patch of one tile receives, mean over heads and over all rows.

    ``query`` and ``key`` ``[r, width]``, heads side by side; the first ``skip`` rows (CLS) look and are
    looked at, but are no patches.
    """
    rows, columns = _double(query), _double(key)
    width = rows.shape[1] // num_heads
    received, looks = np.zeros(len(columns)), 0
    for at in range(0, rows.shape[1], width):
        for row in rows[:, at : at + width]:
            # Products summed one by one, not a matrix product: equal keys must give equal numbers.
            logits = (columns[:, at : at + width] * row).sum(axis=1) / math.sqrt(width)
            powers = np.exp(logits - logits.max())
            received, looks = received + powers / powers.sum(), looks + 1
    return [float(share) / looks for share in received[skip:]]


def prompt_scores(projected: ArrayLike, prompt: ArrayLike) -> list[float]:
    """Cosine of each candidate ``[n, d]`` with the mean of the user's words ``[d]``."""
    return [_cosine(candidate, _double(prompt)) for candidate in _double(projected)]


def encoder_order(
    scores: Sequence[float],
    params: Params,
    *,
    tile: Sequence[int] = (),
    keep_ratio: float = 0.0,
    keep_tokens: int = 0,
) -> Choice:
    """cls-knee and saliency-knee: the head of the sorted scores, up to the knee or the budget, for one item.

    With ``spread=tile`` the count is the same, but candidates are ranked by their places inside their tiles.
    """
    ranking = _ranking(scores, range(len(scores)))
    rule = knee_count([scores[i] for i in ranking], params)
    limits = {"min_keep": 16, **params}
    count = final_count(rule, len(scores), keep_ratio, keep_tokens, limits)
    if params.get("spread", "image") == "tile":
        ranking = spread_ranking(scores, tile)
    return _choice(ranking[:count], len(scores))


def spread_ranking(scores: Sequence[float], tile: Sequence[int]) -> list[int]:
    """Candidates by (r + 0.5) / m, r the place of m among those of the same tile; ties by rising index."""
    shares: dict[int, Fraction] = {}
    for each in set(tile):
        members = [i for i, name in enumerate(tile) if name == each]
        for place, i in enumerate(_ranking(scores, members)):
            shares[i] = Fraction(2 * place + 1, 2 * len(members))
    return sorted(shares, key=lambda i: (shares[i], i))


# Decoder site


def decoder_scores(
    query: ArrayLike,
    key: ArrayLike,
    roles: Sequence[int],
    query_index: Sequence[int],
    length: int,
    scale: float,
    which: str = "text",
) -> tuple[list[float], list[int]]:
    """Attention that each token of one chunk receives from the question, and from how many rows.

    ``query [h, s, head_dim]``, ``key [g, s, head_dim]``. Mean over heads and over the question rows at or
    after the token; a text token's own row is left out.
    """
    queries, keys = _double(query), _double(key)
    h, s = queries.shape[:2]
    received, rows_behind = [0.0] * s, [0] * s
    for row in question_rows(query_index, length, which):
        seen = range(min(row + 1, length))
        heads = []
        for head in range(h):
            group = keys[head // (h // keys.shape[0])]
            heads.append(_softmax([float(queries[head, row] @ group[j]) * scale for j in seen]))
        for j in seen:
            if j == row and roles[j] == TEXT:
                continue
            received[j] += math.fsum(head[j] for head in heads) / h
            rows_behind[j] += 1
    return [total / max(rows, 1) for total, rows in zip(received, rows_behind, strict=True)], rows_behind


def question_rows(query_index: Sequence[int], length: int, which: str) -> list[int]:
    """Rows that define relevance: those given, the last of those given, or every valid row."""
    if which == "all":
        return list(range(length))
    given = [int(row) for row in query_index if 0 <= row < length]
    return [max(given)] if which == "last" and given else given


def decoder_order(
    query: ArrayLike,
    key: ArrayLike,
    roles: Sequence[int],
    query_index: Sequence[int],
    length: int,
    scale: float,
    params: Params,
    *,
    keep_ratio: float = 0.0,
    keep_tokens: int = 0,
) -> Choice:
    """text-relevance over one chunk: protected tokens, the best visual ones, and the best text (faithful)."""
    roles = [int(role) for role in roles]
    scores, rows = decoder_scores(query, key, roles, query_index, length, scale, params.get("query", "text"))
    return decoder_choice(scores, rows, roles, length, params, keep_ratio=keep_ratio, keep_tokens=keep_tokens)


def decoder_choice(
    scores: Sequence[float],
    rows: Sequence[int],
    roles: Sequence[int],
    length: int,
    params: Params,
    *,
    keep_ratio: float = 0.0,
    keep_tokens: int = 0,
) -> Choice:
    """The rule of text-relevance on given scores; ``rows`` is how many question rows each score rests on."""
    visual = [j for j in range(length) if roles[j] == VISUAL]
    text = [j for j in range(length) if roles[j] == TEXT]
    everything = _choice(range(length), len(roles))
    if not any(rows[j] for j in visual):
        return everything  # no image in this chunk, or a question that sees none of it
    ranking = _ranking(scores, visual)
    if params.get("rule", "ratio") == "ratio":
        rule = ceil_share(params.get("ratio", 0.5), len(visual))
    else:
        rule = knee_count([scores[j] for j in ranking], params)
    count = final_count(rule, len(visual), keep_ratio, keep_tokens, params)
    if count == len(visual) and (keep_ratio > 0 or keep_tokens > 0):
        return everything
    dropped = set(ranking[count:])
    if params.get("profile", "safe") == "faithful":
        dropped |= set(_ranking(scores, text)[ceil_share(params.get("text_ratio", 0.5), len(text)) :])
    return _choice([j for j in range(length) if j not in dropped], len(roles))


# Random baseline


def random_order(
    candidates: Sequence[int],
    others: Sequence[int],
    size: int,
    params: Params,
    *,
    seed: int = 0,
    keep_ratio: float = 0.0,
    keep_tokens: int = 0,
) -> Choice:
    """random: the ``candidates`` with the largest hash, next to ``others`` (always kept), out of ``size``."""
    prime = 2**31 - 1
    base = seed % prime + params.get("seed", 0)
    hashes = {}
    for index in candidates:
        value = index
        for key in (668265263, 374761393, 1274126177, 2147001325):
            value = pow(value + base + key, 5, prime)
        hashes[index] = value
    rule = ceil_share(params.get("ratio", 0.5), len(candidates))
    count = final_count(rule, len(candidates), keep_ratio, keep_tokens, {})
    best = sorted(candidates, key=lambda index: (-hashes[index], index))[:count]
    return _choice([*best, *others], size)


# Near ties


def fragile(
    decide: Callable[[Sequence[float]], Choice],
    scores: Sequence[float],
    *,
    noise: float = 1e-6,
    draws: int = 16,
    together: Sequence[int] = (),
) -> bool:
    """Whether noise of float32's size on the scores changes what ``decide`` chooses.

    Tries one disturbance against the choice (kept scores sink, dropped ones rise), then random ones. True
    for exact ties too: they are settled by index only while they stay exact. ``together`` names for each
    score another one whose noise it shares, where the two are one number by construction.
    """
    plain = decide(scores)
    kept = set(plain.order[: plain.count])
    against = [-1.0 if i in kept else 1.0 for i in range(len(scores))]
    generator = np.random.default_rng(0)
    for draw in range(draws):
        signs = generator.uniform(-1, 1, size=len(scores)) if draw else against
        signs = [signs[i] for i in together] if together else signs
        moved = [score + noise * abs(score) * sign for score, sign in zip(scores, signs, strict=True)]
        if decide(moved) != plain:
            return True
    return False


# Shared


def _ranking(scores: Sequence[float], pool: Sequence[int] | range) -> list[int]:
    """``pool`` from the largest score to the smallest; equal scores by rising index."""
    return sorted(pool, key=lambda i: (-scores[i], i))


def _choice(kept: Sequence[int] | range, size: int) -> Choice:
    chosen = sorted(kept)
    members = set(chosen)
    return Choice(chosen + [i for i in range(size) if i not in members], len(chosen))


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(each - top) for each in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norm = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / max(norm, 1e-12)


def _double(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
