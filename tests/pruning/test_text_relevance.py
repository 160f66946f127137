"""text-relevance: who is ranked, by which rows, and who is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.pruning.attention import query_rows, relevance
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence
from foveate.pruning.methods.text_relevance import Config, Method
from foveate.tools.parity import oracles

HEADS, GROUPS, WIDTH, SCALE = 6, 2, 4, 0.5
ROLES = [0, 1, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 0]
ROWS = [8, 9, 10, 11, 12]


def evidence(
    roles: list[list[int]], rows: list[list[int]], length: list[int], seed: int = 0
) -> DecoderEvidence:
    draw = np.random.default_rng(seed)
    b, s = len(roles), len(roles[0])

    def make(heads: int) -> Tensor:
        return torch.from_numpy(draw.normal(size=(b, heads, s, WIDTH)) * 2).float()

    index = torch.tensor(rows, dtype=torch.int64).reshape(b, -1)
    return DecoderEvidence(
        make(HEADS), make(GROUPS), make(HEADS), make(GROUPS), torch.zeros(b, s, 4),
        torch.tensor(roles), index, torch.tensor(length), SCALE,
    )  # fmt: skip


def choose(
    given: DecoderEvidence, keep_ratio: float = 0.0, keep_tokens: int = 0, **options: Any
) -> list[oracles.Choice]:
    b = given.length.shape[0]
    budget = Budget(torch.full((b,), keep_ratio), torch.full((b,), keep_tokens))
    order, count, *_ = Method(Config(**options))(given, budget, None)
    assert (order.dtype, count.dtype) == (torch.int64, torch.int64)
    return [oracles.Choice(row, k) for row, k in zip(order.tolist(), count.tolist(), strict=True)]


def oracle(
    given: DecoderEvidence, b: int, budget: tuple[float, int] = (0, 0), **options: Any
) -> oracles.Choice:
    plain = options.get("rope_free", False)
    return oracles.decoder_order(
        (given.query_plain if plain else given.query)[b],
        (given.key_plain if plain else given.key)[b],
        given.token_role[b].tolist(),
        given.query_index[b].tolist(),
        int(given.length[b]),
        SCALE,
        options,
        keep_ratio=budget[0],
        keep_tokens=budget[1],
    )


def kept(choice: oracles.Choice) -> list[int]:
    return choice.order[: choice.count]


def one(seed: int = 0) -> DecoderEvidence:
    return evidence([ROLES], [ROWS], [len(ROLES)], seed)


@st.composite
def prompts(draw: st.DrawFn) -> DecoderEvidence:
    """Up to three sequences of any roles, with padding; rows may be anywhere, also beyond the length."""
    b, s, t = draw(st.integers(1, 3)), draw(st.integers(1, 18)), draw(st.integers(1, 5))
    roles = [draw(st.lists(st.sampled_from([0, 1, 1, 2]), min_size=s, max_size=s)) for _ in range(b)]
    rows = [
        sorted(draw(st.lists(st.integers(0, s - 1), max_size=t, unique=True)), reverse=draw(st.booleans()))
        for _ in range(b)
    ]
    padded = [[*each, *[-1] * (t - len(each))] for each in rows]
    return evidence(roles, padded, [draw(st.integers(1, s)) for _ in range(b)], draw(st.integers(0, 10**6)))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"profile": "safe", "rope_free": True, "ratio": 0.3},
    {"query": "last", "profile": "faithful", "text_ratio": 0.9, "ratio": 0.8},
    {"query": "all", "rule": "knee", "knee": "cumulative", "profile": "faithful", "text_ratio": 0.1},
    {"rule": "knee", "min_keep": 3, "profile": "faithful"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=150, deadline=None)
@given(prompt=prompts(), ratio=st.sampled_from([0.0, 0.0, 0.4, 1.0]), tokens=st.sampled_from([0, 0, 1, 5]))
def test_properties_and_oracle(
    options: dict[str, Any], prompt: DecoderEvidence, ratio: float, tokens: int
) -> None:
    choices = choose(prompt, ratio, tokens, **options)
    for b, choice in enumerate(choices):
        length, roles = int(prompt.length[b]), prompt.token_role[b].tolist()
        survivors, dropped = kept(choice), choice.order[choice.count :]
        assert sorted(choice.order) == list(range(len(roles)))
        assert survivors == sorted(survivors)
        assert dropped == sorted(dropped)
        assert all(j < length for j in survivors)
        assert {j for j in range(length) if roles[j] == 0} <= set(survivors)
        if options.get("profile", "safe") == "safe":
            assert {j for j in range(length) if roles[j] == 2} <= set(survivors)
        visual = [j for j in range(length) if roles[j] == 1]
        scored = oracles.question_rows(prompt.query_index[b].tolist(), length, options.get("query", "text"))
        if visual and any(row >= visual[0] for row in scored):
            if tokens:
                assert sum(j in survivors for j in visual) == min(tokens, len(visual))
            elif ratio:
                assert sum(j in survivors for j in visual) == int(np.ceil(ratio * len(visual) - 1e-4))
        else:
            assert survivors == list(range(length))
        assert choice == oracle(prompt, b, (ratio, tokens), **options)


def test_default_counts() -> None:
    (choice,) = choose(one())
    assert sum(ROLES[j] == 1 for j in kept(choice)) == 3
    assert sum(ROLES[j] == 2 for j in kept(choice)) == ROLES.count(2)
    (choice,) = choose(one(), profile="faithful")
    assert sum(ROLES[j] == 1 for j in kept(choice)) == 3
    assert sum(ROLES[j] == 2 for j in kept(choice)) == 2
    assert sum(ROLES[j] == 0 for j in kept(choice)) == 4


def test_the_score_is_the_models_attention() -> None:
    """Mean over heads and later question rows of the causal softmax, own row of a text token left out."""
    given = one(3)
    keys = given.key.repeat_interleave(HEADS // GROUPS, dim=1)
    causal = torch.full((14, 14), -torch.inf).triu(1)
    attention = torch.softmax(given.query @ keys.transpose(2, 3) * SCALE + causal, dim=-1).mean(1)[0]
    score, rows = relevance(given, given.query_index, rope_free=False)
    for j in range(14):
        used = [i for i in ROWS if i > j or (i == j and ROLES[j] != 2)]
        assert rows[0, j] == len(used)
        wanted = attention[used, j].mean() if used else torch.tensor(0.0)
        torch.testing.assert_close(score[0, j], wanted)


def test_visual_tokens_are_ranked_by_that_score() -> None:
    given = one(4)
    score, _ = relevance(given, given.query_index, rope_free=False)
    best = sorted(range(1, 7), key=lambda j: -score[0, j].item())[:2]
    assert [j for j in kept(choose(given, keep_tokens=2)[0]) if ROLES[j] == 1] == sorted(best)


def test_rope_free_reads_the_plain_evidence_only() -> None:
    given = one(5)
    swapped = given._replace(
        query=given.query_plain, key=given.key_plain, query_plain=given.query, key_plain=given.key
    )
    assert choose(given, rope_free=True) == choose(swapped)
    assert choose(given, rope_free=True) != choose(given)


def test_query_rows() -> None:
    given = evidence([[1, 2, 2, 0, 1]] * 3, [[1, 3, -1], [2, 1, 0], [-1, -1, -1]], [5, 4, 2])
    assert query_rows(given, "text").tolist() == given.query_index.tolist()
    assert query_rows(given, "last").tolist() == [[3], [2], [-1]]
    assert query_rows(given, "all").tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, -1], [0, 1, -1, -1, -1]]


def test_last_uses_one_row() -> None:
    given = one(6)
    assert choose(given, query="last") == choose(given._replace(query_index=torch.tensor([[12, -1]])))


def test_several_images_are_judged_by_the_text_behind_them() -> None:
    """Rows before an image cannot see it: changing them must not change its score, and it is not punished."""
    roles = [0, 1, 1, 2, 2, 1, 1, 2, 2, 0]
    given = evidence([roles], [[3, 4, 7, 8]], [10], 1)
    score, rows = relevance(given, given.query_index, rope_free=False)
    assert rows[0].tolist() == [4, 4, 4, 3, 2, 2, 2, 1, 0, 0]
    late, _ = relevance(given, torch.tensor([[7, 8]]), rope_free=False)
    torch.testing.assert_close(score[0, 5:7], late[0, 5:7])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_to_rank_leaves_the_sequence_alone(options: dict[str, Any]) -> None:
    text_only = evidence([[0, 2, 2, 2, 0, 0]], [[1, 2]], [5])
    assert choose(text_only, **options) == [([0, 1, 2, 3, 4, 5], 5)]
    decode = evidence([[0]], [[-1]], [1])
    assert choose(decode, **options) == [([0], 1)]
    assert choose(decode, keep_ratio=0.5, **options) == [([0], 1)]


def test_a_question_that_sees_no_image_leaves_the_sequence_alone() -> None:
    before = evidence([[0, 2, 2, 1, 1, 1, 0]], [[1, 2]], [7])
    assert choose(before, keep_ratio=0.1) == [([0, 1, 2, 3, 4, 5, 6], 7)]
    nobody = evidence([ROLES], [[-1, -1]], [14])
    assert choose(nobody, keep_tokens=1) == [(list(range(14)), 14)]


def test_a_budget_that_keeps_all_visual_tokens_prunes_nothing() -> None:
    for budget in ({"keep_ratio": 1.0}, {"keep_tokens": 6}, {"keep_tokens": 99}):
        assert choose(one(), **budget) == [(list(range(14)), 14)]
        assert choose(one(), profile="faithful", **budget) == [(list(range(14)), 14)]
    assert choose(one(), keep_tokens=5)[0].count == 13
    # In the faithful profile one token fewer prunes text as well.
    assert choose(one(), profile="faithful", keep_tokens=5)[0].count < 13


def test_padding_is_never_read() -> None:
    """The same sequence, alone and padded next to a longer one, chooses the same."""
    short = one(7)
    b = 2
    longer = evidence([[1] * 20] * b, [[0] * 7] * b, [14, 20], 8)
    for name in ("query", "key", "query_plain", "key_plain"):
        getattr(longer, name)[0, :, :14] = getattr(short, name)[0]
        getattr(longer, name)[0, :, 14:] = 1e4
    longer.token_role[0, :14] = short.token_role[0]
    longer.query_index[0] = torch.tensor([*ROWS, -1, 17])  # a row beyond the length is ignored
    for options in OPTIONS:
        assert kept(choose(longer, **options)[0]) == kept(choose(short, **options)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    half = one(9)
    half = half._replace(**{
        name: getattr(half, name).mul(300).to(dtype) for name in ("query", "key", "query_plain", "key_plain")
    })  # fmt: skip
    full = half._replace(**{
        name: getattr(half, name).float() for name in ("query", "key", "query_plain", "key_plain")
    })  # fmt: skip
    for options in OPTIONS:
        assert choose(half, **options) == choose(full, **options)


@pytest.mark.parametrize(("groups", "heads"), [(1, 6), (2, 6), (3, 6), (6, 6)])
def test_grouped_queries(groups: int, heads: int) -> None:
    given = one(10)
    draw = np.random.default_rng(groups)
    key = torch.from_numpy(draw.normal(size=(1, groups, 14, WIDTH))).float()
    repeated = key.repeat_interleave(heads // groups, dim=1)
    grouped, spread = given._replace(key=key), given._replace(key=repeated)
    torch.testing.assert_close(
        relevance(grouped, given.query_index, False)[0], relevance(spread, given.query_index, False)[0]
    )
    assert choose(grouped) == [oracle(grouped, 0)]
