"""Every row of the table climbs the ladder; every method, knee, text model and RoPE type stands in a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ladders import make_front, settings
from table import BOTH, ROWS, Row

from foveate.export.blocks.decoder import _DEFAULTS as TEXT_MODELS
from foveate.export.blocks.rope import FREQUENCIES
from foveate.pruning.plan import parse_plan
from foveate.pruning.registry import list_methods
from foveate.pruning.spec import KNEE_NAMES
from foveate.runtime.bundle import Bundle
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.report import Status
from foveate.tools.parity.rungs import climb


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.split(",")[0].split(":")[0])
def test_row(row: Row, exported: Callable[[Row], tuple[Path, Bundle]]) -> None:
    checkpoint, bundle = exported(row)
    made = Ladder(bundle, Reference(checkpoint), make_front(checkpoint, bundle), settings(*row.cases))
    assert not made.untested, "these prompts tie in float32: choose other pictures"
    for rung in climb(made, ("P0", "P1", "P2", "P3", "P4")):
        expected = (
            Status.NOT_APPLICABLE if rung.key == "P2" and not bundle.manifest.pruning else Status.PASSED
        )
        assert rung.status is expected, f"{rung.key}: {rung.first_failure}"
        assert rung.checks


def cuts() -> list[tuple[str, str, dict[str, object]]]:
    """(site, method, options) of every cut in the table."""
    return [(str(cut.site), cut.method, cut.params) for row in ROWS for cut in parse_plan(row.plan).cuts]


def test_every_method_at_every_site() -> None:
    wanted = {(str(site), info.name) for info in list_methods() for site in info.sites}
    assert {(site, method) for site, method, _ in cuts()} == wanted


def test_every_knee_and_score() -> None:
    knees = {params["knee"] for _, method, params in cuts() if method == "cls-knee"}
    assert knees == set(KNEE_NAMES)
    assert {params["score"] for _, method, params in cuts() if method == "cls-knee"} == {
        "cls_full",
        "cls_mean",
        "cosine",
    }


def test_every_relevance_option() -> None:
    relevance = [params for _, method, params in cuts() if method == "text-relevance"]
    for option, values in {
        "rule": {"ratio", "knee"},
        "profile": {"faithful", "safe"},
        "query": {"text", "last", "all"},
        "rope_free": {True, False},
    }.items():
        assert {params[option] for params in relevance} == values


def test_every_text_model_and_rope_type() -> None:
    assert {row.checkpoint.get("text", "llama") for row in ROWS} == set(TEXT_MODELS)
    sections = [row.checkpoint.get("text_options", {}).get("rope_parameters", {}) for row in ROWS]
    assert {section.get("rope_type", "default") for section in sections} == set(FREQUENCIES)


def test_every_layout_and_position_mode() -> None:
    assert {layout for row in ROWS for layout in row.layouts} == set(BOTH)
    assert {row.positions for row in ROWS} == {"compact", "original"}
