"""What each family supports, read from the literal `FACTS` in its source, so that torch is not imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from foveate.runtime.errors import UsageError

SITES: Final = ("encoder", "decoder")
"""Where tokens can be dropped, in every family."""

DTYPES: Final = ("bfloat16", "float16", "float32", "float64")
"""What the weights of a checkpoint may be stored in, in every family; the graphs compute in float32."""


@dataclass(frozen=True)
class FamilyInfo:
    """`model_type`, as config.json has it, and the fields of `foveate.export.families.Facts` by name."""

    model_type: str
    facts: Mapping[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.facts[field]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"model_type": self.model_type, **self.facts, "sites": SITES, "dtypes": DTYPES}

    @property
    def takes(self) -> str:
        """What a prompt may have besides text, in words."""
        images = f"{self['images']} images" if self["images"] else "images"
        return f"{images}, video" if self["video"] else images

    @property
    def positions(self) -> str:
        """What visual tokens may do after the encoder's cut, in words."""
        axes = " (time, row, column)" if self["position_axes"] == 3 else ""
        return ", ".join(self["position_modes"]) + axes


def family_names() -> tuple[str, ...]:
    """Every `model_type` that can be exported, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.py") if path.stem != "__init__"))


def list_families() -> tuple[FamilyInfo, ...]:
    """Every family, sorted by `model_type`."""
    return tuple(describe_family(name) for name in family_names())


def describe_family(name: str) -> FamilyInfo:
    """What the source of a family says about it.

    Raises:
        UsageError: no such family; the message lists what exists.
    """
    if name not in family_names():
        raise UsageError(
            f"there is no family '{name}'",
            found=name,
            wanted=", ".join(family_names()),
            mend="model_type in a checkpoint's config.json is its family's name",
        )
    call = _assigned(_parsed(_folder() / f"{name}.py"), "FACTS")
    assert isinstance(call, ast.Call), f"FACTS of {name} is not a call of Facts"
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
    return FamilyInfo(name, {**_defaults(), **given})


@cache
def _defaults() -> dict[str, Any]:
    """The fields of `Facts` that need not be given, by name."""
    tree = _parsed(_folder() / "__init__.py")
    facts = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Facts")
    fields = [node for node in facts.body if isinstance(node, ast.AnnAssign) and node.value is not None]
    return {ast.unparse(node.target): ast.literal_eval(node.value) for node in fields if node.value}


def _assigned(tree: ast.Module, name: str) -> ast.expr:
    """What a module assigns to a name, with an annotation."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value is not None:
            return node.value
    raise AssertionError(f"{name}: Final = ... is missing")


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _folder() -> Path:
    found = importlib.util.find_spec("foveate.export")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "families"
