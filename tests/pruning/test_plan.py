"""Plans: the words on the command line, the list in the manifest, and every way to get them wrong."""

from __future__ import annotations

import pytest

from foveate.pruning.plan import CutSpec, PruningPlan, parse_plan
from foveate.pruning.registry import make_method
from foveate.pruning.spec import Site
from foveate.runtime.errors import UsageError


def test_default_is_the_paper() -> None:
    plan = parse_plan([])
    assert str(plan) == "cls-knee + text-relevance@2"
    assert plan == parse_plan(["cls-knee", "text-relevance@2"])
    assert plan.encoder is not None
    assert (plan.encoder.site, plan.encoder.layer, plan.encoder.name) == (Site.ENCODER, None, "encoder")
    assert plan.encoder.params["knee"] == "chord"
    (cut,) = plan.decoder
    assert (cut.site, cut.layer, cut.name) == (Site.DECODER, 2, "decoder@2")
    assert cut.params["profile"] == "safe"


def test_options_are_converted_and_completed() -> None:
    plan = parse_plan(["text-relevance@3:ratio=0.25,profile=safe,rope_free=true", "cls-knee:min_keep=4"])
    assert plan.encoder is not None
    assert plan.encoder.params["min_keep"] == 4
    assert plan.encoder.params["max_keep"] is None
    (cut,) = plan.decoder
    assert {name: cut.params[name] for name in ("ratio", "profile", "rope_free", "text_ratio")} == {
        "ratio": 0.25,
        "profile": "safe",
        "rope_free": True,
        "text_ratio": 0.5,
    }


def test_cuts_are_ordered() -> None:
    plan = parse_plan(["random@9:seed=4", "text-relevance@2", "random"])
    assert [cut.name for cut in plan.cuts] == ["encoder", "decoder@2", "decoder@9"]


def test_several_layers_in_a_word() -> None:
    plan = parse_plan(["text-relevance@2+4+3:ratio=0.7"])
    assert [cut.layer for cut in plan.decoder] == [2, 3, 4]
    assert {cut.params["ratio"] for cut in plan.decoder} == {0.7}


@pytest.mark.parametrize(
    ("word", "depth", "wanted"),
    [
        ("pyramiddrop", 32, {8: 0.5, 16: 0.25, 24: 0.125}),
        ("pyramiddrop", 6, {2: 0.5, 3: 0.25, 4: 0.125}),
        ("pyramiddrop", 2, {1: 0.125}),  # places that fall together: the deeper one
        ("pyramiddrop", 1, {1: 0.125}),  # refused later, where the decoder is known
        (
            "aim-rank",  # the paper's Vicuna-7B: after layers 13 to 20, counted from 0
            32,
            {14 + i: share for i, share in enumerate((0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0))},
        ),
    ],
)
def test_a_method_lays_out_its_own_schedule(word: str, depth: int, wanted: dict[int, float]) -> None:
    assert {cut.layer: cut.params["share"] for cut in parse_plan([word], depth).decoder} == wanted


def test_a_schedule_takes_options_that_are_not_its_own() -> None:
    with pytest.raises(UsageError, match="own schedule sets"):
        parse_plan(["pyramiddrop:share=0.3"], 32)


def test_near_names_are_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        parse_plan(["pyramid-drop@2"])
    assert "Did you mean pyramiddrop" in caught.value.mend


def test_none_is_the_unpruned_model() -> None:
    plan = parse_plan(["none"])
    assert (plan.cuts, plan.encoder, plan.decoder, str(plan)) == ((), None, (), "none")


