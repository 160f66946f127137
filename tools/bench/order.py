"""What is to be measured, as one value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.runtime.backends import choose
from foveate.runtime.bundle import Bundle
from foveate.runtime.images import ImageSource
from foveate.tools.bench.budgets import Wish

Report = Callable[[str, float, float], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is to be measured.

    Attributes:
        bundles: by the name that they have in this run; the first is what others are compared with.
        wishes: budgets of the cases.
        image: a path, or a picture; `image_name` is what it is called.
        new_tokens, warm_up, rounds, threads, cores, requests: see `schema.Settings`.
        layout, backend: None is each bundle's own, see `chosen`.
        concurrency: levels of requests in flight; none measures single requests only.
        roofline: whether parts are traced, and ceilings measured.
        rivals: other engines by name, with the folder of the model that each reads; None: the checkpoint.
        pythons: interpreters of rivals' environments, by name.
        options: what only one rival knows, by its label; see the rival's file.
        checkpoint: what bundles and rivals were made of; only for rivals.
    """

    bundles: Mapping[str, Path]
    wishes: tuple[Wish, ...]
    image: ImageSource
    image_name: str
    prompt: str
    new_tokens: int
    warm_up: int
    rounds: int
    threads: int
    cores: tuple[int, ...]
    layout: str | None
    concurrency: tuple[int, ...] = ()
    requests: int = 2
    backend: str | None = None
    roofline: bool = False
    rivals: Mapping[str, Path | None] = field(default_factory=dict)
    pythons: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    checkpoint: Path | None = None

    def on_device(self, bundles: Iterable[Bundle]) -> bool:
        """Whether all of them run on a GPU."""
        return all(self.chosen(bundle)[0] != "onnxruntime" for bundle in bundles)

    def chosen(self, bundle: Bundle) -> tuple[str, str]:
        """The backend and the layout of a bundle. Raises `UsageError` for an unknown backend."""
        return choose(bundle, self.backend, self.layout)
