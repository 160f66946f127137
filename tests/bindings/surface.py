"""Names, members and signatures of a module, as plain data; the same for pybind11's classes and for Python's.

describe(module) -> {name: entry}
entry: {"kind": "enum", "members": {name: number}}
     | {"kind": "class", "bases": [...], "members": {name: entry}}          (own members, without the bases')
     | {"kind": "callable", "signatures": [{"parameters": [...], "returns": text}]}
     | {"kind": "property", "writable": bool, "type": text}
     | {"kind": "value", "type": text}
parameter: {"name", "type", "default": text or None, "kind": "" | "*" | "**"}
"""

from __future__ import annotations

import inspect
import re
from types import FunctionType, ModuleType
from typing import Any

_SIGNATURE = re.compile(r"^(?:\d+\. )?(?P<name>\w+)\((?P<parameters>.*)\) -> (?P<returns>.+)$")
_VIRTUAL = re.compile(
    r"^ +def (?P<name>\w+)\((?P<parameters>.*?)\)(?: -> (?P<returns>[^:]+))?:", re.MULTILINE
)
SPECIAL = {"__init__", "__call__", "__len__", "__getitem__", "__setitem__", "__bool__", "__iter__"}
IGNORED = {"__module__", "__doc__", "__dict__", "__weakref__", "__hash__"}


def describe(module: ModuleType) -> dict[str, Any]:
    """Public names of a module, without the modules that it imports."""
    found = {}
    for name in sorted(getattr(module, "__all__", None) or dir(module)):
        value = getattr(module, name)
        if not name.startswith("_") and not isinstance(value, ModuleType):
            found[name] = _entry(value)
    return found


def _entry(value: Any) -> dict[str, Any]:
    if isinstance(value, type):
        members = getattr(value, "__members__", None)
        if members is not None:
            return {"kind": "enum", "members": {name: int(member) for name, member in members.items()}}
        return _class(value)
    if callable(value):
        return {"kind": "callable", "signatures": _signatures(value)}
    return {"kind": "value", "type": type(value).__name__}


def _class(kind: type) -> dict[str, Any]:
    members = {}
    for name, value in sorted(vars(kind).items()):
        if (name.startswith("_") and name not in SPECIAL) or name in IGNORED:
            continue
        if isinstance(value, property):
            members[name] = _property(value)
        else:
            members[name] = _entry(value)
    # Methods that applications write are found by name: pybind11 lists them in the class's text only.
    for match in _VIRTUAL.finditer(kind.__doc__ or ""):
        returns = (match["returns"] or "Any").strip()
        signature = {"parameters": _parameters(match["parameters"]), "returns": returns}
        members.setdefault(match["name"], {"kind": "callable", "signatures": [signature]})
    bases = [base.__name__ for base in kind.__mro__[1:] if base.__module__ == kind.__module__]
    return {"kind": "class", "bases": bases, "members": members}


def _property(value: property) -> dict[str, Any]:
    text = (value.fget and value.fget.__doc__) or ""
    match = re.search(r"\) -> (.+)", text)
    return {
        "kind": "property",
        "writable": value.fset is not None,
        "type": match[1].strip() if match else "Any",
    }


def _signatures(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, FunctionType):
        return [_python_signature(value)]
    found = []
    for line in (getattr(value, "__doc__", None) or "").splitlines():
        match = _SIGNATURE.match(line.strip())
        if match and match["parameters"] != "*args, **kwargs":
            found.append(
                {"parameters": _parameters(match["parameters"]), "returns": match["returns"].strip()}
            )
    return found


def _python_signature(value: FunctionType) -> dict[str, Any]:
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = [
        {
            "name": parameter.name,
            "type": "Any",
            "default": None if parameter.default is inspect.Parameter.empty else repr(parameter.default),
            "kind": marks.get(parameter.kind, ""),
        }
        for parameter in inspect.signature(value).parameters.values()
    ]
    return {"parameters": parameters, "returns": "Any"}


def _parameters(text: str) -> list[dict[str, Any]]:
    """`self: X, name: tuple[int, int] = (1, 2)` taken apart at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += letter in "([{<"
        depth -= letter in ")]}>"
        if letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [_parameter(part.strip()) for part in parts if part.strip()]


def _parameter(text: str) -> dict[str, Any]:
    left, _, default = text.partition(" = ")
    name, _, kind = left.partition(":")
    return {
        "name": name.lstrip("*").strip(),
        "type": kind.strip() or "Any",
        "default": default.strip() or None,
        "kind": "**" if name.startswith("**") else "*" if name.startswith("*") else "",
    }


def members(surface: dict[str, Any], name: str) -> dict[str, Any]:
    """All members of a class, those of its bases included."""
    entry = surface[name]
    found: dict[str, Any] = {}
    for base in reversed(entry.get("bases", [])):
        found |= surface.get(base, {}).get("members", {})
    return found | entry["members"]


def keywords(entry: dict[str, Any]) -> set[str]:
    """Names by which arguments may be given, over all signatures."""
    return {
        parameter["name"]
        for signature in entry.get("signatures", [])
        for parameter in signature["parameters"]
        if parameter["name"] != "self" and not parameter["kind"]
    }
