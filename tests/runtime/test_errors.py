"""Errors read as one paragraph and keep their parts."""

from __future__ import annotations

import pickle

import pytest

from foveate.runtime import errors
from foveate.runtime.errors import (
    BackendError,
    FoveateError,
    MissingDependencyError,
    RequestError,
    UsageError,
)


def test_paragraph() -> None:
    error = UsageError(
        "keep_ratio is out of range", found="1.5", wanted="0 < keep_ratio <= 1", mend="try 0.5"
    )
    assert str(error) == (
        "keep_ratio is out of range. Found: 1.5. Wanted: 0 < keep_ratio <= 1. To mend it: try 0.5."
    )
    assert str(FoveateError("Really?")) == "Really?"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.mend) == (str(error), "try 0.5")


def test_exit_codes_tell_the_kinds_apart() -> None:
    every = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FoveateError)
    ]
    # How a request ended is one kind, whatever ended it; so is what a backend could not do.
    broad = (RequestError, BackendError)
    kinds = [kind for kind in every if not issubclass(kind, broad) or kind in broad]
    codes = [kind.exit_code for kind in kinds]
    assert len(kinds) == 12
    assert {kind.exit_code for kind in every} == set(codes)
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize(("extra", "command"), [("", '"foveate"'), ("export", '"foveate[export]"')])
def test_missing_dependency_names_the_extra(extra: str, command: str) -> None:
    assert f"pip install {command}" in str(MissingDependencyError.of("torch", extra))
