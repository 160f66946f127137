"""Every row of the table climbs the ladder; every method, knee, text model and RoPE type stands in a row."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from ladders import settings
from table import BOTH, ROWS, Row

from foveate.export.blocks.rope import FREQUENCIES
from foveate.export.blocks.text_models import TEXT_MODELS
from foveate.export.families import list_families, load_family
from foveate.pruning.plan import PruningPlan, parse_plan
from foveate.pruning.registry import list_methods
from foveate.pruning.spec import KNEE_NAMES
from foveate.runtime.bundle import Bundle
from foveate.tools.parity.families import find_oracle
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.prompts import Front
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.report import Status
from foveate.tools.parity.rungs import climb


def short(row: Row) -> str:
    """The first words of its name."""
    return row.name.split(",")[0].split(":")[0]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=short(row), marks=[pytest.mark.slow] * row.slow) for row in ROWS]
)
def test_row(row: Row, exported: Callable[[Row], tuple[Path, Bundle]]) -> None:
    checkpoint, bundle = exported(row)
    oracle = find_oracle(row.family)(checkpoint)
    made = Ladder(bundle, Reference(oracle), Front(oracle), settings(*row.cases))
    assert not made.untested, "these prompts tie in float32: choose other pictures"
    for rung in climb(made, ("P0", "P1", "P2", "P3", "P4")):
        expected = (
            Status.NOT_APPLICABLE if rung.key == "P2" and not bundle.manifest.pruning else Status.PASSED
        )
        assert rung.status is expected, f"{rung.key}: {rung.first_failure}"
        assert rung.checks


def cuts() -> list[tuple[str, str, dict[str, object]]]:
    """(site, method, options) of every cut in the table."""
    return [(str(cut.site), cut.method, cut.params) for row in ROWS for cut in plan_of(row).cuts]


def plan_of(row: Row) -> PruningPlan:
    """The row's cuts; the depth matters to methods that lay out their own."""
    return parse_plan(row.plan, row.checkpoint.get("text_options", {}).get("num_hidden_layers", 4))


def test_every_method_at_every_site() -> None:
    wanted = {(str(site), info.name) for info in list_methods() for site in info.sites}
    assert {(site, method) for site, method, _ in cuts()} == wanted


def options_of(*methods: str) -> list[dict[str, object]]:
    return [params for _, method, params in cuts() if method in methods]


def test_every_knee_and_score() -> None:
    assert {params["knee"] for params in options_of("cls-knee", "saliency-knee")} == set(KNEE_NAMES)
    assert {params["score"] for params in options_of("cls-knee")} == {"cls_full", "cls_mean", "cosine"}
    assert {params["score"] for params in options_of("saliency-knee")} == {"received", "pooled", "prompt"}
    assert {params["spread"] for params in options_of("cls-knee", "saliency-knee")} == {"image", "tile"}


def test_every_relevance_option() -> None:
    relevance = [params for _, method, params in cuts() if method == "text-relevance"]
    for option, values in {
        "rule": {"ratio", "knee"},
        "profile": {"faithful", "safe"},
        "query": {"text", "last", "all"},
        "rope_free": {True, False},
    }.items():
        assert {params[option] for params in relevance} == values


def test_every_family_at_both_sites_in_both_layouts() -> None:
    names = [row.name for row in ROWS]
    assert len({short(row) for row in ROWS}) == len(names), "tests are named by the first words of a row"
    for family in list_families():
        sites = [
            {str(cut.site) for cut in plan_of(row).cuts}
            for row in ROWS
            if row.family == family and set(row.layouts) == set(BOTH)
        ]
        assert {"encoder", "decoder"} in sites, f"no row shows all of {family}"


def test_every_text_model_and_rope_type() -> None:
    assert {text_model(row) for row in ROWS} == set(TEXT_MODELS)
    sections = [row.checkpoint.get("text_options", {}).get("rope_parameters") or {} for row in ROWS]
    assert {section.get("rope_type", "default") for section in sections} >= set(FREQUENCIES)


def text_model(row: Row) -> str:
    """The row's, the tiny checkpoint's default, or the only one that the family has."""
    default = inspect.signature(importlib.import_module(f"tiny.{row.family}").make).parameters.get("text")
    only = load_family(row.family).FACTS.text_models[0]
    return str(row.checkpoint.get("text", only if default is None else default.default))


def test_every_layout_and_position_mode() -> None:
    assert {layout for row in ROWS for layout in row.layouts} == set(BOTH)
    assert {row.positions for row in ROWS} == {None, "original"}
