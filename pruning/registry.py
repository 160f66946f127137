"""Methods by name. A method is a file in ``methods/`` (or an entry point), so the folder is the registry.

Listing reads source text with ``ast`` and never imports a method: ``foveate methods`` answers at once and
without torch. ``find_method`` imports.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from foveate.pruning import spec
from foveate.pruning.spec import MethodConfig, Option, Schedule, Site, check_options
from foveate.runtime.errors import UsageError

if TYPE_CHECKING:
    from foveate.pruning.method import PruningMethod

ENTRY_POINT_GROUP = "foveate.methods"


@dataclass(frozen=True)
class MethodInfo:
    """What is known about a method without importing it.

    Attributes:
        name: the word a user types, for example ``cls-knee``.
        summary: first line of its docstring.
        paper: where it comes from.
        sites: where it can be used.
        options: what ``Config`` accepts.
        module: dotted name of the module that holds ``Config`` and ``Method``.
        kind: ``training-free``, ``searched``, ``trained`` or ``baseline``.
        title: the name that its paper uses.
        schedule: where a method with several cuts makes them when no layer is named: a whole number of layers
            or a share of the decoder's depth, each with the options that are its own there.
    """

    name: str
    summary: str
    paper: str
    sites: tuple[Site, ...]
    options: tuple[Option, ...]
    module: str
    kind: str = "training-free"
    title: str = ""
    schedule: Schedule = ()

    def check(self, site: Site, params: Mapping[str, object]) -> dict[str, object]:
        """``params`` converted and completed; ``UsageError`` for a wrong site, option or value."""
        if site not in self.sites:
            raise UsageError(
                f"Method '{self.name}' does not work at the {site} site.",
                found=str(site),
                wanted=", ".join(map(str, self.sites)),
                mend="Write method@LAYER for a cut in the decoder, and no @ for the encoder.",
            )
        return check_options(self.name, self.options, params)


def list_methods() -> tuple[MethodInfo, ...]:
    """Every method, sorted by name. Imports neither torch nor any method."""
    return tuple(describe_method(name) for name in method_names())


def method_names() -> tuple[str, ...]:
    """Names of the built-in methods and of those that entry points add."""
    return tuple(sorted({*_built_in(), *_entry_points()}))


@cache
def describe_method(name: str) -> MethodInfo:
    """What the source of method ``name`` says about it.

    Raises:
        UsageError: no such method; the message lists what exists.
    """
    module = _module_name(name)
    source = _source(name, module)
    tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    values = _constants(tree)
    return MethodInfo(
        name=name,
        summary=(ast.get_docstring(tree) or "").split("\n", 1)[0],
        paper=str(values.get("PAPER", "")),
        sites=tuple(Site(site) for site in values.get("SITES", ())),  # type: ignore[attr-defined]
        options=_options(tree),
        module=module,
        kind=str(values.get("KIND", "training-free")),
        title=str(values.get("TITLE", name)),
        schedule=tuple(values.get("SCHEDULE", ())),  # type: ignore[arg-type]
    )


def find_method(name: str) -> ModuleType:
    """The module of method ``name``, with ``Config`` and ``Method``. Imports torch.

    Raises:
        UsageError: no such method; the message lists what exists.
    """
    return importlib.import_module(_module_name(name))


def make_method(name: str, params: Mapping[str, object], site: Site) -> PruningMethod:
    """Method ``name``, configured and ready to trace.

    Raises:
        UsageError: unknown method or option, bad value, or a site where the method does not work.
    """
    module = find_method(name)
    method: PruningMethod = module.Method(module.Config.from_dict(params, method=name), site)
    return method


def _built_in() -> dict[str, str]:
    folder = Path(__file__).parent / "methods"
    files = (path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return {stem.replace("_", "-"): f"foveate.pruning.methods.{stem}" for stem in files}


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _module_name(name: str) -> str:
    # A built-in name wins over an entry point: a plug-in cannot change what a bundle's manifest means.
    if name in _built_in():
        return _built_in()[name]
    if name in _entry_points():
        return _entry_points()[name].module
    near = difflib.get_close_matches(name, method_names(), n=3, cutoff=0.5)
    raise UsageError(
        f"There is no pruning method '{name}'.",
        found=name,
        wanted=", ".join(method_names()),
        mend=(f"Did you mean {' or '.join(near)}? " if near else "")
        + "Run `foveate methods` for what each of them does.",
    )


def _source(name: str, module: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UsageError(
            f"The method '{name}' is registered but its module is missing.",
            found="nothing",
            wanted=f"a module {module}",
            mend="Install the package that provides it again, or remove it.",
        )
    return Path(found.origin)


def _constants(tree: ast.Module) -> dict[str, object]:
    """Literal assignments at the top level of a module."""
    found = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name) and value:
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def _options(tree: ast.Module) -> tuple[Option, ...]:
    """The options of ``Config``: inherited from classes in spec.py, then its own."""
    classes = (each for each in tree.body if isinstance(each, ast.ClassDef))
    node = next((each for each in classes if each.name == "Config"), None)
    if node is None:
        return ()
    inherited: list[Option] = []
    for base in node.bases:
        parent = getattr(spec, base.id, None) if isinstance(base, ast.Name) else None
        if isinstance(parent, type) and issubclass(parent, MethodConfig):
            inherited.extend(parent.options())
    own = (each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.value, ast.Call))
    return (*inherited, *map(_option, own))


def _option(field: ast.AnnAssign) -> Option:
    """An ``option(default, help, ...)`` field, read without running it."""
    call = field.value
    assert isinstance(call, ast.Call)
    assert isinstance(field.target, ast.Name)
    default, help_text = (_literal(each) for each in call.args)
    about = {each.arg: _literal(each.value) for each in call.keywords if each.arg}
    return Option(field.target.id, ast.unparse(field.annotation), default, str(help_text), **about)  # type: ignore[arg-type]


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Name):
        return getattr(spec, node.id)
    return ast.literal_eval(node)
