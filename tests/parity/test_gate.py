"""The gate closes: each planted error fails its rung, and the report says where it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import plant
import pytest
from ladders import settings
from table import ROWS, Row

import foveate.runtime.chunk
import foveate.runtime.decoder
import foveate.runtime.generate
from foveate.runtime.bundle import Bundle
from foveate.tools.parity import choose
from foveate.tools.parity.families.llava import Oracle
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.prompts import Front
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.report import Check, ParityReport, Status
from foveate.tools.parity.rungs import climb

LAYERS, CUT = 4, 2
Make = Callable[[Path], Ladder]


def report(ladder: Ladder, *keys: str) -> ParityReport:
    return ParityReport("bundle", "checkpoint", climb(ladder, keys))


def first(ladder: Ladder, *keys: str) -> tuple[str, Check]:
    """The lowest failing rung of those that are run, and its first failure."""
    found = report(ladder, *keys).first_divergence
    assert found is not None, "nothing failed"
    return found


def test_an_undamaged_copy_passes(copy: Path, ladder: Make) -> None:
    assert report(ladder(copy), "P0", "P1", "P2", "P3").passed


# --- one number in one weight -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("weight", ["self_attn.v_proj", "mlp.down_proj"])
def test_a_weight_of_a_decoder_layer(copy: Path, ladder: Make, layer: int, weight: str) -> None:
    plant.change_weight(copy, "decoder", f"language_model.layers.{layer}.{weight}.weight")
    rung, check = first(ladder(copy), "P1")
    assert check.where is not None
    assert (rung, check.where.stage, check.where.layer) == ("P1", "decoder", layer)
    assert check.where.index is not None
    assert check.largest is not None
    assert check.largest > 1e-3


@pytest.mark.parametrize("layer", range(3))
def test_a_weight_of_an_encoder_layer(copy: Path, ladder: Make, layer: int) -> None:
    plant.change_weight(copy, "vision", f"vision.tower.encoder.layers.{layer}.mlp.fc2.weight")
    check = first(ladder(copy), "P1")[1]
    assert check.where is not None
    assert (check.where.stage, check.where.layer) == ("vision", layer)


@pytest.mark.parametrize("projection", ["q_proj", "k_proj"])
def test_a_weight_that_only_scores(copy: Path, ladder: Make, projection: str) -> None:
    """The last encoder layer has no say in the features: its projections are there to choose patches."""
    plant.change_weight(copy, "vision", f"vision.tower.encoder.layers.3.self_attn.{projection}.bias")
    check = first(ladder(copy), "P1")[1]
    assert check.where is not None
    assert (check.where.stage, check.where.layer) == ("vision", 3)
    assert {"q_proj": "query", "k_proj": "key"}[projection] in check.name


@pytest.mark.parametrize(
    ("stage", "weight", "place"),
    [
        ("embed", "connector.linear_1.bias", "embed"),
        ("decoder", "language_model.norm.weight", "decoder"),
        ("decoder", "lm_head.weight", "decoder"),
        ("decoder", "language_model.rope.inverse_frequency", "decoder"),
    ],
)
def test_a_weight_between_the_layers(copy: Path, ladder: Make, stage: str, weight: str, place: str) -> None:
    plant.change_weight(copy, stage, weight)
    check = first(ladder(copy), "P1")[1]
    assert check.where is not None
    assert check.where.stage == place


def test_a_wrong_weight_fails_every_rung_above(copy: Path, ladder: Make) -> None:
    plant.change_weight(copy, "decoder", "language_model.layers.1.mlp.down_proj.weight")
    found = report(ladder(copy), "P0", "P1", "P3", "P4")
    assert not found.passed
    assert [found.rung(key).status for key in ("P0", "P1", "P3", "P4")] == [
        Status.PASSED,
        *[Status.FAILED] * 3,
    ]


# --- one index ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "order", "layer"),
    [
        ("vision", "order", None),
        ("vision_segmented", "order", None),
        ("decoder", "order_l2", CUT - 1),
        ("decoder_0", "order_l2", CUT - 1),
    ],
)
def test_a_swapped_index(copy: Path, ladder: Make, stage: str, order: str, layer: int | None) -> None:
    made = ladder(copy)
    trace = made.trace(made.prompts[0], made.budgets[0])
    kept = trace.items[0].kept if layer is None else trace.cuts["decoder@2"].kept
    dropped = next(i for i in range(max(kept)) if i not in kept)
    place = next(i for i, j in enumerate(kept) if j > dropped)  # the swap shows there, or one before
    plant.swap_indices(copy, stage, order, dropped, kept[place])
    rung, check = first(ladder(copy), "P2")
    assert check.where is not None
    assert (rung, check.where.stage) == ("P2", stage)
    assert check.where.index is not None
    assert f"{dropped}" in check.detail


def test_a_dropped_index_that_is_out_of_place(copy: Path, ladder: Make) -> None:
    """Order is a whole permutation: the dropped ones count, too."""
    made = ladder(copy)
    kept = made.trace(made.prompts[0], made.budgets[0]).items[0].kept
    dropped = [i for i in range(25) if i not in kept]
    plant.swap_indices(copy, "vision_segmented", "order", dropped[0], dropped[1])
    check = first(ladder(copy), "P2")[1]
    assert check.detail.startswith("order")


@pytest.mark.parametrize(("stage", "count"), [("vision_segmented", "count"), ("decoder_0", "count_l2")])
def test_a_wrong_keep_count(copy: Path, ladder: Make, stage: str, count: str) -> None:
    plant.change_count(copy, stage, count)
    check = first(ladder(copy), "P2")[1]
    assert check.where is not None
    assert check.where.stage == stage


# --- positions ----------------------------------------------------------------------------------------------


def test_wrong_positions(copy: Path, ladder: Make) -> None:
    plant.stretch_positions(copy, "decoder")
    check = first(ladder(copy), "P1")[1]
    assert check.where is not None
    assert (check.where.stage, check.where.layer) == ("decoder", 0)


def test_positions_closed_up_behind_the_cut(copy: Path, ladder: Make) -> None:
    """Only pruned runs show it: the rungs below must pass, and the first layer behind the cut is named."""
    plant.renumber_positions(copy, "decoder_1")
    found = report(ladder(copy), "P1", "P2", "P3")
    assert [rung.status for rung in found.rungs] == [Status.PASSED, Status.PASSED, Status.FAILED]
    check = found.rungs[2].first_failure
    assert check is not None
    assert check.where is not None
    assert (check.where.stage, check.where.layer) == ("decoder_1", CUT)


# --- the runtime around the graphs --------------------------------------------------------------------------


def test_a_decoding_position_off_by_one(copy: Path, ladder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill is right, every token after it is not: only P4 sees it, at the second token."""
    decode = foveate.runtime.generate.decode

    def shifted(model: Any, ids: Any, positions: Any, *rest: Any) -> Any:
        return decode(model, ids, positions + 1, *rest)

    monkeypatch.setattr(foveate.runtime.generate, "decode", shifted)
    found = report(ladder(copy), "P1", "P2", "P3", "P4")
    assert [rung.status for rung in found.rungs] == [*[Status.PASSED] * 3, Status.FAILED]
    check = found.rungs[3].first_failure
    assert check is not None
    assert check.where is not None
    assert check.where.index is not None
    assert check.where.index[0] >= 1


