"""The linear layers of an export: what a precision is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from foveate.export.weights import Parameter

# Every parameter of the weights file takes whole pages of 4096 bytes: nothing is gained below that.
_SMALLEST: Final = 64 * 64
_METHODS: Final = "cuts."
_HEAD: Final = "lm_head"
TABLE: Final = "language_model.embed_tokens.weight"


@dataclass(frozen=True)
class LinearLayer:
    """One product `x W`.

    Attributes:
        name: of its weight in the graphs, without `.weight`.
        stage: vision, projector, decoder or head.
        inputs: rows of `W`.
        outputs: columns of `W`.
        graphs: which graphs it runs in.
    """

    name: str
    stage: str
    inputs: int
    outputs: int
    graphs: tuple[str, ...]

    @property
    def weight(self) -> str:
        """The parameter's name."""
        return f"{self.name}.weight"


def find_layers(graphs: Mapping[str, Mapping[str, Parameter]]) -> tuple[LinearLayer, ...]:
    """Returns the linear layers of graphs, given each graph's parameters.

    Left out, and so always fp32: the methods' own weights, which choose tokens, and layers too small to gain.
    """
    found: dict[str, LinearLayer] = {}
    for graph, parameters in graphs.items():
        for name, parameter in parameters.items():
            if not parameter.linear or name.startswith(_METHODS):
                continue
            inputs, outputs = parameter.shape
            if inputs * outputs < _SMALLEST:
                continue
            layer = name.removesuffix(".weight")
            seen = found[layer].graphs if layer in found else ()
            stage = found[layer].stage if layer in found else _stage(graph, layer)
            found[layer] = LinearLayer(layer, stage, inputs, outputs, (*seen, graph))
    return tuple(found.values())


def _stage(graph: str, layer: str) -> str:
    return "head" if layer == _HEAD else stage_of(graph)


def stage_of(graph: str) -> str:
    """Whose word a graph follows. Graphs are called vision*, embed and decoder*."""
    return "projector" if graph == "embed" else graph.partition("_")[0]
