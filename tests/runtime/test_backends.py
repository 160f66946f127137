"""Which backend and layout a bundle gets, what is refused early, and how sessions are made."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import make
import pytest
from doubles.cudart import Cudart

from foveate.runtime.backend import BackendOptions
from foveate.runtime.backends import BACKENDS, choose, cuda, onnxruntime, open_backend, tensorrt_provider
from foveate.runtime.bundle import Bundle
from foveate.runtime.cuda.device import Device
from foveate.runtime.errors import BackendError, FoveateError, MissingDependencyError, UsageError
from foveate.runtime.manifest import Manifest
from foveate.runtime.pipeline import load

BOTH = {"fused": ("vision", "embed", "decoder"), "segmented": ("vision", "embed", "decoder_0")}


def bundle_of(target: str, dtype: str = "float32", layouts: object = BOTH) -> Bundle:
    base = make.manifest()
    cache = base.cache.model_copy(update={"dtype": dtype})
    changed = base.model_copy(update={"target": target, "cache": cache, "layouts": layouts})
    return Bundle(Path("nowhere"), changed)


@pytest.mark.parametrize(
    ("target", "backend", "layout", "wanted"),
    [
        ("onnxruntime", None, None, ("onnxruntime", "fused")),
        ("portable", None, None, ("onnxruntime", "fused")),
        ("cuda", None, None, ("cuda", "segmented")),
        ("tensorrt", None, None, ("tensorrt", "segmented")),
        ("tensorrt", "onnxruntime", None, ("onnxruntime", "fused")),
        ("portable", "tensorrt-provider", None, ("tensorrt-provider", "segmented")),
        ("portable", "cuda", "fused", ("cuda", "fused")),
    ],
)
def test_the_target_s_backend_and_the_backend_s_layout(
    target: str, backend: str | None, layout: str | None, wanted: tuple[str, str]
) -> None:
    assert choose(bundle_of(target), backend, layout) == wanted


def test_a_bundle_of_one_layout_is_taken_in_it() -> None:
    only = bundle_of("tensorrt", layouts={"segmented": BOTH["segmented"]})
    assert choose(only, "onnxruntime") == ("onnxruntime", "segmented")
    assert choose(only, "onnxruntime", "fused") == ("onnxruntime", "fused")  # and refused when it is opened


def test_every_backend_has_a_module_with_create() -> None:
    for kind in BACKENDS.values():
        assert callable(importlib.import_module(f"foveate.runtime.backends.{kind.module}").create)


def test_unknown_backends_are_listed(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no such backend.*openvino.*onnxruntime, cuda, tensorrt-provider"):
        load(bundle.path, backend="openvino")
    with pytest.raises(UsageError, match="no such backend"):
        open_backend("openvino", bundle, "fused")


def test_a_missing_layout_is_said_before_a_gpu_is_asked(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no layout 'nested'"):
        load(bundle.path, backend="cuda", layout="nested")


# --- GPUs that are not there --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["onnxruntime", "cuda"])
def test_float32_attention_is_refused_on_cuda(target: str) -> None:
    for module in (cuda, tensorrt_provider):
        with pytest.raises(UsageError, match=r"no float32.*--target cuda.*--target portable"):
            module.create(bundle_of(target), "segmented", BackendOptions())
    cuda.require_half(bundle_of("cuda", "float16").manifest)
    cuda.require_half(bundle_of("portable").manifest)


NO_CUDA = """
import sys
sys.modules["cuda"] = sys.modules["cuda.bindings"] = None
from foveate.runtime import load
from foveate.runtime.errors import FoveateError
try:
    load(sys.argv[1], backend="cuda", check="none")
except FoveateError as error:
    print(type(error).__name__, error)