def test_roles_that_protect_everything(copy: Path, ladder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = foveate.runtime.chunk._roles

    def careful(visual: Any, asks: Any, user_text: Any) -> Any:
        return roles(visual, asks, np.zeros_like(user_text))

    monkeypatch.setattr(foveate.runtime.chunk, "_roles", careful)
    check = first(ladder(copy), "P4")[1]
    assert "roles of the prompt" in check.name


def test_a_host_that_forgets_positions_behind_the_cut(
    copy: Path, ladder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are right; the segmented host hands on the wrong ones."""
    compacted = foveate.runtime.decoder._compacted

    def careless(chunk: Any, selection: Any) -> Any:
        after, kept = compacted(chunk, selection)
        count = after.position_ids.shape[1]
        return foveate.runtime.decoder.replace(after, position_ids=chunk.position_ids[:, :count]), kept

    monkeypatch.setattr(foveate.runtime.decoder, "_compacted", careless)
    found = report(ladder(copy), "P1", "P2", "P3")
    assert [rung.status for rung in found.rungs] == [Status.PASSED, Status.PASSED, Status.FAILED]
    check = found.rungs[2].first_failure
    assert check is not None
    assert "segmented" in check.name
    assert check.where is not None
    assert check.where.stage == "runtime"


# --- graphs that are not what the manifest says
# --------------------------------------------------------------


def test_a_renamed_output(copy: Path, ladder: Make) -> None:
    plant.rename_output(copy, "decoder", "logits", "scores")
    rung, check = first(ladder(copy), "P0", "P1")
    assert rung == "P0"
    assert "logits" in check.detail


def test_a_shortened_weights_file(copy: Path, ladder: Make) -> None:
    made = ladder(copy)
    file = copy / "onnx" / "weights.bin"
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    assert first(made, "P0")[0] == "P0"


def test_a_data_dependent_shape_in_the_segmented_layout(copy: Path, ladder: Make) -> None:
    with plant.edited(copy, "decoder_1") as model:
        model.graph.node.append(onnx.helper.make_node("NonZero", ["position_ids"], ["somewhere"]))
    assert "no data-dependent shapes" in first(ladder(copy), "P0")[1].name


def test_a_layer_without_a_name(copy: Path, ladder: Make) -> None:
    plant.rename_output(copy, "decoder", "layer_1.hidden", "hidden_1")
    assert "every decoder layer is named" in first(ladder(copy), "P0")[1].name


# --- rows that a method rewrites ----------------------------------------------------------------------------


def test_a_wrong_merged_feature(exported: Callable[[Row], tuple[Path, Bundle]], tmp_path: Path) -> None:
    """The indices are right, and nothing is merged when all is kept: only P2's features can tell."""
    row = next(row for row in ROWS if "vistog" in row.plan)
    checkpoint, bundle = exported(row)
    damaged = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    plant.change_weight(damaged, "vision", "cuts.encoder.v_proj.weight")
    oracle = Oracle(checkpoint)
    few = settings("two images", budgets=("own rule",))
    made = Ladder(Bundle.open(damaged, check="none"), Reference(oracle), Front(oracle), few)
    rung, check = first(made, "P1", "P2")
    assert (rung, check.name.rpartition(": ")[2]) == ("P2", "merged features")
    assert check.where is not None
    assert check.where.stage == "vision"
    assert check.where.index is not None


# --- what cannot be tested is no pass
# ------------------------------------------------------------------------


def test_a_method_without_an_oracle(copy: Path, ladder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "list_oracles", lambda: ("random",))
    found = report(ladder(copy), "P1", "P2", "P3", "P4")
    statuses = [rung.status for rung in found.rungs]
    assert statuses == [Status.PASSED, *[Status.CANNOT_RUN] * 3]
    assert not found.passed
    failure = found.rungs[1].first_failure
    assert failure is not None
    assert "no oracle is written for method 'cls-knee'" in failure.detail


def test_a_graph_that_does_not_load(copy: Path, ladder: Make) -> None:
    made = ladder(copy)
    (copy / "onnx" / "decoder.onnx").write_bytes(b"not a graph")
    found = report(made, "P1")
    assert found.rungs[0].status is Status.FAILED
    assert not found.passed


def test_no_rung_is_no_pass() -> None:
    assert not ParityReport("bundle", "checkpoint", ()).passed
