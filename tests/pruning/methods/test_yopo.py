"""Method yopo's options; what they do is tested with the decoder (tests/export/test_visual_skipping.py)."""

from __future__ import annotations

import pytest

from foveate.pruning.methods.yopo import Config
from foveate.pruning.plan import parse_plan
from foveate.pruning.spec import Site
from foveate.runtime.errors import UsageError


def test_it_stands_beside_the_cuts() -> None:
    plan = parse_plan(("exit@4", "yopo:ffn=4,heads=3+1+0+2,window=5", "cls-knee"))
    assert [cut.site for cut in plan.cuts] == [Site.ENCODER, Site.LAYERS, Site.DECODER]
    assert plan.layers is not None
    assert plan.layers.params == {"ffn": 4, "heads": "3+1+0+2", "window": 5, "both_ways": True}
    assert [cut.name for cut in plan.decoder] == ["decoder@4"]


def test_heads_are_bits() -> None:
    assert Config(heads="3+1+0+2").groups(4, 2) == ((0, 1), (0,), (), (1,))
    assert Config(heads="ff+0f").groups(2, 8) == (tuple(range(8)), (0, 1, 2, 3))
    assert Config().groups(3, 2) == ((0, 1),) * 3


@pytest.mark.parametrize("heads", ["", "3+", "3,1", "x", "-1", "some"])
def test_words_that_are_no_heads(heads: str) -> None:
    with pytest.raises(UsageError, match="heads"):
        Config(heads=heads)


@pytest.mark.parametrize(("heads", "layers"), [("3+1", 3), ("3+4+1", 3), ("3+1+1+1", 3)])
def test_heads_of_another_model(heads: str, layers: int) -> None:
    with pytest.raises(UsageError, match="heads"):
        Config(heads=heads).groups(layers, 2)


def test_neurons_round_down() -> None:
    """As the released code does: int(d_ff / ratio)."""
    assert Config().neurons(11008) == 5504
    assert Config(ffn=3).neurons(11008) == 3669
    assert Config(ffn=1).neurons(96) == 96
    with pytest.raises(UsageError, match="ffn=97"):
        Config(ffn=97).neurons(96)


@pytest.mark.parametrize("options", [{"ffn": 0}, {"window": 4}, {"window": 0}])
def test_values_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Config.from_dict(options)
