"""What a user is told when engines cannot be loaded or run; TensorRT and CUDA are doubles."""

from __future__ import annotations

import gc
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import cudart as cudart_double
from doubles.cudart import Cudart
from doubles.tensorrt.install import install
from engines_made import PORTABLE
from many import IMAGES

from foveate.runtime import GenerateOptions, Pipeline, Scheduler, load
from foveate.runtime.backends.tensorrt import Backend, Runner
from foveate.runtime.engines import engines_folder
from foveate.runtime.errors import (
    BackendError,
    BundleError,
    DeviceMemoryError,
    EngineError,
    MissingDependencyError,
    ProfileError,
    UsageError,
)

INSTALL = 'pip install "foveate[tensorrt]"'


@pytest.fixture
def pipeline(engines: Path, cudart: Cudart, tensorrt: types.ModuleType) -> Any:
    loaded = load(engines)
    yield loaded
    close(loaded)


def close(loaded: Pipeline) -> None:
    backend = loaded.model.backend
    assert isinstance(backend, Backend)
    backend.close()
    loaded.__dict__.clear()
    gc.collect()


# --- what is not there --------------------------------------------------------------------------------------


def test_without_tensorrt_the_line_that_installs_it_is_named(engines: Path, cudart: Cudart) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        load(engines, backend="tensorrt")
    assert "'tensorrt' is not installed" in str(caught.value)
    assert caught.value.mend == INSTALL


