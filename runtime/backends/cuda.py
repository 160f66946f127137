"""ONNX Runtime on a GPU: its CUDA provider, over memory and a stream of our own.

Decoding steps are replayed as CUDA graphs where that is legal, see `foveate.runtime.backends.cuda_steps`.
"""

from __future__ import annotations

import contextlib
import io
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from foveate.runtime.backend import BackendOptions
from foveate.runtime.backends.cuda_runner import Runner
from foveate.runtime.backends.onnxruntime import brief
from foveate.runtime.cuda import driver
from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray
from foveate.runtime.errors import BackendError, MissingDependencyError, UsageError
from foveate.runtime.manifest import Manifest, Stage

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

    from foveate.runtime.bundle import Bundle

# The two packages share a folder: the one for CPUs has to go first, and must not come back by an extra.
# Without its own extras, the one for GPUs brings none of CUDA's libraries. 1.24.1 tells where nodes run.
INSTALL: Final = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && "
    f'pip install "onnxruntime-gpu[cuda,cudnn]>=1.24.1" && {driver.INSTALL}'
)
# Caches come in few sizes: memory that one sequence leaves fits the next one, at the same addresses.
_SLOTS: Final = 128
# Work that must not be left to the CPU, by words in the operators' names; shapes are computed there.
_WORK: Final = ("MatMul", "Gemm", "Conv", "Attention", "Normalization", "Quantize", "Softmax", "Scatter")


def create(bundle: Bundle, layout: str, options: BackendOptions) -> Backend:
    """See `foveate.runtime.backends.Module`."""
    require_half(bundle.manifest)
    return Backend(Device(options.device), options)


def require_half(manifest: Manifest) -> None:
    """Raises `UsageError` for a bundle whose attention CUDA cannot compute in its precision."""
    if manifest.target in ("onnxruntime", "cuda") and manifest.cache.dtype == "float32":
        raise UsageError(
            "CUDA's attention kernel for this bundle has no float32",
            found=f"target {manifest.target}, caches in float32",
            wanted="float16 or bfloat16",
            mend="export with --target cuda (float16), or with --target portable for float32 on a GPU; "
            "or run it with --backend onnxruntime",
        )