"""


def test_without_cuda_bindings_the_extra_is_named(bundles: dict[str, Path], tmp_path: Path) -> None:
    portable = as_target(bundles["plain"], tmp_path, "portable")
    said = subprocess.run(
        [sys.executable, "-c", NO_CUDA, str(portable)], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("MissingDependencyError the package 'cuda-bindings' is not installed")
    assert 'pip install "cuda-bindings>=12.9,<14"' in said


def as_target(path: Path, folder: Path, target: str) -> Path:
    """A copy of a bundle that says that it was exported for another target."""
    import shutil

    shutil.copytree(path, folder / "copy")
    changed = Bundle.open(path, check="none").manifest.model_copy(update={"target": target})
    manifest = changed.model_copy(update={"sha256": changed.digest()})
    (folder / "copy" / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder / "copy"


def test_a_cpu_s_onnxruntime_is_told_from_one_with_cuda(
    bundles: dict[str, Path], tmp_path: Path, cudart: Cudart
) -> None:
    """There is a GPU (the double), and the installed onnxruntime is the one for CPUs."""
    portable = as_target(bundles["plain"], tmp_path, "portable")
    for name, provider in (("cuda", "CUDAExecution"), ("tensorrt-provider", "TensorrtExecution")):
        with pytest.raises(MissingDependencyError, match=rf"has no {provider}.*uninstall -y onnxruntime "):
            load(portable, backend=name, check="none")


def test_options_of_the_providers(cudart: Cudart, tmp_path: Path) -> None:
    """What a GPU is told: one stream of ours, float32 that is float32, caches outside of TensorRT."""
    device = Device()
    manifest: Manifest = bundle_of("portable", "float16").manifest
    plain = cuda.Backend(device, BackendOptions(graphs=False))
    ((name, options),) = plain.providers(graphs=False)
    assert name == "CUDAExecutionProvider"
    assert options["user_compute_stream"] == str(device.stream.handle)
    assert (options["use_tf32"], options["enable_cuda_graph"]) == ("0", "0")
    assert plain.providers(graphs=True)[0][1]["enable_cuda_graph"] == "1"
    tensorrt = tensorrt_provider.Backend(device, BackendOptions(graphs=True), tmp_path, manifest)
    (first, trt), (second, under) = tensorrt.providers(graphs=True)
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert trt["trt_fp16_enable"] == "1"
    assert "trt_bf16_enable" not in trt
    assert {"TensorScatter", "Attention"} <= set(trt["trt_op_types_to_exclude"].split(","))
    assert under["enable_cuda_graph"] == "0"
    assert not tensorrt.graphs_wanted()
    assert "without CUDA graphs: onnxruntime may build engines" in tensorrt.notes[0]
    assert {str(value) for value in (*options.values(), *trt.values())} == {*options.values(), *trt.values()}
    del plain, tensorrt
    device.close()


class Part:
    def __init__(self, provider: str, *kinds: str) -> None:
        self.ep_name = provider
        self._kinds = kinds

    def get_nodes(self) -> list[object]:
        return [type("Node", (), {"op_type": kind})() for kind in self._kinds]


class Session:
    """What onnxruntime tells of where nodes went; on this machine it always says: the CPU."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    def get_provider_graph_assignment_info(self) -> tuple[Part, ...]:
        return self._parts


def test_work_that_was_left_to_the_cpu_is_no_secret(cudart: Cudart) -> None:
    device = Device()
    backend = cuda.Backend(device, BackendOptions())
    gpu = Part("CUDAExecutionProvider", "MatMul", "Attention")
    backend._require_placed(Session(gpu, Part("CPUExecutionProvider", "Shape", "Gather", "Concat")), "embed")
    left = Part("CPUExecutionProvider", "Shape", "DynamicQuantizeLinear", "MatMulInteger")
    with pytest.raises(BackendError, match=r"'embed' would run partly.*DynamicQuantizeLinear, MatMulInteger"):
        backend._require_placed(Session(gpu, left), "embed")
    device.close()


# --- the environment, which all threads share ---------------------------------------------------------------


def test_sessions_made_by_several_threads_all_get_the_fast_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, the variable is set inside for each, and gone at the end."""
    monkeypatch.delenv(onnxruntime._UNTILED, raising=False)
    entered, release, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with onnxruntime._untiled_attention():
            entered.set()
            release.wait(10)
            seen.append(os.environ.get(onnxruntime._UNTILED))

    def second() -> None:
        entered.wait(10)
        with onnxruntime._untiled_attention():
            # Without the lock this is reached while the first one is inside: it would then find the variable,
            # take it for the user's, and have it taken away by the first one's end.
            seen.append("second")
            release.set()
            one.join(10)
            seen.append(os.environ.get(onnxruntime._UNTILED))

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start(), two.start()
    entered.wait(10)
    two.join(0.2)  # it has to wait outside
    outside = list(seen)
    release.set()
    one.join(10), two.join(10)
    assert outside == []
    assert seen == ["1", "second", "1"]
    assert onnxruntime._UNTILED not in os.environ


def test_a_variable_of_the_user_s_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(onnxruntime._UNTILED, "0")
    with onnxruntime._untiled_attention():
        assert os.environ[onnxruntime._UNTILED] == "0"
    assert os.environ[onnxruntime._UNTILED] == "0"


def test_errors_are_the_user_s() -> None:
    assert issubclass(MissingDependencyError, FoveateError)
