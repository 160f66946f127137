"""The double of TensorRT offers nothing that the real bindings lack: what it lets pass has a name there."""

from __future__ import annotations

import ast
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import surface
import versions
from doubles.tensorrt import enums, install

DOUBLE = Path(install.__file__).parent
ALL = [each.version for each in versions.ALL]
# Only the double's: what tests ask it, under names that no caller of TensorRT uses.
OWN = {"__init__", "__iter__"}


@cache
def _double(version: str) -> dict[str, Any]:
    ten = version.startswith("10.")
    found = surface.describe(install.module(version))
    install.module()
    for owner, members in _set_in_methods().items():
        if owner in found:
            for name in members:
                found[owner]["members"].setdefault(name, {"kind": "property", "writable": True})
    for name in install.ONLY_11 if ten else ():
        owner, _, member = name.partition(".")
        if member:
            found[owner]["members"].pop(member, None)
    return found


def _set_in_methods() -> dict[str, set[str]]:
    """Public attributes that the double's classes set on themselves, by class."""
    found: dict[str, set[str]] = {}
    for path in DOUBLE.glob("*.py"):
        for kind in ast.walk(ast.parse(path.read_text())):
            if isinstance(kind, ast.ClassDef):
                found[kind.name] = {
                    node.attr
                    for node in ast.walk(kind)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                    and not node.attr.startswith("_")
                }
    return found


def test_the_versions_are_those_of_the_bindings() -> None:
    assert list(install.VERSIONS) == ALL


@pytest.mark.parametrize("version", ALL)
def test_every_name_is_real(version: str, surfaces: dict[str, Any]) -> None:
    real, double = surfaces[version], _double(version)
    assert double.keys() <= real.keys(), sorted(double.keys() - real.keys())
    for name, entry in double.items():
        assert entry["kind"] == real[name]["kind"], name


@pytest.mark.parametrize("version", ALL)
def test_every_member_is_real(version: str, surfaces: dict[str, Any]) -> None:
    real, double = surfaces[version], _double(version)
    wrong = [
        f"{name}.{member}"
        for name, entry in double.items()
        if entry["kind"] == "class"
        for member in surface.members(double, name)
        if member not in surface.members(real, name) and member not in OWN
    ]
    assert not wrong


@pytest.mark.parametrize("version", ALL)
def test_every_keyword_is_real(version: str, surfaces: dict[str, Any]) -> None:
    """Methods: names and order of arguments; an argument that the double wants, the bindings want too."""
    real, double = surfaces[version], _double(version)
    wrong = []
    for name, entry in double.items():
        for member, own in surface.members(double, name).items() if entry["kind"] == "class" else ():
            theirs = surface.members(real, name).get(member, {})
            signatures = [_names(each) for each in theirs.get("signatures", [])]
            if own["kind"] == "callable" and member not in OWN and signatures:
                mine = _names(own["signatures"][0])
                # Positional-only arguments have made-up names (arg0): only their number counts.
                fits = any(
                    mine == each or (_nameless(each) and len(mine) == len(each)) for each in signatures
                )
                if not fits and not _joined(mine, signatures):
                    wrong.append(f"{name}.{member}{mine} is not one of {signatures}")
    assert not wrong


def _names(signature: dict[str, Any]) -> list[str]:
    return [each["name"] for each in signature["parameters"]]


def _nameless(names: list[str]) -> bool:
    return all(name == "self" or name.startswith("arg") for name in names)


def _joined(mine: list[str], signatures: list[list[str]]) -> bool:
    """Whether one Python function stands for several overloads: their arguments one after the other."""
    return len(signatures) > 1 and mine == list(dict.fromkeys(chain(*signatures)))


@pytest.mark.parametrize("version", ALL)
def test_every_enumeration_has_the_real_numbers(version: str, surfaces: dict[str, Any]) -> None:
    real, double = surfaces[version], _double(version)
    kinds = {name: entry for name, entry in double.items() if entry["kind"] == "enum"}
    assert len(kinds) > 20
    aliases = {"BuilderFlag": {"WEIGHTLESS"}}  # in 10 another name for STRIP_PLAN
    for name, entry in kinds.items():
        numbers = {k: v for k, v in real[name]["members"].items() if k not in aliases.get(name, ())}
        assert entry["members"] == numbers, name
    assert enums.Severity is install.module().Logger.Severity


def test_properties_that_cannot_be_written_there_cannot_be_written_here(surfaces: dict[str, Any]) -> None:
    real, double = surfaces[ALL[0]], _double(ALL[0])
    set_at_start = _set_in_methods()
    wrong = [
        f"{name}.{member}"
        for name, entry in double.items()
        if entry["kind"] == "class"
        for member, own in surface.members(double, name).items()
        if own["kind"] == "property" and own["writable"] and member not in set_at_start.get(name, ())
        if not surface.members(real, name).get(member, {}).get("writable", False)
    ]
    assert not wrong
