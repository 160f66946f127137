"""What the weights file holds under a plan: parameters with dtypes, and what loads each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from foveate.export.precision.form import Form
from foveate.export.precision.layers import TABLE
from foveate.export.weights import Parameter

TABLE_HALF: Final = f"{TABLE}.half"

Loader = Callable[[], Tensor]


class _Encoded:
    """A weight's parts: encoded when the first is asked for, each forgotten when it is taken.

    Parts lie side by side in the file, so that at most one layer's are held.
    """

    def __init__(self, load: Loader, encode: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._load, self._encode = load, encode
        self._held: dict[str, Tensor] = {}

    def part(self, suffix: str) -> Loader:
        def take() -> Tensor:
            if suffix not in self._held:
                self._held = self._encode(self._load())
            return self._held.pop(suffix)

        return take


def store(
    parameters: Mapping[str, Parameter],
    loaders: Mapping[str, Loader],
    forms: Mapping[str, Form],
    *,
    half_table: str | None,
) -> tuple[dict[str, Parameter], dict[str, Loader]]:
    """Parameters and loaders of the file, given those of the fp32 graphs.

    `forms` are by name of the weight; `half_table` is the type of the words' table, None for float32.
    """
    stored: dict[str, Parameter] = {}
    found: dict[str, Loader] = {}
    for name, parameter in parameters.items():
        if name in forms:
            k, n = parameter.shape
            encoded = _Encoded(loaders[name], forms[name].encode)
            for suffix, part in forms[name].parts(k, n).items():
                stored[f"{name}.{suffix}"], found[f"{name}.{suffix}"] = part, encoded.part(suffix)
        elif name == TABLE and half_table is not None:
            stored[TABLE_HALF] = Parameter(parameter.shape, transposed=False, dtype=half_table)
            dtype = getattr(torch, half_table)
            found[TABLE_HALF] = lambda load=loaders[name], dtype=dtype: load().to(dtype)  # type: ignore[misc]
        else:
            stored[name], found[name] = parameter, loaders[name]
    return stored, found
