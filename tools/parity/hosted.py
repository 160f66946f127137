"""A bundle's graphs on another backend than the ladder's own, with the face of `Graph`.

Caches are that backend's memory; everything else is fed and read as numpy. There is no look inside: where a
layer lies wrong, the ladder on the CPU says it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foveate.runtime.arrays import Bindings
from foveate.runtime.backend import NO_BINDINGS, Backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.cache import KVCache
from foveate.runtime.manifest import TensorSpec


class HostedGraph:
    """One stage; see `foveate.tools.parity.graphs.Graph`."""

    def __init__(self, bundle: Bundle, name: str, backend: Backend) -> None:
        """Raises as `Backend.open`."""
        self.layers: Mapping[int, str] = {}
        self.projections: Mapping[tuple[int, str], str] = {}
        stage = bundle.manifest.stages[name]
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in stage.inputs}
        self.outputs = [spec.name for spec in stage.outputs]
        self._record = bundle.manifest.cache
        self._backend = backend
        self._runner = backend.open(bundle.stage_path(name), name, stage)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs but the caches, over empty caches with room for the prompt."""
        given = {name: value for name, value in feeds.items() if name in self.inputs}
        bindings: Bindings = NO_BINDINGS
        if any(name.startswith("past_key_") for name in self.inputs):
            bindings = self._memory(given)
        out = self._runner.run(given, bindings)
        return {name: np.asarray(value) for name, value in out.items()}

    def _memory(self, given: dict[str, np.ndarray]) -> Bindings:
        """Caches as large as the backend has them; `past_position` is as wide."""
        cache = KVCache(self._record, 1, self._backend.allocate, self._backend.capacity)
        # A graph behind a cut still gets the rows before it.
        rows = given["position_ids"].shape[1]
        for group in range(cache.groups):
            cache.reserve(group, rows, rows)
            if f"past_position_{group}" in given:
                given[f"past_position_{group}"] = np.zeros((1, cache.capacity(group)), np.int64)
        mine = {name: memory for name, memory in cache.all_bindings().items() if self._has(name)}
        for name in mine:
            given.pop(name, None)
        return mine

    def _has(self, name: str) -> bool:
        return name in self.inputs or name in self.outputs
