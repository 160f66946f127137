"""What is wrong with a module's use of TensorRT, for one version of the bindings; empty is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import scan
import surface

Found = Mapping[Any, Any]
"""What is wrong -> the lines where."""


class Real:
    """The bindings' names, with what is asked of them often."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.owners: dict[str, list[dict[str, Any]]] = {}
        for name, entry in found.items():
            for member, own in surface.members(found, name).items() if entry["kind"] == "class" else ():
                self.owners.setdefault(member, []).append(own)

    def has(self, chain: str) -> bool:
        """Whether `ILogger.Severity.ERROR` leads somewhere."""
        first, *rest = chain.split(".")
        entry = self.found.get(first)
        for index, part in enumerate(rest):
            if entry is None:
                return False
            if entry["kind"] == "enum":
                return part in entry["members"] or part in ("name", "value", "__members__")
            if entry["kind"] != "class":
                return True  # an attribute of a plain value is the value's
            entry = (surface.members(self.found, first) if index == 0 else entry["members"]).get(part)
        return entry is not None


def names(uses: scan.Uses, real: Real) -> Found:
    """Names that start at the package and are not in it. What only one line has is asked for by hasattr."""
    return {
        chain: where
        for chain, where in uses.chains.items()
        if chain != "__version__" and not real.has(chain) and not uses.guarded.intersection(chain.split("."))
    }


def members(uses: scan.Uses, real: Real, known: set[str]) -> Found:
    """Members that TensorRT's objects have in some version (`known`) and not in this one."""
    return {
        member: where
        for member, where in uses.members.items()
        if member in known
        and member not in real.owners
        and member not in real.found
        and member not in uses.guarded
    }


def texts(uses: scan.Uses, real: Real) -> Found:
    """Words in capitals that no enumeration has, but those of plugins, which have other names for types."""
    found = {name: entry for name, entry in real.found.items() if entry["kind"] == "enum"}
    known = {text for name, entry in found.items() if "Plugin" not in name for text in entry["members"]}
    return {text: where for text, where in uses.texts.items() if text not in known}


def keywords(uses: scan.Uses, real: Real) -> Found:
    """(member, argument) that no class with this member takes."""
    wrong = {}
    for (member, name), where in uses.keywords.items():
        allowed = [surface.keywords(entry) for entry in real.owners.get(member, [])]
        if allowed and not any(name in each for each in allowed):
            wrong[member, name] = where
    return wrong


def overrides(uses: scan.Uses, real: Real) -> Found:
    """Classes of ours: a base that is not there, a method with other arguments, no call of its __init__."""
    wrong: dict[str, list[int]] = {}
    initialised = {each.rpartition(".")[0].rpartition(".")[2] for each in uses.initialised}
    for base, methods in uses.bases.items():
        if base not in real.found:
            wrong[base] = []
            continue
        known = surface.members(real.found, base)
        for name, arguments, line in methods:
            signatures = known.get(name, {}).get("signatures", [])
            counts = {len(signature["parameters"]) for signature in signatures}
            if name == "__init__" and base not in initialised:
                wrong[f"{base}.__init__ is not called"] = [line]
            elif name != "__init__" and counts and len(arguments) not in counts:
                wrong[f"{base}.{name}{arguments}"] = [line]
    return wrong


def dropped(uses: scan.Uses, real: Real) -> Found:
    """Calls whose bool nobody looks at: most of TensorRT fails by returning False."""
    hidden = {}
    for member, where in uses.dropped.items():
        entries = real.owners.get(member, [])
        if {signature["returns"] for entry in entries for signature in entry.get("signatures", [])} == {
            "bool"
        }:
            hidden[member] = where
    return hidden
