"""What `foveate check` finds is what `foveate build` finds: in each lowering, fused kernels only or not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest
from engines_made import PROFILE

from foveate.export.check import check_bundle
from foveate.export.engines.intent import intend
from foveate.export.engines.options import make_options
from foveate.runtime.bundle import Bundle
from foveate.runtime.integrity import hash_files
from foveate.runtime.manifest import MANIFEST_NAME

STAGE = "vision_segmented"


def add_narrow_heads(path: Path) -> None:
    """Puts an attention into the encoder whose heads are 12 wide: no fused kernel has such."""
    model = ir.load(path)
    features = model.graph.outputs[0]
    made = features.producer()
    assert made is not None
    heads = ir.node("Constant", [], {"value": ir.tensor(np.ones((1, 1, 1, 12), np.float32))}, name="heads")
    mixed = ir.node("Attention", [heads.outputs[0]] * 3, name="narrow")
    mixed.outputs[0].type, mixed.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((1, 1, 1, 12))
    heads.outputs[0].type, heads.outputs[0].shape = mixed.outputs[0].type, mixed.outputs[0].shape
    one = ir.node("ReduceSum", [mixed.outputs[0]], {"keepdims": 0}, name="one")
    total = ir.node("Add", [features, one.outputs[0]], name="total")
    name, features.name = features.name, "features_before"
    total.outputs[0].name, total.outputs[0].type, total.outputs[0].shape = name, features.type, features.shape
    model.graph.outputs[0] = total.outputs[0]
    model.graph.insert_after(made, [heads, mixed, one, total])
    ir.save(model, path)


def as_exported(path: Path) -> Bundle:
    """The bundle, whose manifest now says that the graph is so."""
    manifest = Bundle.open(path, check="none").manifest
    changed = hash_files(path, [manifest.stages[STAGE].file])
    manifest = manifest.model_copy(update={"files": {**manifest.files, **changed}})
    manifest = manifest.model_copy(update={"sha256": manifest.digest()})
    (path / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return Bundle.open(path)


@pytest.mark.parametrize("attention", ["native", "portable"])
@pytest.mark.parametrize("fused_only", [False, True])
def test_check_and_build_agree(
    bundle: Path, attention: Literal["native", "portable"], fused_only: bool
) -> None:
    add_narrow_heads(bundle / "onnx" / f"{STAGE}.onnx")
    opened = as_exported(bundle)
    options = make_options(None, attention=attention, fused_only=fused_only)
    built = {stage.name: stage.report for stage in intend(opened, options, PROFILE).stages}
    checked = {
        each.name: each for each in check_bundle(bundle, attention=attention, fused_only=fused_only).graphs
    }
    assert {name: each.findings for name, each in built.items()} == {
        name: each.findings for name, each in checked.items()
    }
    assert {each.attention for each in built.values()} == {attention}
    found = [finding for finding in built[STAGE].findings if finding.rule.endswith(".head-width")]
    assert [finding.node for finding in found] == ["narrow"] * fused_only
    # The bundle is in float32, for which there is no fused kernel at all (test_build sees the double refuse).
    wide = {finding.rule.partition(".")[2] for each in built.values() for finding in each.findings}
    assert ("fused-type" in wide) is fused_only
