"""ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveate.runtime import huge_pages
from foveate.runtime.arrays import Array, Arrays, Bindings
from foveate.runtime.backend import NO_BINDINGS, BackendOptions
from foveate.runtime.cache import allocate_numpy, in_steps
from foveate.runtime.errors import BackendError, MissingDependencyError
from foveate.runtime.manifest import Stage, TensorSpec

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

    from foveate.runtime.bundle import Bundle

_PROVIDERS = ("CPUExecutionProvider",)
_UNTILED = "ORT_GQA_DISABLE_FLASH_ATTENTION"
# Around the environment, which all threads share: without it, one thread takes the variable away while
# another one's kernels are made, or finds it there, takes it for the user's and leaves it to stay.
_ENVIRONMENT = threading.Lock()
ONNX_BFLOAT16 = 16  # as in TensorProto.DataType; numpy has no such type


@contextlib.contextmanager
def _untiled_attention() -> Iterator[None]:
    """Sessions made inside compute whole score matrices in `GroupQueryAttention`.

    onnxruntime 1.31 goes through the keys in tiles, which takes about twice as long: 75 ms against 40 at 589
    rows of 32 heads, one thread; 0.66 against 0.48 for one row behind 600. The price is memory for heads x
    rows x slots x 4 bytes, 48 MB there. Kernels read the variable when they are made, and there is no option;
    who sets it to 0 keeps the tiles. Sessions are made one at a time, whichever threads ask for them.
    """
    with _ENVIRONMENT:
        if _UNTILED in os.environ:
            yield
            return
        os.environ[_UNTILED] = "1"
        try:
            yield
        finally:
            del os.environ[_UNTILED]


def create(bundle: Bundle, layout: str, options: BackendOptions) -> Backend:
    """See `foveate.runtime.backends.Module`: any bundle in any layout."""
    return Backend(options.threads)


class Backend:
    """Opens stages as inference sessions.

    Args:
        threads: of one operator; None takes all cores.
        profile: a folder for onnxruntime's traces, one file for each stage; see `Runner.end_profile`.

    Raises:
        UsageError: the environment says something unknown about large pages.
    """

    name = "onnxruntime"

    def __init__(self, threads: int | None = None, *, profile: Path | None = None) -> None:
        self._threads = threads
        self._profile = profile
        self._gather = huge_pages.wanted()  # a wrong word is refused before anything is loaded
        self.notes: tuple[str, ...] = ()

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        """Load a graph. Raises `BackendError`, or `MissingDependencyError` without onnxruntime."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError.of("onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # It would remember a plan for every new length, and pruned prompts have ever new ones; the block of a
        # plan comes beside the pieces that are there already. Without: two thirds of the memory, equal speed.
        # What else was tried is in docs/memory.md; above all, prepacking has to stay.
        options.enable_mem_pattern = False
        if saturates(cpu_flags()):
            options.add_session_config_entry("session.x64quantprecision", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if self._profile is not None:
            self._profile.mkdir(parents=True, exist_ok=True)
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile / name)
        try:
            with _untiled_attention():
                session = onnxruntime.InferenceSession(str(path), options, providers=list(_PROVIDERS))
        except Exception as error:  # onnxruntime's exceptions have no common root
            mend = "check the bundle with foveate inspect --full, or export it again"
            raise BackendError(f"stage '{name}' cannot be loaded", found=brief(error), mend=mend) from error
        if self._gather and not huge_pages.gather():
            self.notes = (f"{huge_pages.SWITCH}=1 has no effect: this system gathered no large page",)
        return Runner(session, name, stage, profiled=self._profile is not None)

    def allocate(self, shape: Sequence[int], dtype: str) -> Array:
        """Zeroed host memory."""
        return allocate_numpy(shape, dtype)

    def close(self) -> None:
        """Nothing: sessions and memory go with their last reference."""

    def capacity(self, store: int, needed: int) -> int:
        """A little more."""
        return in_steps(store, needed)

    def require_rows(self, batch: int) -> None:
        """Nothing: any number runs."""

    def require_prompt(self, batch: int, lengths: Sequence[int]) -> None:
        """Nothing: any length runs."""


