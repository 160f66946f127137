"""Which packages each extra of Foveate brings, what is installed, and the error for what is missing."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from foveate.runtime.errors import MissingDependencyError

BASE = "base"  # what `pip install foveate` brings
# Packages that bring the same modules, and must not be installed together.
STAND_INS = {"onnxruntime": ("onnxruntime-gpu",)}


@dataclass(frozen=True)
class Requirement:
    """One package that an extra asks for; `installed` is its version, or empty."""

    package: str
    wanted: str
    installed: str
    satisfied: bool


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Inside it, a package that is not installed is a `MissingDependencyError` naming the extra.

    Raises:
        MissingDependencyError: instead of the `ModuleNotFoundError` of a third-party package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not package or package == "foveate":
            raise  # a module of ours is a bug, not a missing extra
        raise MissingDependencyError.of(package, extra) from error


def requirements() -> dict[str, tuple[Requirement, ...]]:
    """Extra name -> its requirements, from the metadata of the installed package; `base` comes first.

    What another Python or system would need, by its marker, is left out.
    """
    from packaging.requirements import Requirement as Line  # brought by transformers

    found: dict[str, list[Requirement]] = {BASE: []}
    for line in map(Line, importlib.metadata.requires("foveate") or ()):
        named = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", str(line.marker or ""))
        extra = named.group(1) if named else ""
        asked = line.marker is None or line.marker.evaluate({"extra": extra})
        if asked and line.name != "foveate":  # an extra that includes another one
            found.setdefault(extra or BASE, []).append(_check(line.name, str(line.specifier)))
    return {extra: tuple(rows) for extra, rows in found.items()}


def _check(package: str, wanted: str) -> Requirement:
    from packaging.specifiers import SpecifierSet

    for name in (package, *STAND_INS.get(package, ())):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        fits = SpecifierSet(wanted).contains(installed, prereleases=True)
        return Requirement(package, wanted, installed, fits)
    return Requirement(package, wanted, "", False)
