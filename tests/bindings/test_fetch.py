"""The real bindings are there, under their own versions; where they cannot be had an error says so."""

from __future__ import annotations

import ctypes
from pathlib import Path

import fetch
import pytest
import versions
from dummy_library import write_library


def test_the_empty_library_has_what_was_asked_for(tmp_path: Path) -> None:
    names = [f"function_{i}" for i in range(20)]
    write_library(tmp_path / "libempty.so.3", names)
    library = ctypes.CDLL(str(tmp_path / "libempty.so.3"))
    assert [getattr(library, name)() for name in names] == [0] * 20
    assert not hasattr(library, "another")


def test_a_library_can_be_quite_empty(tmp_path: Path) -> None:
    write_library(tmp_path / "libnothing.so", [])
    assert not hasattr(ctypes.CDLL(str(tmp_path / "libnothing.so")), "anything")


@pytest.mark.parametrize("each", versions.ALL, ids=lambda each: each.version)
def test_the_bindings_say_their_version(each: versions.Bindings, bindings_cache: Path) -> None:
    code = "import tensorrt_bindings as trt; print(trt.__version__, trt.DataType.HALF.itemsize)"
    assert fetch.run(each, bindings_cache, code).split() == [each.version, "2"]


def test_nothing_to_be_had_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(fetch.UnavailableError, match=r"tensorrt-cu13-bindings==\S+ for .* pip says"):
        fetch.fetch(versions.NEWEST, tmp_path)


def test_what_cannot_be_imported_is_an_error_too(bindings_cache: Path) -> None:
    with pytest.raises(fetch.UnavailableError, match="no_such_name"):
        fetch.run(versions.NEWEST, bindings_cache, "from tensorrt_bindings import no_such_name")
