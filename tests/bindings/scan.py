"""What our modules use of TensorRT, read off their syntax trees: no list by hand that could fall behind.

Of every module that speaks to TensorRT:
    chains     names that start at the package: trt.BuilderFlag.TF32, tensorrt.Runtime
    members    attributes of what TensorRT hands out, known by the names that its objects have everywhere
    keywords   (member, name of an argument)
    texts      members of enumerations that stand as text in a table of the module
    bases      classes of ours that derive from TensorRT's, with the arguments of their methods
    dropped    calls as statements, whose result nobody looks at

`python tests/bindings/scan.py` prints the numbers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("export", "pruning", "runtime", "tools")
PACKAGES = ("export/engines/", "runtime/tensorrt/", "runtime/backends/tensorrt.py")
# What TensorRT's objects are called in our code, with or without an underscore in front.
ROLES = {
    *("builder", "network", "config", "parser", "runtime", "engine", "context", "logger", "log", "inspector"),
    *("profile", "cache", "monitor", "layer", "tensor", "attention", "allocator", "library", "plan", "error"),
    *("trt", "tensorrt"),
}


@dataclass
class Uses:
    """What one module uses; every entry with the lines where it does."""

    path: str
    chains: dict[str, list[int]] = field(default_factory=dict)
    members: dict[str, list[int]] = field(default_factory=dict)
    keywords: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    texts: dict[str, list[int]] = field(default_factory=dict)
    bases: dict[str, list[tuple[str, list[str], int]]] = field(default_factory=dict)
    initialised: set[str] = field(default_factory=set)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    guarded: set[str] = field(default_factory=set)


def modules() -> list[Path]:
    """Files of the four packages that import TensorRT or polygraphy's side of it, and all beside them."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in files if _speaks(path))


def _speaks(path: Path) -> bool:
    name = path.relative_to(ROOT).as_posix()
    if name.startswith(PACKAGES):
        return True
    wanted = ("tensorrt", "polygraphy")
    for node in ast.walk(ast.parse(path.read_text())):
        imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(each.split(".")[0] in wanted for each in imported):
            return True
    return False


def scan(path: Path, root: Path = ROOT) -> Uses:
    """What a module uses."""
    tree = ast.parse(path.read_text())
    uses = Uses(path.relative_to(root).as_posix())
    packages = _aliases(tree)
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            _table(statement.value, uses)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = dotted(node)
            if chain and chain[0] in packages:
                name = ".".join(chain[1:])
                uses.chains.setdefault(name, []).append(node.lineno)
            elif _role(node.value) in ROLES:
                uses.members.setdefault(node.attr, []).append(node.lineno)
        elif isinstance(node, ast.Call):
            _call(node, uses)
        elif isinstance(node, ast.ClassDef):
            _derived(node, packages, uses)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute) and _role(called.value) in ROLES:
                uses.dropped.setdefault(called.attr, []).append(node.lineno)
    return uses


def _table(table: ast.Dict, uses: Uses) -> None:
    """Words in capitals among keys and values: TensorRT's enumerations by name."""
    for entry in (*table.keys, *table.values):
        if isinstance(entry, ast.Constant) and re.fullmatch("[A-Z][A-Z0-9_]{2,}", str(entry.value)):
            uses.texts.setdefault(str(entry.value), []).append(entry.lineno)


def _aliases(tree: ast.AST) -> set[str]:
    """Names under which the module has the package itself; a parameter or variable `trt` counts."""
    found = {"trt", "tensorrt"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name for alias in node.names if alias.name == "tensorrt"}
    return found


def dotted(node: ast.expr) -> list[str]:
    """["trt", "BuilderFlag", "TF32"] for trt.BuilderFlag.TF32; [] for what does not start at a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else []


def _role(node: ast.expr) -> str:
    """`engine` for engine, self._engine and self._engine(); "" for what has no name."""
    if isinstance(node, ast.Call):
        return ""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.lstrip("_")


def _call(node: ast.Call, uses: Uses) -> None:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name and _role(node.func.value) in ROLES:  # type: ignore[attr-defined]
        for each in node.keywords:
            if each.arg:
                uses.keywords.setdefault((name, each.arg), []).append(node.lineno)
    called = node.func.id if isinstance(node.func, ast.Name) else ""
    if called in ("hasattr", "getattr") and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
        uses.guarded.add(str(node.args[1].value))
    if name == "__init__":
        uses.initialised.add(ast.unparse(node.func))


def _derived(node: ast.ClassDef, packages: set[str], uses: Uses) -> None:
    for base in node.bases:
        chain = dotted(base)
        if len(chain) > 1 and (chain[0] in packages or chain[-2].lstrip("_") in ROLES):
            uses.bases.setdefault(chain[-1], []).extend(
                (each.name, [a.arg for a in each.args.args], each.lineno)
                for each in node.body
                if isinstance(each, ast.FunctionDef)
            )


def imported_from_polygraphy(path: Path) -> Iterator[tuple[str, str, str]]:
    """(module, name, name here) of everything that a module takes from polygraphy."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "polygraphy":
            for alias in node.names:
                yield str(node.module), alias.name, alias.asname or alias.name


def keywords_given(path: Path, name: str) -> Iterator[tuple[str, int]]:
    """Names of arguments in calls of a function or class by its plain name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield from ((each.arg, node.lineno) for each in node.keywords if each.arg)


if __name__ == "__main__":
    found = [scan(path) for path in modules()]
    chains = {name for uses in found for name in uses.chains}
    members = {name for uses in found for name in uses.members}
    keywords = {name for uses in found for name in uses.keywords}
    texts = {name for uses in found for name in uses.texts}
    print(
        f"{len(found)} modules: {len(chains)} names, {len(members)} members, {len(keywords)} keywords, ",
        end="",
    )
    print(f"{len(texts)} texts")
