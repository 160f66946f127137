"""What a backend has to offer: each file under `backends/` has a `Backend` and a `Runner`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from foveate.runtime.arrays import Array, Arrays
from foveate.runtime.manifest import Stage

NO_BINDINGS: Arrays = {}


class Runner(Protocol):
    """One loaded graph."""

    stage: Stage

    def run(self, feeds: Arrays, bindings: Arrays = NO_BINDINGS) -> dict[str, Array]:
        """Run the graph.

        `feeds` are inputs by name; the ones that the stage does not take are ignored. `bindings` are inputs
        and outputs that live in the given memory, made by `Backend.allocate`; an output and an input may
        share it. Bindings are remembered by the identity of the mapping. Gives the unbound outputs.

        Raises:
            BackendError: an input is missing or misshapen, or the graph failed.
        """
        ...


class Backend(Protocol):
    """Loads graphs and owns the memory that they keep between runs."""

    name: str

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        """Load the graph of a stage.

        Raises:
            BackendError: the file cannot be loaded.
            MissingDependencyError: the backend's package is not installed.
        """
        ...

    def allocate(self, shape: Sequence[int], dtype: str) -> Array:
        """Zeroed memory that `Runner.run` can bind."""
        ...
