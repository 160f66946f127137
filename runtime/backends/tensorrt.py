"""TensorRT engines, as `foveate build` makes them, without torch and without onnxruntime."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from foveate.runtime.arrays import Array, Bindings, host_dtype
from foveate.runtime.backend import NO_BINDINGS, BackendOptions
from foveate.runtime.bundle import Bundle
from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray
from foveate.runtime.errors import BackendError, DeviceMemoryError, EngineError, UsageError
from foveate.runtime.manifest import Stage
from foveate.runtime.tensorrt.context import Bound, Context, signature
from foveate.runtime.tensorrt.engine import Engine
from foveate.runtime.tensorrt.feeds import chunk_of, derived, joined, padded, split
from foveate.runtime.tensorrt.find import Found, Here, find_engines
from foveate.runtime.tensorrt.graphs import Graphs
from foveate.runtime.tensorrt.library import Library, open_library
from foveate.runtime.tensorrt.limits import Limits
from foveate.runtime.tensorrt.profiles import Shape, choose, least_shapes
from foveate.runtime.tensorrt.staging import Lane

# A context for each batch size of decoding steps; of more sizes than this the oldest goes.
_MOST_CONTEXTS = 64
# What a cut gives for a chunk of one token, which it never drops: how it is filled, and the axes behind b.
_CHOICES: Final = {"order": (np.zeros, (1,)), "count": (np.ones, ())}


def create(bundle: Bundle, layout: str, options: BackendOptions) -> Backend:
    """The backend with all engines of a layout loaded. Raises as `Backend`."""
    return Backend(bundle, layout, options)


class Backend:
    """The engines of a bundle on one GPU and one stream.

    Raises:
        MissingDependencyError: tensorrt or cuda.bindings is not installed.
        EngineError: there are no engines for this machine and bundle, or one is damaged.
        DeviceMemoryError: they do not fit into the GPU's memory.
        UsageError: there are no engines of this layout.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, layout: str, options: BackendOptions) -> None:
        library = open_library()
        self.device = Device(options.device)
        self.lane = Lane(self.device)
        self._engines: dict[str, Engine] = {}
        self._runners: list[Runner] = []
        self._runtime: Any = None
        self._scratch: DeviceArray | None = None
        try:
            found = self._find(library, bundle, layout)
            self.record = found.record
            self.limits = Limits(found.record, bundle.path)
            self.graphs = Graphs(options.graphs)
            self._load(library, found, bundle.layout_stages(layout), found.record.command(bundle.path))
        except BaseException:
            self.close()  # now: an error may be kept for long, and the GPU's memory with it
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """What runs otherwise than it should."""
        return (self.graphs.note,) if self.graphs.note else ()

    def _find(self, library: Library, bundle: Bundle, layout: str) -> Found:
        """Engines that fit this machine and have all stages of a layout."""
        major, minor = self.device.compute_capability
        found = find_engines(bundle, Here(library.version, f"{major}.{minor}", self.device.name))
        missing = [name for name in bundle.layout_stages(layout) if name not in found.record.stages]
        if missing:
            raise UsageError(
                f"there are no TensorRT engines of layout '{layout}'",
                found=f"none of {', '.join(missing)}",
                wanted="layout segmented",
            )
        return found

    def _load(self, library: Library, found: Found, names: Sequence[str], command: str) -> None:
        """All engines, and one scratch memory for all contexts: they run one after another."""
        need = sum(found.record.stages[name].bytes for name in names)
        streams = found.record.options.weight_streaming
        if need > self.device.free_bytes and not streams:
            raise self._too_large(need, "weights")
        self._runtime = library.make_runtime(host_code=found.record.options.version_compatible)
        for name in names:
            engine = Engine(library, self._runtime, found.plan(name), name, command)
            if streams:
                engine.stream_weights()
                if engine.streams_weights:
                    self.graphs.give_up(name, "weights are streamed from the host")
            self._engines[name] = engine
        scratch = max(engine.scratch_bytes for engine in self._engines.values())
        try:
            self._scratch = self.device.allocate((max(1, scratch),), "uint8", zero=False)
        except DeviceMemoryError as error:
            raise self._too_large(scratch, "intermediate results") from error

    def _too_large(self, need: int, what: str) -> DeviceMemoryError:
        profile = self.record.profile
        return DeviceMemoryError(
            f"the GPU has not enough memory for the engines' {what}",
            found=f"{self.device.free_bytes / 1e6:,.1f} MB free of {self.device.total_bytes / 1e6:,.1f}",
            wanted=f"{need / 1e6:,.1f} MB more",
            mend="end what else runs on the GPU (nvidia-smi shows it), or build for less: a smaller "
            f"--profile (now {profile.words()}), a smaller precision, or --weight-streaming",
        )

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        """The runner of a stage, whose engine is loaded already. Raises `BackendError` for any other."""
        if name not in self._engines:
            raise BackendError(f"there is no engine of stage '{name}'", wanted=", ".join(self._engines))
        assert self._scratch is not None
        runner = Runner(self._engines[name], stage, self, self._scratch)
        self._runners.append(runner)
        return runner

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Zeroed memory of the GPU. Raises `DeviceMemoryError`."""
        return self.device.allocate(shape, dtype)

    def capacity(self, store: int, needed: int) -> int:
        """See `Limits.capacity`."""
        return self.limits.capacity(store, needed)

    def require_rows(self, batch: int) -> None:
        """See `Limits.require_rows`."""
        self.limits.require_rows(batch)

    def require_prompt(self, batch: int, lengths: Sequence[int]) -> None:
        """See `Limits.require_prompt`."""
        self.limits.require_prompt(batch, lengths)

    def close(self) -> None:
        """Free everything, in the order that TensorRT wants: graphs, contexts, engines, runtime, memory."""
        for runner in self._runners:
            runner.close()
        for engine in self._engines.values():
            engine.close()
        self._runners, self._engines, self._runtime, self._scratch = [], {}, None, None
        self.device.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class Runner:
    """One engine with its contexts. Not for use by several threads at once."""

    def __init__(self, engine: Engine, stage: Stage, backend: Backend, scratch: DeviceArray) -> None:
        self.name = engine.name
        self.stage = stage
        self._engine = engine
        self._lane, self._limits, self._graphs = backend.lane, backend.limits, backend.graphs
        self._scratch: DeviceArray | None = scratch
        self._inputs = {t.name: t for t in engine.tensors.values() if t.is_input}
        self._outputs = frozenset(engine.tensors) - self._inputs.keys()
        self._least = least_shapes(engine.profiles)
        self._most = self._most_items()
        self._choices = {
            name: _CHOICES[name.partition("_")[0]]
            for name in self._outputs
            if name.partition("_")[0] in _CHOICES and stage.has_input("position_ids")
        }
        self._contexts: dict[tuple[int, int | None], Context] = {}
        self._require_in_place(backend.record.command(Path("BUNDLE")))

    def _require_in_place(self, command: str) -> None:
        """Caches must be written where they are read; an engine that copies them would give wrong numbers."""
        for name in self._outputs:
            past = name.replace("present_", "past_", 1)
            if name.startswith("present_") and self._engine.tensors[name].alias != past:
                raise EngineError(
                    f"the engine of stage '{self.name}' does not write '{past}' in place",
                    found=str(self._engine.tensors[name].alias),
                    mend=f"build it with TensorRT 10.15 or newer: {command}",
                )

    def _most_items(self) -> int | None:
        """Pictures that a vision graph takes at once; None for graphs that take one, or that are none."""
        if not all(spec.shape[0] == "batch" for spec in self.stage.inputs):
            return None
        first = self.stage.inputs[0].name
        most = [profile.ranges[first][1][0] for profile in self._engine.profiles if first in profile.ranges]
        return max(most, default=None)

    @property
    def recordings(self) -> int:
        """How many steps are captured as CUDA graphs and in use."""
        return sum(context.captured for context in self._contexts.values())

    def run(self, feeds: Mapping[str, Any], bindings: Bindings = NO_BINDINGS) -> dict[str, Any]:
        """See `foveate.runtime.backend.Runner.run`.

        Raises:
            ProfileError: more of something than the engine was built for.
            BackendError: an input is missing or misshapen, TensorRT failed, or this was closed.
        """
        if self._scratch is None:
            mend = "load the bundle again"
            raise BackendError(f"stage '{self.name}' was run after its backend was closed", mend=mend)
        self._lane.device.activate()
        chunk = chunk_of(feeds)
        if chunk is None and self._most is not None:
            pieces = list(split(feeds, self._most, [spec.name for spec in self.stage.inputs]))
            if len(pieces) > 1:
                return joined([self._run(piece, bindings, None) for piece in pieces])
        return self._run(feeds, bindings, chunk)

    def _run(
        self, feeds: Mapping[str, Any], bindings: Bindings, chunk: tuple[int, int] | None
    ) -> dict[str, Any]:
        self._limits.require_room(feeds, chunk[1] if chunk else None)
        values = self._values(feeds, bindings)
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        # Steps of one token have a context for each number of sequences, so that each keeps its graph.
        steps = chunk[0] if chunk and chunk[1] == 1 else None
        context = self._context(shapes, signature(bindings), steps)
        unbound = self._outputs - bindings.keys()
        if steps is None:
            return context.run(values, unbound)
        # What a cut chooses of one token is known: the host need not wait for it between two segments.
        known = {name: fill((steps, *tail), np.int64) for name, (fill, tail) in self._choices.items()}
        return context.run(values, unbound, known.keys()) | known

    def _values(self, feeds: Mapping[str, Any], bindings: Bindings) -> dict[str, Any]:
        """The inputs that are not bound, in the engine's types: it reads bytes as if they were right."""
        wanted = [name for name in self._inputs if name not in bindings]
        given = {**feeds, **derived([name for name in wanted if name not in feeds], feeds)}
        missing = [name for name in wanted if name not in given]
        if missing:
            raise BackendError(f"stage '{self.name}' lacks input '{missing[0]}'", found=", ".join(given))
        return {name: self._typed(name, given[name]) for name in wanted}

    def _typed(self, name: str, value: Any) -> Array | DeviceArray:
        tensor = self._inputs[name]
        if isinstance(value, DeviceArray) and value.dtype == tensor.dtype and not tensor.on_host:
            return value
        array = np.asarray(value)
        if tensor.dtype == "bfloat16" and array.dtype != host_dtype(tensor.dtype):
            raise BackendError(
                f"stage '{self.name}': '{name}' has to come from the GPU", found=str(array.dtype)
            )
        return padded(np.ascontiguousarray(array, dtype=host_dtype(tensor.dtype)), self._least.get(name))

    def _context(self, shapes: Mapping[str, Shape], bound: Bound, steps: int | None) -> Context:
        """The context that is set to these shapes and this memory, or one that is set to them now."""
        for context in self._contexts.values():
            if context.is_set(shapes, bound):
                return context
        every = {**shapes, **{name: shape for name, _, shape in bound if name in self._inputs}}
        self._limits.require_static(self._engine, every)
        profile = choose(self._engine.profiles, every)
        if profile is None:
            raise self._limits.exceeded(self.stage, self.name, self._engine.profiles, every)
        key = (profile.index, steps)
        context = self._contexts.pop(key) if key in self._contexts else self._new_context(*key)
        self._contexts[key] = context  # behind the others: used last
        context.set(shapes, bound)
        return context

    def _new_context(self, profile: int, steps: int | None) -> Context:
        while len(self._contexts) >= _MOST_CONTEXTS:
            self._contexts.pop(next(iter(self._contexts))).close()
        graphs = None if steps is None else self._graphs
        assert self._scratch is not None  # or it would be closed
        return Context(self._engine, profile, self._lane, self._scratch, graphs)

    def close(self) -> None:
        """Free the contexts; it cannot be used any more."""
        for context in self._contexts.values():
            context.close()
        self._contexts, self._scratch = {}, None