def saturates(flags: frozenset[str]) -> bool:
    """Whether int8 products may overflow on an x86 processor with these features.

    Without VNNI, two products of 8 by 8 bits are added in 16. onnxruntime can store the weights so that they
    fit; where there is VNNI, that costs a factor of four for nothing.
    """
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni"}


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's features as Linux names them; none where it is not asked (other systems, ARM)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


class Runner:
    """One session with its IO binding. Not for use by several threads at once."""

    def __init__(
        self, session: onnxruntime.InferenceSession, name: str, stage: Stage, *, profiled: bool = False
    ) -> None:
        self.name = name
        self.stage = stage
        self._session = session
        self._profiled = profiled
        self._io = session.io_binding()
        # Holds the memory that is bound by address, too.
        self._bound: Bindings = NO_BINDINGS
        # Outputs that are bound to memory. They come first: results are in the order of the first binding.
        self._placed: list[str] = []

    def run(self, feeds: Arrays, bindings: Bindings = NO_BINDINGS) -> dict[str, Array]:
        """See `foveate.runtime.backend.Runner.run`."""
        if bindings is not self._bound:
            self._bind(bindings)
        for spec in self.stage.inputs:
            if spec.name not in bindings:
                self._feed(spec, feeds)
        wanted = [spec.name for spec in self.stage.outputs if spec.name not in bindings]
        for name in wanted:
            # Anew for each run: a binding keeps the shape of its first output, and kept counts differ.
            self._io.bind_output(name)
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            raise BackendError(
                f"stage '{self.name}' failed", found=f"{brief(error)}; inputs {_shapes(feeds)}"
            ) from error
        values = dict(zip([*self._placed, *wanted], self._io.get_outputs(), strict=True))
        return {name: values[name].numpy() for name in wanted}

    def end_profile(self) -> Path:
        """Write the trace of all runs so far (Chrome's JSON, microseconds) and give its path; once only.

        Raises:
            BackendError: the backend was made without `profile`, or the trace was written before.
        """
        if not self._profiled:
            mend = "make the backend with profile=FOLDER, and end each profile once"
            raise BackendError(f"stage '{self.name}' is not being profiled", mend=mend)
        self._profiled = False
        return Path(self._session.end_profiling())

    def _bind(self, bindings: Bindings) -> None:
        self._io = self._session.io_binding()
        kinds = {spec.name: spec.dtype for spec in (*self.stage.inputs, *self.stage.outputs)}
        takes = {spec.name for spec in self.stage.inputs}
        gives = {spec.name for spec in self.stage.outputs}
        for name, memory in bindings.items():
            assert isinstance(memory, np.ndarray), "memory of another backend"
            kind = ONNX_BFLOAT16 if kinds.get(name) == "bfloat16" else memory.dtype.type
            place = ("cpu", 0, kind, memory.shape, memory.ctypes.data)
            if name in takes:
                self._io.bind_input(name, *place)
            if name in gives:
                self._io.bind_output(name, *place)
        self._bound = bindings
        self._placed = [name for name in bindings if name in gives]

    def _feed(self, spec: TensorSpec, feeds: Arrays) -> None:
        value = feeds.get(spec.name)
        if value is None:
            raise BackendError(f"stage '{self.name}' lacks input '{spec.name}'", found=_shapes(feeds))
        value = np.ascontiguousarray(value, dtype=spec.dtype)
        if value.ndim != len(spec.shape) or any(
            isinstance(want, int) and want != have
            for want, have in zip(spec.shape, value.shape, strict=False)
        ):
            raise BackendError(
                f"stage '{self.name}': input '{spec.name}' is misshapen",
                found=str(list(value.shape)),
                wanted=str(list(spec.shape)),
            )
        self._io.bind_cpu_input(spec.name, value)  # keeps `value` alive


def _shapes(feeds: Arrays) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())


def brief(error: Exception) -> str:
    """The first line of onnxruntime's message, which can fill a screen."""
    return str(error).strip().split("\n")[0][:400]
