"""Configs: what is accepted, what is refused and in which words, and the way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass

import pytest

from foveate.pruning.registry import find_method, method_names
from foveate.pruning.spec import KINDS, KneeConfig, MethodConfig, Site, option
from foveate.runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sample(MethodConfig):
    share: float = option(0.5, "a share", low=0, high=1, open_low=True)
    whole: int = option(3, "a count", low=1)
    word: str = option("a", "a word", choices=("a", "b"))
    flag: bool = option(False, "a switch")
    maybe: int | None = option(None, "a number or nothing", low=0)
    many: tuple[int, ...] | None = option(None, "numbers", low=0)


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("share", "0.25", 0.25),
        ("share", 1, 1.0),
        ("whole", "7", 7),
        ("word", "b", "b"),
        ("flag", "yes", True),
        ("flag", "False", False),
        ("flag", True, True),
        ("maybe", "none", None),
        ("maybe", "0", 0),
        ("many", "20+21+22", (20, 21, 22)),
        ("many", [1, 2], (1, 2)),
        ("many", "5", (5,)),
        ("many", None, None),
    ],
)
def test_accepted(name: str, given: object, wanted: object) -> None:
    got = getattr(Sample.from_dict({name: given}), name)
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("share", 0),
        ("share", "1.01"),
        ("share", "nan"),
        ("share", "inf"),
        ("share", True),
        ("share", None),
        ("whole", 0),
        ("whole", 2.0),
        ("whole", "2.5"),
        ("whole", True),
        ("word", "c"),
        ("word", 1),
        ("flag", "maybe"),
        ("flag", 1),
        ("maybe", -1),
        ("many", "1+-2"),
        ("many", "1+"),
        ("many", []),
        ("many", 3),
    ],
)
def test_refused(name: str, given: object) -> None:
    with pytest.raises(UsageError) as caught:
        Sample.from_dict({name: given}, method="sample")
    assert "'sample'" in caught.value.message
    assert name in caught.value.message
    assert caught.value.found == repr(given)
    assert caught.value.wanted
    assert caught.value.mend


def test_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no option 'shrae'") as caught:
        Sample.from_dict({"shrae": 0.5})
    assert caught.value.wanted == "share, whole, word, flag, maybe, many"


def test_wanted_says_the_range() -> None:
    wanted = {each.name: each.wanted() for each in Sample.options()}
    assert wanted["share"] == "a number in (0, 1]"
    assert wanted["whole"] == "a whole number of at least 1"
    assert wanted["word"] == "one of a, b"
    assert wanted["maybe"] == "a whole number of at least 0, or none"
    assert wanted["many"] == "whole numbers joined by + (as 20+21+22) of at least 0, or none"


def test_frozen() -> None:
    config = Sample()
    with pytest.raises(FrozenInstanceError):
        config.share = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("name", method_names())
def test_defaults_survive_json_and_are_legal(name: str) -> None:
    config = find_method(name).Config()
    again = find_method(name).Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert list(config.to_dict()) == [each.name for each in config.options()]


def test_configs_made_by_hand_are_checked_too() -> None:
    with pytest.raises(UsageError, match="cannot use share=2"):
        Sample(share=2)


def test_tuples_survive_json() -> None:
    config = Sample(many=(1, 2), maybe=4, flag=True)
    assert Sample.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", method_names())
def test_every_option_has_a_known_kind_and_help(name: str) -> None:
    for each in find_method(name).Config.options():
        assert each.kind in KINDS
        assert each.help
        assert each.convert(name, each.default) == each.default


def test_sites_read_as_words() -> None:
    assert (str(Site.ENCODER), f"{Site.DECODER}", Site("encoder")) == ("encoder", "decoder", Site.ENCODER)


def test_knee_names_are_the_rules() -> None:
    from foveate.pruning.knee import KNEES

    assert next(each for each in KneeConfig.options() if each.name == "knee").choices == tuple(KNEES)
