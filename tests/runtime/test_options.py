"""Options are checked when they are made; budgets when they meet a bundle."""

from __future__ import annotations

from typing import Any

import make
import pytest

from foveate.runtime.budgets import decoder_feeds, encoder_feeds, require_known_sites, require_used_seed
from foveate.runtime.errors import UsageError
from foveate.runtime.options import Budget, GenerateOptions


@pytest.mark.parametrize(
    "values",
    [
        {"ratio": 0.0},
        {"ratio": -0.5},
        {"ratio": 1.01},
        {"ratio": float("nan")},
        {"ratio": float("inf")},
        {"ratio": "half"},
        {"tokens": 0},
        {"tokens": -3},
        {"tokens": 1.5},
        {"tokens": True},
        {"ratio": 0.5, "tokens": 3},
    ],
)
def test_budget_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Budget(**values)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.25", Budget(ratio=0.25)),
        ("1.0", Budget(ratio=1.0)),
        ("1", Budget(tokens=1)),
        ("64", Budget(tokens=64)),
    ],
)
def test_budget_text(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "half", "1.5", "0", "-1", "0.0", "1e3x", "."])
def test_bad_budget_text(text: str) -> None:
    with pytest.raises(UsageError):
        Budget.parse(text)


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"pruning_seed": -1},
        {"stop": ("",)},
        {"stop": "USER:"},
        {"keep_ratio": 2.0},
        {"keep_tokens": 0},
        {"keep_ratio": 0.5, "keep_tokens": 3},
        {"keep_tokens": 2**63},
        {"max_new_tokens": 2**63},
        {"seed": 2**63},
        {"pruning_seed": 2**63},
        {"temperature": 10**400},
        {"stop": [1]},
        {"stop": None},
        {"keep": {"encoder": 0.5}},
        {"share": "all", "keep_tokens": 5},
        {"share": "proportional"},
        {"share": "saliency", "keep_ratio": 0.5},
        {"share": "saliency", "keep": {"decoder@1": Budget(tokens=2)}},
        {"top_k": 3},
        {"top_p": 0.5},
        {"keep_ratio": 0.5, "keep": {"encoder": Budget(tokens=2)}},
    ],
)
def test_option_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        GenerateOptions(**values)
    assert caught.value.exit_code == 2


def test_budgets_by_site() -> None:
    options = GenerateOptions(keep_ratio=0.5, keep={"decoder@1": Budget(tokens=3), "decoder@2": Budget()})
    assert options.budgets() == {"encoder": Budget(ratio=0.5), "decoder@1": Budget(tokens=3)}


def test_budgets_become_graph_inputs() -> None:
    manifest = make.manifest()
    plain = encoder_feeds(manifest, GenerateOptions(), 3)
    assert plain["keep_ratio"].tolist() == [0, 0, 0]
    assert plain["keep_tokens"].tolist() == [0, 0, 0]
    options = GenerateOptions(keep_ratio=0.25, keep={"decoder@1": Budget(tokens=7)})
    feeds = encoder_feeds(manifest, options, 2) | decoder_feeds(manifest, options, 2)
    assert {name: (str(value.dtype), value.tolist()) for name, value in feeds.items()} == {
        "keep_ratio": ("float32", [0.25, 0.25]),
        "keep_tokens": ("int64", [0, 0]),
        "seed": ("int64", [0, 0]),
        "keep_ratio_l1": ("float32", [0, 0]),
        "keep_tokens_l1": ("int64", [7, 7]),
        "seed_l1": ("int64", [0, 0]),  # the graph adds the exported one
    }
    assert decoder_feeds(manifest, GenerateOptions(pruning_seed=8), 1)["seed_l1"].tolist() == [8]


def test_a_budget_needs_its_site() -> None:
    require_known_sites(make.manifest(), GenerateOptions(keep={"decoder@1": Budget(tokens=7)}))
    with pytest.raises(UsageError, match=r"'decoder@2'.*encoder, decoder@1"):
        require_known_sites(make.manifest(), GenerateOptions(keep={"decoder@2": Budget(tokens=7)}))
    unpruned = make.manifest(
        pruning=[], cache={"dtype": "float32", "num_kv_heads": 1, "head_dim": 4, "groups": [[0, 1, 2]]}
    )
    with pytest.raises(UsageError, match="the bundle is unpruned"):
        require_known_sites(unpruned, GenerateOptions(keep_ratio=0.5))


def test_a_tiny_ratio_does_not_become_the_rule() -> None:
    feeds = encoder_feeds(make.manifest(), GenerateOptions(keep_ratio=1e-46), 1)
    assert feeds["keep_ratio"][0] > 0


def test_a_pruning_seed_needs_a_method_that_draws() -> None:
    require_used_seed(make.manifest(), GenerateOptions(pruning_seed=1))
    unseeded = make.manifest().model_copy(update={"stages": {}})
    require_used_seed(unseeded, GenerateOptions())
    with pytest.raises(UsageError, match="draws at random"):
        require_used_seed(unseeded, GenerateOptions(pruning_seed=1))