def test_bindings_without_their_libraries(
    engines: Path, cudart: Cudart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tensorrt-cu13-bindings alone: the package is there, and fails when it is imported."""
    (tmp_path / "tensorrt").mkdir()
    missing = "libnvinfer.so.11: cannot open shared object file: No such file or directory"
    (tmp_path / "tensorrt" / "__init__.py").write_text(f"raise ImportError({missing!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"libnvinfer\.so\.11") as caught:
        load(engines)
    assert caught.value.mend == INSTALL


def test_an_old_tensorrt(
    engines: Path, cudart: Cudart, tensorrt: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "__version__", "10.9.0.34")
    with pytest.raises(BackendError, match=r"too old.*10\.9\.0\.34.*10\.15 or newer.*pip install --upgrade"):
        load(engines)


def test_without_cuda_bindings(
    engines: Path, monkeypatch: pytest.MonkeyPatch, cudart: Cudart, tensorrt: types.ModuleType
) -> None:
    import cuda.bindings

    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.delattr(cuda.bindings, "runtime")
    with pytest.raises(MissingDependencyError, match=r"cuda-bindings.*pip install"):
        load(engines)


def test_without_a_driver(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cudart_double.install(monkeypatch, Cudart(driver=None))
    install(monkeypatch)
    with pytest.raises(BackendError, match="driver"):
        load(engines)


def test_a_gpu_that_is_not_there(engines: Path, cudart: Cudart, tensorrt: types.ModuleType) -> None:
    with pytest.raises(UsageError, match="no such GPU"):
        load(engines, device=3)


# --- engines that do not fit --------------------------------------------------------------------------------


def test_without_engines(engines_copy: Path, cudart: Cudart, tensorrt: types.ModuleType) -> None:
    for folder in engines_folder(engines_copy).glob("*/engine.json"):
        folder.unlink()
    with pytest.raises(EngineError, match=f"no TensorRT engines.*foveate build {engines_copy}"):
        load(engines_copy)


def test_engines_of_another_version(engines: Path, cudart: Cudart, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version=PORTABLE)
    with pytest.raises(EngineError, match=r"for TensorRT 11\.4\.0\.106.*foveate build") as caught:
        load(engines)
    assert f"TensorRT {PORTABLE}" in caught.value.wanted
    assert "batch=4,prompt=112,new=32" in caught.value.mend


def test_engines_of_another_gpu(
    engines: Path, cudart: Cudart, tensorrt: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.runtime.cuda.device.Device.compute_capability", (8, 9))
    with pytest.raises(EngineError, match=r"compute capability 9\.0.*compute capability 8\.9.*foveate build"):
        load(engines)


def test_a_truncated_plan(engines_copy: Path, cudart: Cudart, tensorrt: types.ModuleType) -> None:
    path = next(engines_folder(engines_copy).glob("*/decoder_1.plan"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EngineError, match=r"stage 'decoder_1' is truncated.*foveate build"):
        load(engines_copy)


def test_a_plan_that_tensorrt_refuses(engines_copy: Path, cudart: Cudart, tensorrt: types.ModuleType) -> None:
    """Of the right size: the reason comes from TensorRT's log."""
    path = next(engines_folder(engines_copy).glob("*/embed.plan"))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(EngineError, match="does not take the engine of stage 'embed'") as caught:
        load(engines_copy)
    assert "deserializeCudaEngine" in caught.value.found
    assert "foveate build" in caught.value.mend
    assert caught.value.mend.endswith("--rebuild"), "without it, all is up to date: only sizes are looked at"
    gc.collect()


def test_engines_are_part_of_no_export(engines: Path) -> None:
    """They may come and go without the bundle being another one."""
    from foveate.runtime import Bundle

    Bundle.open(engines, check="full")


def test_no_layout_but_the_segmented_one(engines: Path, cudart: Cudart, tensorrt: types.ModuleType) -> None:
    with pytest.raises(UsageError, match="no layout 'fused'"):
        load(engines, layout="fused")


def test_a_damaged_bundle_is_told_first(engines_copy: Path) -> None:
    (engines_copy / "onnx" / "embed.onnx").write_bytes(b"")
    with pytest.raises(BundleError):
        load(engines_copy)


# --- more than was built for --------------------------------------------------------------------------------


def test_a_prompt_that_is_too_long(pipeline: Pipeline) -> None:
    with pytest.raises(ProfileError) as caught:
        pipeline.generate("word " * 60)
    assert "foveate build" in caught.value.mend
    assert "prompt=" in caught.value.mend
    answer = pipeline.generate("What is this?", IMAGES[:1], GenerateOptions(max_new_tokens=2))
    assert len(answer.token_ids) == 2, "the next one is answered"


def test_the_axis_is_named_where_the_caches_have_room(pipeline: Pipeline) -> None:
    """112 tokens may be read at once, and letters are tokens here; the caches hold 192."""
    options = GenerateOptions(max_new_tokens=1, keep_ratio=0.9)  # what that comes to is the graph's affair
    with pytest.raises(ProfileError, match=r"axis 'sequence'.*1 to 112.*prompt=1\d\d,new=32"):
        pipeline.generate("word " * 15, IMAGES[:1], options)


def test_too_many_rows_of_one_graph(pipeline: Pipeline) -> None:
    ids = np.ones((5, 1), np.int64)
    with pytest.raises(ProfileError, match=r"axis 'batch'.*Found: 5\. Wanted: 1 to 4.*batch=5"):
        pipeline.model.embed(ids, -ids)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that were started, in order."""
    names: list[str] = []
    run = Runner.run

    def noting(runner: Runner, *args: Any, **words: Any) -> Any:
        names.append(runner.name)
        return run(runner, *args, **words)

    monkeypatch.setattr(Runner, "run", noting)
    return names


@pytest.mark.parametrize(
    ("prompt", "images", "options", "said"),
    [
        ("word " * 20, 1, {}, r"at least 1[12]\d tokens in the decoder.*at most 112.*prompt=1[12]\d,"),
        ("word " * 12, 2, {"keep_tokens": 20}, r"at least 1[12]\d tokens"),
        ("word " * 12, 2, {"keep_tokens": 40, "share": "proportional"}, r"at least 1[12]\d tokens"),
        ("word " * 12, 2, {"keep_ratio": 1.0, "allow_unpruned": True}, r"at least 1[23]\d tokens"),
    ],
    ids=["text", "tokens", "tokens shared", "all"],
)
def test_what_is_certain_is_refused_before_any_picture_is_looked_at(
    pipeline: Pipeline, ran: list[str], prompt: str, images: int, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProfileError, match=said):
        pipeline.generate(prompt, IMAGES[:images], GenerateOptions(max_new_tokens=1, **options))
    assert not ran
    with Scheduler(pipeline, slots=1) as scheduler, pytest.raises(ProfileError, match=said):
        scheduler.submit(prompt, IMAGES[:images], GenerateOptions(max_new_tokens=1, **options)).result()
    assert not ran


def test_what_is_not_certain_is_looked_at(pipeline: Pipeline, ran: list[str]) -> None:
    """So many tokens of each picture would not fit; what the method's own rule keeps does."""
    pipeline.generate("word " * 12, IMAGES[:2], GenerateOptions(max_new_tokens=1))
    assert ran[0] == "vision_segmented"


def test_too_many_at_once(pipeline: Pipeline, ran: list[str]) -> None:
    with pytest.raises(ProfileError, match=r"Found: 5\. Wanted: at most 4.*batch=5"):
        pipeline.generate_batch([("Hello", IMAGES[:1])] * 5, GenerateOptions(max_new_tokens=2))
    assert not ran


def test_a_long_answer(pipeline: Pipeline) -> None:
    with pytest.raises(ProfileError, match=r"caches of the engines.*at most 192.*foveate build"):
        pipeline.generate("Hello", options=GenerateOptions(max_new_tokens=250))


def test_too_many_slots_of_a_scheduler(pipeline: Pipeline) -> None:
    """Said at once, not when a fifth request comes."""
    with pytest.raises(ProfileError, match=r"Found: 5\. Wanted: at most 4.*batch=5"):
        Scheduler(pipeline, slots=5)


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.5, "memory for the engines' weights"), (1.5, "memory for the engines' intermediate results")],
)
def test_a_gpu_that_is_too_small_for_the_engines(
    engines: Path, monkeypatch: pytest.MonkeyPatch, share: float, words: str
) -> None:
    size = sum(path.stat().st_size for path in engines_folder(engines).glob("*/*.plan"))
    cudart_double.install(monkeypatch, Cudart(memory=int(size * share)))
    install(monkeypatch)
    # The double's engines take no memory for their weights, so that this is more than there is.
    monkeypatch.setattr("foveate.runtime.tensorrt.engine.Engine.scratch_bytes", 2 * size)
    with pytest.raises(DeviceMemoryError, match=words) as caught:
        load(engines)
    assert "MB free of" in caught.value.found
    assert f"{size * (1 if share < 1 else 2) / 1e6:,.1f} MB more" in caught.value.wanted
    assert "--profile (now batch=4,prompt=112" in caught.value.mend


def test_a_gpu_that_is_too_small_for_the_caches(
    pipeline: Pipeline, cudart: Cudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudart, "_memory", cudart.used + 100_000)
    with pytest.raises(DeviceMemoryError, match="not enough memory"):
        pipeline.generate("Hello")


# --- misuse of a runner -------------------------------------------------------------------------------------


def test_an_input_that_is_missing(pipeline: Pipeline) -> None:
    with pytest.raises(BackendError, match="stage 'embed' lacks input 'slot'"):
        pipeline.model._embed.run({"input_ids": np.zeros((1, 2), np.int64)})


def test_an_input_of_another_rank(pipeline: Pipeline) -> None:
    feeds = {"input_ids": np.zeros((1, 2), np.int64), "slot": np.zeros((1, 2, 1), np.int64)}
    rows = {"features": np.zeros((1, 9), np.float32), "kept_index": np.zeros(1, np.int64)}
    with pytest.raises(BackendError, match=r"'slot' is misshapen.*1, 2, 1"):
        pipeline.model._embed.run(feeds | rows)
