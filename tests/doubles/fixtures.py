"""Fixtures that put the doubles in place; a conftest that wants them imports them from here."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator

import pytest

from doubles import cudart as double


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Iterator[double.Cudart]:
    """A machine with one GPU of 1 GiB; the test fails if anything of it is not given back."""
    made = double.install(monkeypatch)
    yield made
    gc.collect()
    made.close()


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, cudart: double.Cudart) -> types.ModuleType:
    """The double of TensorRT 11.4 as `tensorrt`, over the memory of `cudart`. It has not run on a GPU."""
    from doubles.tensorrt.install import install

    return install(monkeypatch)
