"""Tests that many rules are made of. Each gives a function from a place to what was found, or None."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import onnx_ir as ir

from foveate.export.check.place import Place
from foveate.export.check.rule import name_of

Test = Callable[[Place], str | None]


def attribute_in(name: str, default: Any, allowed: Collection[Any]) -> Test:
    """An attribute has one of these values."""

    def test(place: Place) -> str | None:
        value = place.attribute(name, default)
        return None if value in allowed else f"{name} is {value!r}"

    return test


def attribute_absent(name: str) -> Test:
    """An attribute is not given at all."""
    return lambda place: f"{name} is given" if name in place.node.attributes else None


def input_absent(*indices: int) -> Test:
    """No such inputs."""

    def test(place: Place) -> str | None:
        given = [index for index in indices if place.input(index) is not None]
        return f"input {given[0]} is given" if given else None

    return test


def dtype_in(index: int, allowed: Collection[ir.DataType]) -> Test:
    """An input, where it is given, has one of these types."""

    def test(place: Place) -> str | None:
        dtype = place.dtype(index)
        return None if dtype is None or dtype in allowed else f"input {index} is {name_of(dtype)}"

    return test


def rank_in(index: int, allowed: Collection[int]) -> Test:
    """An input, where it is given, has one of these ranks."""

    def test(place: Place) -> str | None:
        rank = place.rank(index)
        return None if rank is None or rank in allowed else f"input {index} has {rank} axes"

    return test


def static(index: int, *axes: int) -> Test:
    """These axes of an input (none: all) are numbers in the file."""

    def test(place: Place) -> str | None:
        dims = place.dims(index)
        if dims is None:
            return None
        chosen = axes or tuple(range(len(dims)))
        open_axes = [a for a in chosen if -len(dims) <= a < len(dims) and not isinstance(dims[a], int)]
        return f"axis {open_axes[0]} of input {index} is dynamic" if open_axes else None

    return test


def first(*tests: Test) -> Test:
    """What the first of some tests finds."""
    return lambda place: next((found for test in tests if (found := test(place))), None)
