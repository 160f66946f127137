"""`foveate check`: a table for people, one document for programs, and a code for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "runtime")]

from engines_made import engines  # noqa: E402

from foveate.runtime.errors import CheckError  # noqa: E402

__all__ = ["engines"]

Foveate = Callable[..., Result]


def test_a_bundle_for_the_cpu_is_refused(bundle: Path, foveate: Foveate) -> None:
    done = foveate("check", bundle)
    assert done.exit_code == CheckError.exit_code == 12
    assert "refused" in done.stdout
    for word in ("GroupQueryAttention", "graph.contrib", "--target tensorrt", "wait 1: it counts"):
        assert word in done.stdout
    assert "error: TensorRT would not take the graph vision" in done.stderr


def test_one_document_for_programs(bundle: Path, foveate: Foveate) -> None:
    told = json.loads(foveate("check", bundle, "--json").stdout)
    assert told["refused"] is True
    by_name = {graph["name"]: graph for graph in told["graphs"]}
    assert list(by_name) == ["vision", "embed", "decoder"]
    (sync,) = by_name["vision"]["sync_points"]
    assert sync["op"] == "NonZero"
    assert by_name["decoder"]["segments"] == 2
    assert by_name["decoder"]["capturable"] is False
    refused = [f for f in by_name["decoder"]["findings"] if f["severity"] == "error"]
    assert {f["rule"] for f in refused} == {"graph.contrib"}
    assert all(f["node"] and f["mend"] and f["source"] for f in refused)


def test_verbose_lists_every_place(bundle: Path, foveate: Foveate) -> None:
    few, every = (foveate("check", bundle, *words).stdout for words in ((), ("--verbose",)))
    assert few.count("[graph.contrib") < every.count("[graph.contrib")


@pytest.mark.parametrize(
    ("words", "graphs"),
    [((), 10), (("--attention", "native"), 5), (("--trt-version", "10.16"), 5)],
    ids=["both", "native", "before native"],
)
def test_a_bundle_for_tensorrt_passes(
    engines: Path, foveate: Foveate, words: tuple[str, ...], graphs: int
) -> None:
    done = foveate("check", engines, *words)
    assert done.exit_code == 0, done.stdout
    assert done.stdout.count(" passes ") == done.stdout.count(" yes ") == graphs
    assert "error" not in done.stdout.replace("errors", "")


def test_fused_kernels_only(engines: Path, foveate: Foveate) -> None:
    """The bundle is in float32, for which TensorRT has none: `foveate build --fused-only` would fail."""
    done = foveate("check", engines, "--attention", "portable", "--fused-only")
    assert done.exit_code == 0, done.stderr
    assert "Attention.fused-type" in done.stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--target", "openvino"), "--target cannot be"),
        (("--attention", "fused"), "--attention cannot be"),
        (("--trt-version", "ten"), "no version of TensorRT"),
        (("--trt-version", "8.6"), "wanted: 10.15"),
        (("--layout", "segmented"), "no layout"),
    ],
)
def test_bad_words_are_usage_errors(
    bundle: Path, foveate: Foveate, words: tuple[str, str], what: str
) -> None:
    done = foveate("check", bundle, *words)
    assert done.exit_code == 2
    assert what.lower() in done.stderr.lower()


def test_what_is_no_graph_is_a_bundle_error(bundle: Path, foveate: Foveate, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes())
    for file in bundle.glob("onnx/*.onnx"):
        (tmp_path / "onnx" / file.name).write_text("no graph")
    broken = foveate("check", tmp_path)
    assert broken.exit_code == 4
    assert "no ONNX graph" in broken.stderr
    (tmp_path / "onnx" / "vision.onnx").unlink()
    assert foveate("check", tmp_path).exit_code == 4


def test_a_changed_graph_is_not_the_exports(engines: Path, foveate: Foveate, tmp_path: Path) -> None:
    """Another stage's graph is a good one, too; `foveate build` would refuse the bundle."""
    (tmp_path / "onnx").mkdir()
    for file in (engines / "manifest.json", *engines.glob("onnx/*.onnx")):
        (tmp_path / file.relative_to(engines)).write_bytes(file.read_bytes())
    assert foveate("check", tmp_path, "--attention", "portable").exit_code == 0
    (tmp_path / "onnx" / "decoder_1.onnx").write_bytes((tmp_path / "onnx" / "embed.onnx").read_bytes())
    done = foveate("check", tmp_path, "--attention", "portable")
    assert done.exit_code == 4
    assert "is not what was exported: onnx/decoder_1.onnx" in " ".join(done.stderr.split())
