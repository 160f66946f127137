"""Decoding steps with memory that stays, so that ONNX Runtime can record them as CUDA graphs and replay them.

A recording pins shapes and addresses. A step has both fixed: one row of each sequence, caches that stay where
they are until they grow, and for every other input and output a buffer of its own here, into which a step's
values are copied. It is legal where

- the graph keeps caches (no vision, no embedding: their shapes are the prompt's) and reads one row,
- every other input has a size that steps do not change, and every output's follows from the inputs' (so the
  segmented layout, or the fused one without cuts inside the decoder),
- ONNX Runtime has the whole graph on the GPU, without copies to the host: else it refuses the session.

One number is read on the host while a step is enqueued, `ON_HOST`, the tokens of the longest row: attention
splits its work by it, and takes "as many as rows" for a first prompt. A recording keeps the split of its
first step, so steps are told the caches' capacity instead, which stays. How far a row reaches they are told
on the device.

Whatever was recorded is not believed: twice, a replay is compared with a plain run of the same step, which
writes the same slots of the caches. If they differ, or recording fails, steps go on plainly, and a note says
so.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foveate.runtime.arrays import Array, Bindings
from foveate.runtime.backend import NO_BINDINGS
from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray
from foveate.runtime.errors import BackendError
from foveate.runtime.manifest import Stage

if TYPE_CHECKING:
    from foveate.runtime.backends.cuda_runner import Runner

ON_HOST: Final = "total_length_"  # and the group's number
WARM: Final = 4  # plain steps before one is recorded: short answers do not pay for it
PROOFS: Final = 2  # replays that are compared; the second one with longer caches
WRONG: Final = "a replayed step gave other numbers than a plain one"
_ALIGN: Final = 256  # of addresses
_MOST: Final = 16  # plans that are kept: one for each number of sequences and place of the caches
_MOST_GRAPHS: Final = 64  # recordings of a session, which keeps each of them to its end

Key = tuple[Any, ...]


class Remembered:
    """A mapping of bindings, told by its identity, without keeping its memory where that can be helped.

    Caches that are done with are given back at once, and the next ones lie where they lay.
    """

    def __init__(self, bindings: Bindings = NO_BINDINGS) -> None:
        self._kept: Callable[[], Bindings | None]
        try:
            self._kept = weakref.ref(bindings)
        except TypeError:  # a plain dictionary
            self._kept = lambda: bindings

    def is_(self, bindings: Bindings) -> bool:
        """Whether it is the same one."""
        return self._kept() is bindings


class Plan:
    """Buffers for one key: shapes of the feeds, and shapes and places of the caches."""

    def __init__(self, runner: Runner, values: Mapping[str, Array], bindings: Bindings) -> None:
        device = runner.device
        self.io, _ = runner.bound(bindings)
        for name, value in capacities(runner.stage, runner.on_host, bindings).items():
            self.io.bind_cpu_input(name, value)
        values = {name: value for name, value in values.items() if name not in runner.on_host}
        kinds = {spec.name: spec.dtype for spec in runner.stage.inputs}
        self._packed = _Packed(
            device, {n: v for n, v in values.items() if not isinstance(v, DeviceArray)}, kinds
        )
        self._others = {
            name: device.allocate(value.shape, kinds[name], zero=False)
            for name, value in values.items()
            if isinstance(value, DeviceArray)
        }
        self.inputs = {**self._packed.memory, **self._others}
        shapes = {name: memory.shape for name, memory in {**self.inputs, **bindings}.items()}
        self.outputs = {
            spec.name: device.allocate(known, spec.dtype, zero=False)
            for spec in runner.stage.outputs
            if spec.name not in bindings
            for known in (shape_of(runner.stage, spec.shape, shapes),)
            if known is not None
        }
        self.complete = len(self.outputs) == sum(s.name not in bindings for s in runner.stage.outputs)
        for name, memory in self.inputs.items():
            runner.bind_input(self.io, name, memory)
        for name, memory in self.outputs.items():
            runner.bind_output(self.io, name, memory)
        self.used = self.proven = 0
        self.recording: Any = None  # options of a run that replays

    def fill(self, values: Mapping[str, Array]) -> None:
        """Copy a step's values into the buffers. Those that the host reads are the caches', and stay."""
        self._packed.fill(values)
        for name, memory in self._others.items():
            memory[...] = values[name]


class _Packed:
    """What comes from the host, in one piece of memory: one copy brings all of it."""

    def __init__(self, device: Device, values: Mapping[str, Array], kinds: Mapping[str, str]) -> None:
        sizes = [-(-value.nbytes // _ALIGN) * _ALIGN for value in values.values()]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._image = np.zeros(sum(sizes), np.uint8)
        self._there = device.allocate(self._image.shape, "uint8", zero=False)
        self.memory: dict[str, DeviceArray] = {}
        self._here: dict[str, Array] = {}
        for (name, value), start in zip(values.items(), starts, strict=True):
            part = slice(start, start + value.nbytes)
            self.memory[name] = self._there[part].view(kinds[name], value.shape)
            self._here[name] = self._image[part].view(value.dtype).reshape(value.shape)

    def fill(self, values: Mapping[str, Array]) -> None:
        for name, place in self._here.items():
            place[...] = values[name]
        if self._image.size:
            self._there[...] = self._image


class Steps:
    """The plans of one session."""

    def __init__(self, runner: Runner, *, graphs: bool) -> None:
        self._runner = runner
        self._graphs = graphs
        self._plans: OrderedDict[Key, Plan] = OrderedDict()
        self._recorded = 0
        self._seen = Remembered()
        self._places: Key = ()

    @property
    def active(self) -> bool:
        """Whether steps are recorded, or will be."""
        return self._graphs

    @property
    def recordings(self) -> int:
        """How many are recorded and in use."""
        return sum(plan.recording is not None for plan in self._plans.values())

    def run(self, values: Mapping[str, Array], bindings: Bindings) -> dict[str, DeviceArray] | None:
        """A step; None for what is none, or cannot have memory that stays."""
        if not self._graphs or not bindings or not is_step(values):
            return None
        plan = self._plan(values, bindings)
        if plan is None:
            return None
        plan.fill(values)
        plan.used += 1
        if plan.recording is None and plan.used > WARM:
            self._record(plan, values)
        elif plan.recording is not None and plan.proven < PROOFS:
            self._prove(plan, values)
        else:
            self._runner.execute(plan.io, plan.recording or self._runner.plain_options, values)
        return dict(plan.outputs)

    def _plan(self, values: Mapping[str, Array], bindings: Bindings) -> Plan | None:
        feeds = ((name, isinstance(each, DeviceArray), each.shape) for name, each in values.items())
        key = (tuple(feeds), self._place(bindings))
        if key not in self._plans:
            plan = Plan(self._runner, values, bindings)
            if not plan.complete:
                self.stop("the shapes of its outputs are not known before it runs")
                return None
            self._plans[key] = plan
            while len(self._plans) > _MOST:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _place(self, bindings: Bindings) -> Key:
        """Where the caches are; a mapping is looked through once."""
        if not self._seen.is_(bindings):
            rows = ((name, m.shape, getattr(m, "address", 0)) for name, m in bindings.items())
            self._seen, self._places = Remembered(bindings), tuple(rows)
        return self._places

    def _record(self, plan: Plan, values: Mapping[str, Array]) -> None:
        """Run a step with a number: onnxruntime runs it, records it, and replays it from then on."""
        if self._recorded >= _MOST_GRAPHS:
            self.stop(f"{_MOST_GRAPHS} steps of other shapes or places were recorded before")
        if not self._graphs:
            self._runner.execute(plan.io, self._runner.plain_options, values)
            return
        options = self._runner.run_options(str(self._recorded + 1))
        try:
            self._runner.execute(plan.io, options, values)
        except BackendError as error:
            self.stop(f"recording failed: {error.found}")
            self._runner.execute(plan.io, self._runner.plain_options, values)
            return
        self._recorded += 1
        plan.recording = options

    def _prove(self, plan: Plan, values: Mapping[str, Array]) -> None:
        """One step plainly and one replayed must be equal."""
        runner, device = self._runner, self._runner.device
        runner.execute(plan.io, runner.plain_options, values)
        wanted = device.download(*plan.outputs.values())
        for memory in plan.outputs.values():
            memory[...] = 0
        runner.execute(plan.io, plan.recording, values)
        found = device.download(*plan.outputs.values())
        plan.proven += 1
        if all(
            np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(wanted, found, strict=True)
        ):
            return
        self.stop(WRONG)
        runner.execute(plan.io, runner.plain_options, values)

    def stop(self, reason: str) -> None:
        """Go on plainly, and say so."""
        self._graphs = False
        self._plans.clear()
        self._runner.note(reason)


def capacities(stage: Stage, names: Iterable[str], bindings: Bindings) -> dict[str, Array]:
    """Slots of the caches of each group, int32 `[1]`, under the names `total_length_0`, ..."""
    sizes = {
        axis: size
        for spec in stage.inputs
        if spec.name in bindings
        for axis, size in zip(spec.shape, bindings[spec.name].shape, strict=True)
    }
    return {name: np.array([sizes[f"capacity_{name.removeprefix(ON_HOST)}"]], np.int32) for name in names}


def is_step(values: Mapping[str, Array]) -> bool:
    """Whether one row of each sequence is read."""
    positions = values.get("position_ids")
    return positions is not None and positions.shape[1] == 1


def shape_of(
    stage: Stage, wanted: Sequence[int | str], shapes: Mapping[str, Sequence[int]]
) -> tuple[int, ...] | None:
    """The shape that an output will have, where all its axes are also those of inputs; None where not."""
    axes: dict[str, int] = {}
    for spec in stage.inputs:
        for axis, size in zip(spec.shape, shapes.get(spec.name, ()), strict=False):
            if isinstance(axis, str):
                axes.setdefault(axis, size)
    if any(isinstance(axis, str) and axis not in axes for axis in wanted):
        return None
    return tuple(axis if isinstance(axis, int) else axes[axis] for axis in wanted)