class Backend:
    """Opens stages as sessions on a GPU.

    Args:
        device: the GPU.
        options: whether steps are recorded; `threads` are those of operators that stay on the CPU.
    """

    name: ClassVar[str] = "cuda"
    provider: ClassVar[str] = "CUDAExecutionProvider"
    place: ClassVar[str] = "cuda"  # the word for its memory in bindings
    elsewhere: ClassVar[str] = "CPUExecutionProvider"  # where no work should be left
    install: ClassVar[str] = INSTALL
    runner: ClassVar[type[Runner]] = Runner

    def __init__(self, device: Device, options: BackendOptions) -> None:
        self.device = device
        self._options = options
        self._notes: dict[str, None] = {}
        self._runners: weakref.WeakSet[Runner] = weakref.WeakSet()

    @property
    def notes(self) -> tuple[str, ...]:
        """See `foveate.runtime.backend.Backend`."""
        return tuple(self._notes)

    def note(self, text: str) -> None:
        """Add one, once."""
        self._notes[text] = None

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        """Load a graph. Raises as `foveate.runtime.backend.Backend.open`."""
        self.device.activate()
        ort = self._package()
        wanted = self.graphs_wanted() and _has_caches(stage)
        session, graphs = None, wanted
        if wanted:
            try:
                session = self._session(ort, path, name, graphs=True)
            except BackendError as error:
                graphs = False
                self.note(f"stage '{name}' decodes without CUDA graphs: {error.found}")
        session = session or self._session(ort, path, name, graphs=False)
        self._require_placed(session, name)
        runner = self.runner(session, name, stage, self, graphs=graphs)
        self._runners.add(runner)
        return runner

    def close(self) -> None:
        """The sessions first, which work on the stream; then the device's memory and the stream."""
        if self.device.stream is not None:
            self.device.wait()
        for runner in tuple(self._runners):
            runner.close()
        self.device.close()

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Zeroed memory of the GPU."""
        return self.device.allocate(shape, dtype)

    def capacity(self, store: int, needed: int) -> int:
        """So many, in large steps."""
        return -(-needed // _SLOTS) * _SLOTS

    def require_rows(self, batch: int) -> None:
        """Nothing: any number runs."""

    def require_prompt(self, batch: int, lengths: Sequence[int]) -> None:
        """Nothing: any length runs."""

    def graphs_wanted(self) -> bool:
        """Whether steps are to be recorded where they can be."""
        return self._options.graphs

    def before_run(self) -> None:
        """What onnxruntime has to be kept waiting for: nothing, it works on the same stream."""

    # --- sessions -------------------------------------------------------------------------------------------

    def _package(self) -> Any:
        """The package, with the provider in it. Raises `MissingDependencyError`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                "the package 'onnxruntime-gpu' is not installed", mend=self.install
            ) from error
        if self.provider not in onnxruntime.get_available_providers():
            there = ", ".join(onnxruntime.get_available_providers())
            found = f"version {onnxruntime.__version__} with {there}"
            raise MissingDependencyError(
                f"this onnxruntime has no {self.provider}", found=found, mend=self.install
            )
        if hasattr(onnxruntime, "preload_dlls"):
            # CUDA's libraries may come from pip. What it does not find it prints; the session says it better.
            with contextlib.redirect_stdout(io.StringIO()):
                onnxruntime.preload_dlls()
        return onnxruntime

    def providers(self, *, graphs: bool) -> list[tuple[str, dict[str, str]]]:
        """The providers in their order, with options; onnxruntime adds the CPU itself."""
        return [(self.provider, self.cuda_options(graphs=graphs))]

    def cuda_options(self, *, graphs: bool) -> dict[str, str]:
        """Options of the CUDA provider."""
        return {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self.device.stream.handle),
            "enable_cuda_graph": str(int(graphs)),
            "use_tf32": "0",  # float32 means float32
            "arena_extend_strategy": "kSameAsRequested",  # powers of two would waste up to half of the GPU
            "cudnn_conv_algo_search": "HEURISTIC",  # trying all takes seconds for every new number of images
        }

    def session_options(self, ort: Any) -> Any:
        """Options of every session."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # pruned prompts have ever new lengths
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self._options.threads is not None:
            options.intra_op_num_threads = self._options.threads
        return options

    def _session(self, ort: Any, path: Path, name: str, *, graphs: bool) -> onnxruntime.InferenceSession:
        chain = self.providers(graphs=graphs)
        try:
            session = ort.InferenceSession(
                str(path),
                self.session_options(ort),
                providers=[each for each, _ in chain],
                provider_options=[options for _, options in chain],
            )
        except Exception as error:  # onnxruntime's exceptions have no common root
            mend = "check the bundle with foveate inspect --full, or export it again"
            raise BackendError(f"stage '{name}' cannot be loaded", found=brief(error), mend=mend) from error
        if session.get_providers()[0] != chain[0][0]:
            # It says so on stderr alone, and goes on with the CPU.
            raise MissingDependencyError(
                f"onnxruntime cannot start its {chain[0][0]}",
                found=f"it would run on {', '.join(session.get_providers())}",
                wanted="the libraries that it was built for (CUDA, cuDNN, and TensorRT for its provider)",
                mend=f"{self.install}; foveate doctor shows what is there",
            )
        return session

    def _require_placed(self, session: Any, name: str) -> None:
        """Raises `BackendError` if work that is no arithmetic of shapes was left to the CPU."""
        if not hasattr(session, "get_provider_graph_assignment_info"):
            self.note("this onnxruntime does not tell which nodes it leaves to the CPU; 1.24.1 does")
            return
        for part in session.get_provider_graph_assignment_info():
            kinds = {node.op_type for node in part.get_nodes()}
            left = sorted(kind for kind in kinds if any(word in kind for word in _WORK))
            if part.ep_name == self.elsewhere and left:
                raise BackendError(
                    f"stage '{name}' would run partly on the CPU",
                    found=f"no kernel on the GPU for {', '.join(left)}",
                    mend="export with --target cuda, or run it with --backend onnxruntime",
                )


def _has_caches(stage: Stage) -> bool:
    return any(spec.name.startswith("past_key") for spec in stage.inputs)
