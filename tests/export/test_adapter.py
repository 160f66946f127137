"""Adapters: written whole, read back, refused where they do not belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny.llava import make

from foveate.export.adapter import Adapter, as_trained, weights_of
from foveate.export.checkpoint import Checkpoint
from foveate.pruning.plan import parse_plan
from foveate.runtime.errors import CheckpointError, UsageError


def an_adapter(path: Path, source: str = "f" * 64, method: str = "dyvte") -> Adapter:
    tensors = {"l1.gate.weight": torch.arange(6.0).reshape(2, 3).half(), "l2.gate.weight": torch.ones(2, 3)}
    params = {"l1": {}, "l2": {}}
    return Adapter(Path(), method, params, "tiny", source, {"seed": 1}, tensors).write(path)


def test_round_trip(tmp_path: Path) -> None:
    written = an_adapter(tmp_path / "deep" / "one.safetensors")
    read = Adapter.read(written.path)
    assert (read.method, read.params, read.trained) == ("dyvte", {"l1": {}, "l2": {}}, {"seed": 1})
    assert read.tensors["l1.gate.weight"].dtype == torch.float16
    assert read.sha256() == written.sha256()
    assert [path.name for path in written.path.parent.iterdir()] == ["one.safetensors"]


def test_a_plan_takes_what_it_needs(tmp_path: Path) -> None:
    adapters = {"dyvte": an_adapter(tmp_path / "one.safetensors")}
    found = weights_of(parse_plan(["dyvte@1"]), adapters, {"cuts.l1.gate.weight": (2, 3)})
    assert list(found) == ["cuts.l1.gate.weight"]
    assert found["cuts.l1.gate.weight"].dtype == torch.float32
    assert found["cuts.l1.gate.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_options_it_was_trained_with(tmp_path: Path) -> None:
    params = {"encoder": {"groups": 9, "unknown": 1}}
    adapter = Adapter(Path(), "vistog", params, "tiny", "f", {}, {"encoder.a": torch.ones(1)})
    (cut,) = as_trained(parse_plan(["vistog"]), {"vistog": adapter}).cuts
    assert cut.params["groups"] == 9
    assert "unknown" not in cut.params
    with pytest.raises(UsageError, match="another 'groups'") as caught:
        as_trained(parse_plan(["vistog:groups=5"]), {"vistog": adapter})
    assert caught.value.wanted == "groups=9"
    free = Adapter(Path(), "setok", {"encoder": {"threshold": 0.4, "heads": 2}}, "tiny", "f")
    (cut,) = as_trained(parse_plan(["setok:threshold=0.7"]), {"setok": free}).cuts
    assert (cut.params["threshold"], cut.params["heads"]) == (0.7, 2)


@pytest.mark.parametrize(
    ("words", "wanted", "message"),
    [
        (["dyvte@3"], {"cuts.l3.gate.weight": (2, 3)}, "no weights for the cut 'dyvte@3'"),
        (["dyvte@1"], {"cuts.l1.gate.bias": (2,)}, "does not fit 'dyvte@1'.*missing"),
        (["dyvte@1"], {"cuts.l1.gate.weight": (3, 2)}, r"does not fit 'dyvte@1'.*\[2, 3\]"),
        (["cls-knee"], {}, "is for 'dyvte', which this plan does not have"),
        (["dyvte@1", "vistog"], {"cuts.encoder.token": (1,)}, "'vistog' has weights of its own"),
    ],
)
def test_refused(tmp_path: Path, words: list[str], wanted: dict[str, tuple[int, ...]], message: str) -> None:
    adapters = {"dyvte": an_adapter(tmp_path / "one.safetensors")}
    with pytest.raises((CheckpointError, UsageError), match=message):
        weights_of(parse_plan(words), adapters, wanted)


def test_of_another_model(tmp_path: Path) -> None:
    source = Checkpoint(make(tmp_path / "model"))
    own = an_adapter(tmp_path / "own.safetensors", source.weights_sha256())
    own.check_model(source)
    with pytest.raises(CheckpointError, match="belongs to another model") as caught:
        an_adapter(tmp_path / "other.safetensors").check_model(source)
    assert "foveate train dyvte" in caught.value.mend


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", "plain"])
def test_not_an_adapter(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "one.safetensors"
    if content == "plain":
        save_file({"a": torch.ones(1)}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no adapter"):
        Adapter.read(path)
