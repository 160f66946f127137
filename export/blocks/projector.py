"""LLaVA's projector, and which hidden states it reads."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.linear import Linear
from foveate.export.config import Reader


class Projector(nn.Module):
    """Two linear layers with an activation between: `[k, width] -> [k, d]`."""

    def __init__(self, width: int, d: int, activation: str, *, bias: bool) -> None:
        super().__init__()
        self.linear_1 = Linear(width, d, bias=bias)
        self.linear_2 = Linear(d, d, bias=bias)
        self.activation = find_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_2(self.activation(self.linear_1(x)))
        return y


def read_feature_layers(
    reader: Reader, num_layers: int, default: int | list[int], key: str = "vision_feature_layer"
) -> tuple[int, ...]:
    """Layers under `key`, one or several, counted like transformers' `hidden_states` and made positive.

    Raises:
        CheckpointError: no such layer.
    """
    given = reader.section.get(key, default)
    layers = given if isinstance(given, list) and given else [given]
    first, last = -num_layers - 1, num_layers
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not first <= layer <= last:
            raise reader.refused(key, given, f"layer numbers from {first} to {last}")
    return tuple(layer % (num_layers + 1) for layer in layers)


def read_canvases(reader: Reader, default: list[list[int]], tile: int) -> tuple[tuple[int, int], ...]:
    """`image_grid_pinpoints`: heights and widths of what the crops of a picture make up together.

    Raises:
        CheckpointError: not a list of pairs, or not made of whole tiles.
    """
    given = reader.section.get("image_grid_pinpoints") or default
    wanted = f"a list of [height, width], multiples of the vision tower's image_size ({tile})"
    if not isinstance(given, list):
        raise reader.refused("image_grid_pinpoints", given, wanted)
    for pair in given:
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not whole or not all(type(length) is int and length > 0 and length % tile == 0 for length in pair):
            raise reader.refused("image_grid_pinpoints", pair, wanted)
    return tuple((pair[0], pair[1]) for pair in given)
