"""What the papers' rules choose, written as plain loops: the reference for every exported pruner.

Shares no code with ``foveate.pruning`` and imports numpy only. One image or one sequence at a time, double
precision throughout. Options come as the ``params`` of a manifest's cut; missing ones take the documented
default.

**What equal means.** Order and count of an exported graph must be *equal* to the oracle's. Both sides
follow one stated policy for ties: equal scores keep the lower index, and inside a knee rule values that
agree to within 1e-6 of the curve's height are equal. Beyond that, a rule that cuts a continuous curve can
always meet two scores closer than float32 can tell apart; then no two implementations need agree, and
:func:`fragile` says so. It explains a difference, it does not excuse one: the comparison stays an equality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FLAT = 1e-5  # a curve whose ends agree to this share of their size is flat
TIE = 1e-6  # values closer than this share of the curve's height are equal
FIXED, VISUAL, TEXT = 0, 1, 2

Params = Mapping[str, Any]


class Choice(NamedTuple):
    """``order``: kept candidates ascending, then the others ascending; ``count``: how many are kept."""

    order: list[int]
    count: int  # type: ignore[assignment]  # hides tuple.count


# Budgets and rounding


def ceil_share(ratio: float, size: int) -> int:
    """``ceil(ratio * size)``, less the noise of rounding: 1e-4 of a token, or 2^-23 of the product."""
    product = ratio * size
    return math.ceil(product - max(1e-4, product / 2**23))


def scale_count(count: int, scale: float) -> int:
    """``count * scale`` rounded half up, with the same allowance for noise."""
    product = count * scale
    return math.floor(product + 0.5 + max(1e-4, product / 2**23))


def final_count(rule: int, size: int, keep_ratio: float, keep_tokens: int, params: Params) -> int:
    """The budget if there is one (tokens before ratio), else the rule's count within the method's limits."""
    if size == 0:
        return 0
    if keep_tokens > 0:
        return min(keep_tokens, size)
    if keep_ratio > 0:
        return min(max(ceil_share(keep_ratio, size), 1), size)
    multiple = params.get("round_to", 1)
    while rule % multiple:
        rule += 1
    if params.get("max_keep") is not None:
        rule = min(rule, params["max_keep"])
    return min(max(rule, int(params.get("min_keep", 1)), 1), size)


# Knees: each takes a falling list and gives a count, or None when there is no knee


def knee_chord(curve: Sequence[float], params: Params) -> int | None:
    """1 - x - y is largest, x and y scaled to [0, 1]; the knee itself is kept."""
    m, distances = len(curve), []
    for i in range(m):
        x = i / (m - 1)
        y = (curve[i] - curve[-1]) / (curve[0] - curve[-1])
        distances.append(1 - x - y)
    return _first_near(distances, max(distances), TIE) + 1 if max(distances) > TIE else None


def knee_recursive(curve: Sequence[float], params: Params) -> int | None:
    """The chord knee, plus the chord knee of what is left, unless that is flat next to the whole."""
    first = knee_chord(curve, params)
    if first is None:
        return None
    rest = curve[first:]
    if rest[0] - rest[-1] <= FLAT * (curve[0] - curve[-1]):
        return first
    return first + (knee_chord(rest, params) or 0)


def knee_cumulative(curve: Sequence[float], params: Params) -> int | None:
    """The cumulative curve leads its diagonal for as long as scores are above the mean."""
    mean = math.fsum(curve) / len(curve)
    count = 0
    while count < len(curve) and curve[count] - mean > TIE * (curve[0] - curve[-1]):
        count += 1
    return count


def knee_iqr(curve: Sequence[float], params: Params) -> int | None:
    """Scores above Q3 + 1.5 (Q3 - Q1), numpy's linear percentiles; at least one."""
    low, high = np.percentile(np.asarray(curve, dtype=np.float64), [25, 75])
    fence = float(high + 1.5 * (high - low))
    return max(1, sum(1 for each in curve if each - fence > TIE * (curve[0] - curve[-1])))


def knee_derivative(curve: Sequence[float], params: Params) -> int | None:
    """Largest first or second difference of the curve under a triangular window, after ``skip`` places."""
    m, half, skip = len(curve), params.get("smooth", 15) // 2, params.get("skip", 7)
    smooth = []
    for i in range(m):
        reach = min(half, i, m - 1 - i)
        weights = {i + step: reach + 1 - abs(step) for step in range(-reach, reach + 1)}
        smooth.append(math.fsum(curve[j] * weight for j, weight in weights.items()) / sum(weights.values()))
    measures = {}
    for i in range(m - 1):
        if params.get("difference", 1) == 1 and i >= skip:
            measures[i] = smooth[i] - smooth[i + 1]
        if params.get("difference", 1) == 2 and i >= max(skip, 1):
            measures[i] = smooth[i - 1] - 2 * smooth[i] + smooth[i + 1]
    tie = TIE * (curve[0] - curve[-1])
    if not measures or max(measures.values()) - min(measures.values()) <= tie:
        return None
    return min(i for i, value in measures.items() if value >= max(measures.values()) - tie) + 1


KNEES: dict[str, Callable[[Sequence[float], Params], int | None]] = {
    "chord": knee_chord,
    "recursive": knee_recursive,
    "cumulative": knee_cumulative,
    "iqr": knee_iqr,
    "derivative": knee_derivative,
}


def knee_count(curve: Sequence[float], params: Params) -> int:
    """Tokens before the knee of a falling list, times ``knee_scale``; all of them when there is no knee."""
    if _is_flat(curve):
        return len(curve)
    count = KNEES[params.get("knee", "chord")](curve, params)
    if count is None:
        return len(curve)
    return min(scale_count(count, params.get("knee_scale", 1.0)), len(curve))


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
    """Similarity of each patch to CLS for one image.

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


def encoder_order(
    scores: Sequence[float], params: Params, *, keep_ratio: float = 0.0, keep_tokens: int = 0
) -> Choice:
    """cls-knee: the head of the sorted scores, up to the knee or the budget. Works for one image."""
    ranking = _ranking(scores, range(len(scores)))
    rule = knee_count([scores[i] for i in ranking], params)
    limits = {"min_keep": 16, **params}
    return _choice(ranking[: final_count(rule, len(scores), keep_ratio, keep_tokens, limits)], len(scores))


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
    if params.get("profile", "faithful") == "faithful":
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
) -> bool:
    """Whether noise of float32's size on the scores changes what ``decide`` chooses.

    Tries one disturbance against the choice (kept scores sink, dropped ones rise), then random ones. True
    for exact ties too: they are settled by index only while they stay exact.
    """
    plain = decide(scores)
    kept = set(plain.order[: plain.count])
    against = [-1.0 if i in kept else 1.0 for i in range(len(scores))]
    generator = np.random.default_rng(0)
    for draw in range(draws):
        signs = generator.uniform(-1, 1, size=len(scores)) if draw else against
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


def _is_flat(curve: Sequence[float]) -> bool:
    return not curve or curve[0] - curve[-1] <= FLAT * max(abs(curve[0]), abs(curve[-1]))


def _first_near(values: Sequence[float], top: float, tie: float) -> int:
    return next(i for i, value in enumerate(values) if value >= top - tie)


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