def test_encoder_may_be_said() -> None:
    assert parse_plan(["random@encoder"]) == parse_plan(["random"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fast@2"], "no pruning method 'fast'"),
        (["fastv@2+"], "does not name a decoder layer"),
        (["fastv@2+2"], "same place"),
        (["pyramiddrop"], "depends on the model's depth"),
        (["pyramiddrop", "fastv@3"], "depends on the model's depth"),
        (["cls-knee@2"], "does not work at the decoder site"),
        (["text-relevance"], "needs a layer"),
        (["text-relevance@encoder"], "does not work at the encoder site"),
        (["text-relevance@0"], "does not name a decoder layer"),
        (["text-relevance@two"], "does not name a decoder layer"),
        (["text-relevance@-1"], "does not name a decoder layer"),
        (["text-relevance@"], "does not name a decoder layer"),
        (["cls-knee:knee=elbow"], "cannot use knee=elbow"),
        (["cls-knee:ratio=0.5"], "has no option 'ratio'"),
        (["cls-knee:knee"], "malformed or repeated"),
        (["cls-knee:knee="], "malformed or repeated"),
        (["cls-knee:=chord"], "malformed or repeated"),
        (["cls-knee:knee=chord,knee=iqr"], "malformed or repeated"),
        (["text-relevance@2:ratio=0"], "cannot use ratio=0"),
        (["text-relevance@2:ratio=1.5"], "cannot use ratio=1.5"),
        (["cls-knee", "random"], "same place"),
        (["random@2", "text-relevance@2"], "same place"),
        (["none", "cls-knee"], "cannot be combined"),
        ([""], "no pruning method ''"),
    ],
)
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_plan(words)
    assert caught.value.found is not None
    assert caught.value.wanted
    assert caught.value.mend


def test_config_checks_its_own_contradictions_when_made() -> None:
    for word, message in {
        "cls-knee:score=cosine,layer=3": "only with score=cls_full",
        "cls-knee:layers=3": "only with score=cls_mean",
        "cls-knee:max_keep=4": "max_keep below min_keep",
        "saliency-knee:max_keep=4": "'saliency-knee' has max_keep below min_keep",
        "saliency-knee:score=prompt,layer=3": "'layer' only with score=received",
        "saliency-knee:smooth=3": "'smooth' only with knee=derivative",
        "cls-knee:knee=iqr,skip=3": "'skip' only with knee=derivative",
        "cls-knee:difference=2": "'difference' only with knee=derivative",
        "text-relevance@2:rule=knee,ratio=0.3": "'ratio' only with rule=ratio",
        "text-relevance@2:knee=iqr": "'knee' only with rule=knee",
        "text-relevance@2:knee_scale=2": "'knee_scale' only with rule=knee",
        "text-relevance@2:profile=safe,text_ratio=0.3": "'text_ratio' only with profile=faithful",
    }.items():
        (cut,) = parse_plan([word]).cuts
        with pytest.raises(UsageError, match=message):
            make_method(cut.method, cut.params, cut.site)


def test_options_with_effect_pass() -> None:
    for word in (
        "cls-knee:knee=derivative,smooth=3,skip=1,difference=2",
        "saliency-knee:layer=3,spread=tile",
        "text-relevance@2:rule=knee,knee=iqr,knee_scale=2",
        "text-relevance@2:rule=knee,ratio=0.5",  # the default: plans are completed with it
        "text-relevance@2:profile=safe,text_ratio=0.5",
    ):
        (cut,) = parse_plan([word]).cuts
        make_method(cut.method, cut.params, cut.site)


def test_manifest_round_trip() -> None:
    plan = parse_plan(["cls-knee:score=cls_mean,layers=1+2", "text-relevance@2", "random@5"])
    assert PruningPlan.from_list(plan.to_list()) == plan
    assert plan.to_list()[0]["layer"] is None
    assert plan.to_list()[2]["site"] == "decoder"


def test_manifest_may_name_methods_that_are_not_installed() -> None:
    plan = PruningPlan.from_list([{"site": "decoder", "layer": 4, "method": "theirs", "params": {"x": 1}}])
    assert plan.decoder == (CutSpec(Site.DECODER, 4, "theirs", {"x": 1}),)


@pytest.mark.parametrize(
    "change",
    [
        {"site": "projector"},
        {"site": None},
        {"layer": "2"},
        {"layer": True},
        {"layer": 0},
        {"layer": None},
        {"method": 3},
        {"params": None},
        {"extra": 1},
    ],
)
def test_broken_manifest_entries(change: dict[str, object]) -> None:
    cut: dict[str, object] = {"site": "decoder", "layer": 2, "method": "random", "params": {}}
    with pytest.raises(UsageError):
        PruningPlan.from_list([{**cut, **change}])


def test_plans_refuse_disorder() -> None:
    early, late = (CutSpec(Site.DECODER, layer, "random") for layer in (2, 5))
    with pytest.raises(UsageError, match="out of order"):
        PruningPlan((late, early))
    with pytest.raises(UsageError, match="no valid place"):
        PruningPlan((CutSpec(Site.ENCODER, 2, "random"),))
