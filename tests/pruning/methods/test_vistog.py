"""vistog: equal to its oracle, groups under a budget, ties, what the merge computes, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import asked_for, build, compare_encoder, encoder_evidence, model_shape

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.vistog import Config, Method, start
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.3), Budget(keep_tokens=99)]


def request(*tokens: int) -> Asked:
    return Asked(torch.zeros(len(tokens)), torch.tensor(tokens))


@pytest.mark.parametrize("groups", [None, 1, 3, "all"])
def test_equal_to_the_oracle(groups: Any) -> None:
    compared = 0
    for kind in ("random", "sharp", "clusters"):
        for seed, grid in enumerate([(1, 1), (2, 2), (3, 3), (4, 5), (7, 6)] * 4):
            n = grid[0] * grid[1]
            options = {"groups": n if groups == "all" else groups if groups is None else min(groups, n)}
            evidence = encoder_evidence(seed, b=4, grid=grid, kind=kind)
            compared += compare_encoder("vistog", options, evidence, BUDGETS, grid=grid)
    assert compared > 180


@pytest.mark.parametrize("kind", ["ties", "equal", "zero"])
def test_equal_patches_share_a_group(kind: str) -> None:
    for seed in range(4):
        evidence = encoder_evidence(seed, b=4, kind=kind)
        assert compare_encoder("vistog", {}, evidence, BUDGETS) > 0


def test_equal_similarities_go_to_the_lower_group() -> None:
    method = build("vistog", "encoder", {"groups": 4})
    assert isinstance(method, Method)
    with torch.no_grad():
        method.token_embedding.copy_(method.token_embedding[:1].expand(4, -1))
    evidence = asked_for(method, encoder_evidence(1), (4, 5))
    chosen = method(evidence, request(0, 0))
    assert chosen.features is not None
    assert torch.equal(chosen.features[:, 1], chosen.features[:, 2])  # both empty
    assert not torch.allclose(chosen.features[:, 0], chosen.features[:, 1])


def test_the_budget_is_groups_up_to_all_of_them_or_every_patch() -> None:
    method = build("vistog", "encoder")
    evidence = asked_for(method, encoder_evidence(2, b=5), (4, 5))
    chosen = method(evidence, request(0, 2, 5, 9, 20))
    assert chosen.count.tolist() == [5, 2, 5, 5, 20]
    assert chosen.features is not None
    assert torch.equal(chosen.features[4], evidence.features[4])
    assert all(order == list(range(20)) for order in chosen.order.tolist())


def test_nothing_is_dropped() -> None:
    """With few groups every patch still counts: moving one moves a group."""
    method = build("vistog", "encoder")
    evidence = asked_for(method, encoder_evidence(3, b=1), (4, 5))
    for patch in range(20):
        features = evidence.features.clone()
        features[0, patch] += 0.5
        given = (evidence.features, features)
        both = [method(evidence._replace(features=each), request(2)) for each in given]
        rows = [each.features[0, :2] for each in both if each.features is not None]
        assert not torch.equal(*rows)


def test_first_weights_give_token_plus_mean() -> None:
    method = build("vistog", "encoder", {"groups": 1})
    assert isinstance(method, Method)
    start(method)
    evidence = asked_for(method, encoder_evidence(4), (4, 5))
    assert evidence.extra is not None
    chosen = method(evidence, request(0, 0))
    assert chosen.features is not None
    wanted = evidence.extra[:, 0] + evidence.features.sum(dim=1) / 21
    torch.testing.assert_close(chosen.features[:, 0], wanted)


def test_weights_get_gradients_through_the_soft_assignment() -> None:
    method = build("vistog", "encoder")
    assert isinstance(method, Method)
    method.requires_grad_(True)
    evidence = asked_for(method, encoder_evidence(5), (4, 5))
    assert evidence.extra is not None
    count = torch.full((2,), 5)
    soft = method.similarity(evidence.extra, evidence.features, count).softmax(dim=1)
    method.merge(evidence.extra, evidence.features, soft).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for name, p in method.named_parameters() if name != "token_embedding")


def test_refusals() -> None:
    shape = model_shape()
    with pytest.raises(UsageError, match="run through the encoder"):
        Method(Config()).build(shape._replace(encoder=shape.encoder._replace(has_taps=False)))
    with pytest.raises(UsageError, match="run through the encoder"):
        Method(Config()).build(shape._replace(feature_width=32))
    with pytest.raises(UsageError, match="more groups"):
        Method(Config(groups=21)).build(shape)
    with pytest.raises(UsageError, match="groups"):
        Config(groups=0)
