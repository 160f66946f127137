"""quecc: a token for each tile, made with the question; the tokens stand in the first slots."""

from __future__ import annotations

import pytest
import torch
from twins import (
    ENCODER_KINDS,
    FEATURE_LAYER,
    asked_for,
    build,
    compare_encoder,
    encoder_evidence,
    model_shape,
)

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.evidence import EncoderShape
from foveate.pruning.methods.quecc import Config, Method
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget
from foveate.tools.parity.methods.quecc import tile_side

GRIDS = ((4, 4), (6, 6), (4, 6), (2, 2), (5, 5), (3, 3))
BUDGETS = [Budget(), Budget(keep_tokens=3), Budget(keep_ratio=0.4), Budget(keep_ratio=1.0)]
NONE = Asked(torch.zeros(2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_equal_to_the_oracle(kind: str) -> None:
    compared = 0
    for seed, grid in enumerate(GRIDS):
        for options in ({}, {"heads": 2, "states": [0, 4]}):
            evidence = encoder_evidence(seed, b=4, grid=grid, kind=kind)
            compared += compare_encoder("quecc", options, evidence, BUDGETS, grid=grid)
    assert compared == 4 * 2 * len(GRIDS)


def test_equal_to_the_oracle_without_cls_and_with_other_tiles() -> None:
    for seed in range(5):
        evidence = encoder_evidence(seed, grid=(6, 6), cls=False)
        assert compare_encoder("quecc", {"stride": 3}, evidence, grid=(6, 6)) == 2
        assert compare_encoder("quecc", {"stride": 6}, evidence, grid=(6, 6)) == 2


def test_a_token_sees_its_own_tile_and_the_question_only() -> None:
    method = build("quecc", "encoder", {"stride": 2}, grid=(4, 4))
    evidence = asked_for(method, encoder_evidence(1, grid=(4, 4)), (4, 4))
    plain = method(evidence, NONE)
    assert plain.count.tolist() == [4, 4]
    assert plain.features is not None
    patch = 2  # row 0, column 2: the second tile
    moved = {i: state.clone() for i, state in evidence.hidden.items()}
    for state in moved.values():
        state[:, 1 + patch] += 1
    other = method(evidence._replace(hidden=moved), NONE).features
    assert other is not None
    changed = (other[:, :4] != plain.features[:, :4]).any(dim=-1)
    assert changed.tolist() == [[False, True, False, False]] * 2
    assert evidence.text is not None
    asked = method(evidence._replace(text=evidence.text + 1), NONE).features
    assert asked is not None
    assert (asked[:, :4] != plain.features[:, :4]).any(dim=-1).all()


def test_the_convolution_is_a_depthwise_one() -> None:
    method = build("quecc", "encoder", {"stride": 2}, grid=(4, 6))
    assert isinstance(method, Method)
    x = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(0))
    ours = (method.tiles(x) * method.conv).sum(dim=2) + method.conv_bias
    weight = method.conv.reshape(2, 2, 16).permute(2, 0, 1).unsqueeze(1)  # (s s) c -> c 1 s s
    picture = x.reshape(2, 4, 6, 16).permute(0, 3, 1, 2)  # b n c -> b c h w
    theirs = torch.nn.functional.conv2d(picture, weight, method.conv_bias, stride=2, groups=16)
    torch.testing.assert_close(ours, theirs.flatten(2).transpose(1, 2))


def test_the_papers_sizes_on_the_papers_encoder() -> None:
    encoder = EncoderShape(24, 23, tuple(range(24)), True, has_taps=True, grid=(24, 24))
    shape = model_shape()._replace(encoder=encoder, encoder_width=1024, feature_width=1024, hidden_size=4096)
    method = Method(Config())
    with torch.device("meta"):
        method.build(shape)
    assert (method.stride, method.chosen) == (4, (12, 16, 22, 23))
    assert 20e6 < sum(p.numel() for p in method.parameters()) < 22e6


@pytest.mark.parametrize(
    ("grid", "stride"), [((24, 24), 4), ((8, 8), 2), ((27, 27), 9), ((5, 5), 5), ((6, 4), 2)]
)
def test_the_default_tile(grid: tuple[int, int], stride: int) -> None:
    method = Method(Config())
    method.build(model_shape(grid))
    assert method.stride == stride == tile_side(grid, None)


def test_it_refuses_what_it_cannot_divide() -> None:
    shape = model_shape((4, 4))
    bad = (Config(stride=3), Config(heads=3), Config(states=(9,)))
    for config in bad:
        with pytest.raises(UsageError, match="quecc"):
            Method(config).build(shape)
    for wrong in (model_shape((5, 4)), shape._replace(encoder=shape.encoder._replace(grid=None))):
        with pytest.raises(UsageError, match="quecc"):
            Method(Config()).build(wrong)
    assert max(Method(Config()).hidden_layers(shape.encoder)) == FEATURE_LAYER
