"""What a backend has to offer: each file under `backends/` has a `Backend` and a `Runner`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from foveate.runtime.arrays import Array, Arrays, Bindings, Memory
from foveate.runtime.manifest import Stage

NO_BINDINGS: Bindings = {}
# Outputs that only graphs read: a backend with memory of its own may leave them there.
BETWEEN_GRAPHS: Final = frozenset({"features", "hidden", "hidden_out", "deepstack"})


@dataclass(frozen=True)
class BackendOptions:
    """How a backend is opened.

    Attributes:
        threads: of one operator on the CPU; None takes all cores.
        device: number of the GPU.
        graphs: whether decoding steps are recorded and replayed as CUDA graphs wherever that is legal;
            `Backend.notes` says where it is not.
    """

    threads: int | None = None
    device: int = 0
    graphs: bool = True


class Runner(Protocol):
    """One loaded graph."""

    stage: Stage

    def run(self, feeds: Arrays, bindings: Bindings = NO_BINDINGS) -> dict[str, Array]:
        """Run the graph.

        `feeds` are inputs by name; the ones that the stage does not take are ignored. `bindings` are inputs
        and outputs that live in the given memory, made by `Backend.allocate`; an output and an input may
        share it. Bindings are remembered by the identity of the mapping. Gives the unbound outputs; those in
        `BETWEEN_GRAPHS` may be a GPU's memory, which can be fed again, cut and turned into numpy's.

        Raises:
            BackendError: an input is missing or misshapen, or the graph failed.
        """
        ...


class Backend(Protocol):
    """Loads graphs and owns the memory that they keep between runs.

    Attributes:
        name: of the backend, as in `foveate.runtime.backends`.
        notes: sentences on what it does otherwise than one might expect, such as why it uses no CUDA graphs.
    """

    name: str

    @property
    def notes(self) -> tuple[str, ...]:
        """See above; they may come as graphs are run."""
        ...

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        """Load the graph of a stage.

        Raises:
            BackendError: the file cannot be loaded.
            MissingDependencyError: the backend's package is not installed.
        """
        ...

    def allocate(self, shape: Sequence[int], dtype: str) -> Memory:
        """Zeroed memory that `Runner.run` can bind.

        Raises:
            DeviceMemoryError: there is no room for it.
        """
        ...

    def close(self) -> None:
        """Give everything back, in the order that its libraries want; its runners cannot be used any more.

        May be called twice. Who does not call it leaves that to the end of the last reference.
        """
        ...

    def capacity(self, store: int, needed: int) -> int:
        """Slots to allocate for caches that need so many.

        `store` is the number of a group of layers; behind the groups come their heads of text, in the order
        of `foveate.runtime.cache.memory_heads`.

        Raises:
            BackendError: the backend cannot have that many.
        """
        ...

    def require_rows(self, batch: int) -> None:
        """Refuse more sequences at once than can be run; most backends run any number.

        Raises:
            BackendError: with what to do instead.
        """
        ...

    def require_prompt(self, batch: int, lengths: Sequence[int]) -> None:
        """Refuse what certainly cannot be run, before anything is; what passes may still prove too large.

        `batch` prompts are read together; `lengths[i]` rows of the longest, at least, reach group `i` of the
        decoder's layers.

        Raises:
            BackendError: with what to do instead.
        """
        ...
