"""The oracles themselves: independent, right on hand-made cases, and honest about near ties."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from foveate.tools.parity import choose, counts, oracles
from foveate.tools.parity import facts as parity_facts

METHODS = "foveate.tools.parity.methods"


def test_no_shared_code() -> None:
    standard = {"__future__", "math", "collections.abc", "fractions", "typing", "numpy", "numpy.typing"}
    assert imports(counts.__file__) <= standard
    assert imports(oracles.__file__) - standard == {"foveate.tools.parity.counts"}
    own = "foveate.tools.parity"
    allowed = {own, *(f"{own}.{name}" for name in ("counts", "deciding", "facts", "oracles", "tolerances"))}
    folder = Path(oracles.__file__).parent
    for file in (folder / "facts.py", folder / "deciding.py", *(folder / "methods").glob("*.py")):
        foreign = {name for name in imports(str(file)) - standard - allowed if not name.startswith(METHODS)}
        assert not {name for name in foreign if name.partition(".")[0] not in sys.stdlib_module_names}, file


def imports(file: str) -> set[str]:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


def test_encoder_by_hand() -> None:
    """Logits 0 (CLS), 2 log 2 and 0 over width 4: probabilities 1/6, 4/6, 1/6."""
    query = np.array([[1, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9]])
    key = np.array([[0, 5, 5, 5], [4 * np.log(2), 0, 0, 7], [0, -3, 0, 0]])
    scores = oracles.encoder_scores("cls_full", query={0: query}, key={0: key}, num_heads=2)
    np.testing.assert_allclose(scores, [4 / 6, 1 / 6])
    # Two heads of width 2: the second head's query is zero, so it spreads evenly; scale 1/sqrt(2).
    logits = np.array([0, 4 * np.log(2) / np.sqrt(2), 0])
    first = np.exp(logits) / np.exp(logits).sum()
    scores = oracles.encoder_scores("cls_mean", query={0: query, 3: query}, key={0: key, 3: key}, num_heads=2)
    np.testing.assert_allclose(scores, first[1:] + 1 / 3)
    cosines = oracles.encoder_scores("cosine", features=[[3, 4], [0, 0]], cls=[1, 0])
    np.testing.assert_allclose(cosines, [0.6, 0])


def test_encoder_order_by_hand() -> None:
    scores = [0.0, 9.0, 1.0, 0.0, 3.0, 0.0, 0.0]
    assert oracles.encoder_order(scores, {"min_keep": 1}) == ([1, 2, 4, 0, 3, 5, 6], 3)
    assert oracles.encoder_order(scores, {}) == ([0, 1, 2, 3, 4, 5, 6], 7)  # min_keep is 16 by default
    assert oracles.encoder_order(scores, {}, keep_ratio=0.5) == ([0, 1, 2, 4, 3, 5, 6], 4)
    assert oracles.encoder_order(scores, {}, keep_tokens=1) == ([1, 0, 2, 3, 4, 5, 6], 1)


def test_received_by_hand() -> None:
    """Two heads of width 1 over CLS and two patches; the second head looks nowhere."""
    query = np.array([[1.0, 0], [2, 0], [0, 0]])
    key = np.array([[0.0, 7], [np.log(2), 7], [np.log(3), 7]])
    # Rows of head one: 1 2 3 over 6, 1 4 9 over 14, thirds; of head two: thirds.
    first, second = (2 / 6 + 4 / 14 + 1 / 3 + 1) / 6, (3 / 6 + 9 / 14 + 1 / 3 + 1) / 6
    np.testing.assert_allclose(oracles.received_scores(query, key, 2, skip=1), [first, second])
    everyone = oracles.received_scores(query, key, 2, skip=0)
    np.testing.assert_allclose(everyone[1:], [first, second])
    np.testing.assert_allclose(sum(everyone), 1)


def test_prompt_by_hand() -> None:
    np.testing.assert_allclose(oracles.prompt_scores([[3, 4], [0, 0], [-2, 0]], [2, 0]), [0.6, 0, -1])
    np.testing.assert_allclose(oracles.prompt_scores([[3, 4]], [0, 0]), [0])


def test_spread_by_hand() -> None:
    """Tiles of 4 and 2: shares 1/8 3/8 5/8 7/8 and 1/4 3/4."""
    scores, tile = [9.0, 8, 7, 6, 1, 2], [0, 0, 0, 0, 1, 1]
    assert oracles.spread_ranking(scores, tile) == [0, 5, 1, 2, 4, 3]
    given = {"spread": "tile", "min_keep": 1}
    assert oracles.encoder_order(scores, given, tile=tile, keep_tokens=2) == ([0, 5, 1, 2, 3, 4], 2)
    assert oracles.encoder_order(scores, {}, tile=tile, keep_tokens=2) == ([0, 1, 2, 3, 4, 5], 2)
    # Equal shares: the lower index.
    assert oracles.spread_ranking([1.0, 2, 2, 1], [5, 5, 0, 0]) == [1, 2, 0, 3]


def facts(**changes: object) -> parity_facts.EncoderFacts:
    draw = np.random.default_rng(0)
    query = {i: draw.normal(size=(2, 5, 4)) for i in range(6)}
    given: dict[str, object] = {
        "patches": draw.normal(size=(2, 4, 4)),
        "cls": draw.normal(size=(2, 4)),
        "query": query,
        "key": {i: draw.normal(size=(2, 5, 4)) for i in range(6)},
        "num_heads": 2,
        "num_layers": 6,
        "feature_layer": 5,
        "global_layers": (1, 3, 5),
        "pool": lambda score: score.reshape(-1),
        "tile": np.repeat([0, 1], 4),
    }
    return parity_facts.EncoderFacts(**{**given, **changes})  # type: ignore[arg-type]


def test_layers_of_the_evidence() -> None:
    """Which layers a choice rests on: spoiling any other changes nothing."""
    cases = {
        (5,): ("cls-knee", {}),
        (2, 3, 4): ("cls-knee", {"score": "cls_mean"}),
        (0,): ("cls-knee", {"layer": 0}),
        (3,): ("saliency-knee", {}),
        (1,): ("saliency-knee", {"layer": 1}),
    }
    budget = parity_facts.Budget(keep_tokens=3)
    for layers, (method, params) in cases.items():
        only = {i: facts().query[i] for i in layers}
        part = facts(query=only)
        assert (
            choose.choose_encoder(method, params, part, budget).kept
            == choose.choose_encoder(method, params, facts(), budget).kept
        )
        for missing in layers:
            less = {i: rows for i, rows in only.items() if i != missing}
            with pytest.raises(KeyError):
                choose.choose_encoder(method, params, facts(query=less), budget)


def test_no_oracle_without_the_evidence() -> None:
    for method, params, given in (
        ("cls-knee", {}, facts(cls=None)),
        ("saliency-knee", {"score": "pooled"}, facts()),
        ("saliency-knee", {"score": "prompt"}, facts()),
        ("no-such", {}, facts()),
    ):
        with pytest.raises(parity_facts.NoOracleError):
            choose.choose_encoder(method, params, given, parity_facts.Budget())


def test_decoder_by_hand() -> None:
    """One head, one question row (4) over BOS, three visual tokens, itself; a protected tail."""
    query = np.zeros((1, 6, 2))
    query[0, 4] = [1, 0]
    key = np.zeros((1, 6, 2))
    key[0, :5, 0] = np.log([1, 2, 8, 4, 1])
    roles = [0, 1, 1, 1, 2, 0]
    scores, rows = oracles.decoder_scores(query, key, roles, [4, -1], 6, 1.0)
    np.testing.assert_allclose(scores, [1 / 16, 2 / 16, 8 / 16, 4 / 16, 0, 0])
    assert rows == [1, 1, 1, 1, 0, 0]
    chosen = oracles.decoder_order(query, key, roles, [4, -1], 6, 1.0, {})
    assert chosen == ([0, 2, 3, 4, 5, 1], 5)  # two of three visual, one of one text
    assert oracles.decoder_order(query, key, roles, [4], 6, 1.0, {}, keep_tokens=1).order == [
        0,
        2,
        4,
        5,
        1,
        3,
    ]


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([0.9, 0.5, 0.4, 0.1], False),
        ([0.9, 0.5, 0.5, 0.1], True),
        ([0.9, 0.5, 0.5 * (1 - 1e-8), 0.1], True),
        ([0.9, 0.5, 0.5 * (1 - 1e-4), 0.1], False),
    ],
)
def test_fragile(scores: list[float], wanted: bool) -> None:
    assert oracles.fragile(lambda given: oracles.encoder_order(given, {}, keep_tokens=2), scores) is wanted


def test_one_number_by_construction_is_no_tie() -> None:
    """A line end has its best token's score: between the two the index decides, whatever the noise."""
    scores = [0.9, 0.5, 0.5, 0.1]

    def decide(given: Sequence[float]) -> oracles.Choice:
        return oracles.encoder_order(given, {}, keep_tokens=2)

    assert oracles.fragile(decide, scores)
    assert not oracles.fragile(decide, scores, together=[0, 1, 1, 3])

    def pool(patches: np.ndarray) -> list[float]:
        tokens = [float(each) for each in patches.reshape(-1)]
        return [*tokens, max(tokens)]

    peaked = np.array([[0.5, 0.3, 0.15, 0.05]])
    given = facts(pool=pool, tile=[0] * 5, pooled=peaked)
    one = parity_facts.Budget(keep_tokens=1)
    chosen = choose.choose_encoder("saliency-knee", {"score": "pooled"}, given, one)
    assert chosen == parity_facts.Choice((0,), fragile=False)
    even = facts(pool=pool, tile=[0] * 5, pooled=np.array([[0.3, 0.3, 0.3, 0.1]]))
    assert choose.choose_encoder("saliency-knee", {"score": "pooled"}, even, one).fragile


def test_fragile_sees_the_knee_too() -> None:
    """Two points equally far below the chord, to within noise: the count hangs on rounding."""
    curve = [3.0, 1.0, 2e-6, 0.0]  # distances 1/3 and 1/3 - 1e-6/1.5, next to the tolerance of 1e-6
    assert oracles.fragile(
        lambda given: oracles.encoder_order(given, {"min_keep": 1}), [3.0, 1.0 + 1.8e-6, 0.0, 0.0]
    )
    assert not oracles.fragile(lambda given: oracles.encoder_order(given, {"min_keep": 1}), curve)
