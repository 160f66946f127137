"""Methods by name: found, described without torch, extended by entry points."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from foveate.pruning import registry
from foveate.pruning.method import PruningMethod
from foveate.pruning.plan import parse_plan
from foveate.pruning.registry import describe_method, find_method, list_methods, make_method, method_names
from foveate.pruning.spec import MethodConfig, Site
from foveate.runtime.errors import UsageError

KINDS = {
    "training-free": {
        *("aim-merge", "aim-rank", "cdpruner", "cls-knee", "dart", "divprune", "exit", "fastv", "prumerge"),
        *("pyramiddrop", "saliency-knee", "sparsevlm", "text-relevance", "visionzip", "vtc-cls", "yopo"),
    },
    "searched": {"layer-rank"},
    "trained": {"dyvte", "quecc", "setok", "vistog"},
    "baseline": {"downsample", "random", "uniform"},
}


def test_the_folder_is_the_registry() -> None:
    assert set(method_names()) == set().union(*KINDS.values())
    for kind, names in KINDS.items():
        assert {info.name for info in list_methods() if info.kind == kind} == names
    trained = {name for name in method_names() if find_method(name).Method.trained}
    assert trained == KINDS["trained"]


@pytest.mark.parametrize("name", method_names())
def test_source_and_module_tell_the_same(name: str) -> None:
    module, info = find_method(name), describe_method(name)
    assert issubclass(module.Config, MethodConfig)
    assert issubclass(module.Method, PruningMethod)
    assert info.options == module.Config.options()
    assert info.sites == module.Method.sites
    assert info.paper == module.PAPER
    assert info.summary == (module.__doc__ or "").split("\n")[0]
    assert 20 < len(info.summary) < 120
    for site in info.sites:
        assert make_method(name, {}, site).site is site


def test_seed_is_asked_for_only_where_it_is_used() -> None:
    needing = [name for name in method_names() if find_method(name).Method.needs_seed]
    assert needing == ["random"]


def test_who_ranks() -> None:
    ranking = [name for name in method_names() if find_method(name).Method.ranks]
    assert set(ranking) >= {"cls-knee", "saliency-knee", "vtc-cls"}


def test_who_reads_the_words_by_default() -> None:
    made = {name: make_method(name, {}, describe_method(name).sites[0]) for name in method_names()}
    assert {name for name, method in made.items() if method.needs_prompt} == {"cdpruner"}
    assert {name for name, method in made.items() if method.needs_text} == {"quecc"}
    assert not any(method.needs_pooled for method in made.values())


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no pruning method 'cls_knee'") as caught:
        find_method("cls_knee")
    assert caught.value.wanted == ", ".join(method_names())
    assert "cls-knee" in caught.value.mend


def test_method_refuses_a_foreign_site() -> None:
    with pytest.raises(UsageError, match="does not work at the decoder site") as caught:
        make_method("cls-knee", {}, Site.DECODER)
    assert caught.value.wanted == "encoder"


def test_listing_and_parsing_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None\n"
        "from foveate.pruning.registry import list_methods\n"
        "from foveate.pruning.plan import parse_plan\n"
        "names = [m.name for m in list_methods()]\n"
        "print(len(names), names[0], parse_plan(['cls-knee:knee=iqr', 'random@3:ratio=0.2']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(method_names())} {method_names()[0]} cls-knee + random@3\n"


PLUGIN = '''"""Keeps the first tokens, for a test."""
from dataclasses import dataclass
from foveate.pruning.spec import KneeConfig, option
{extra}
SITES = ("encoder",)
PAPER = "none"
@dataclass(frozen=True, kw_only=True)
class Config(KneeConfig):
    """Options."""
    share: float = option(0.5, "kept share", low=0, high=1)
    @property
    def helper(self) -> int:
        return 1
class Method: ...
'''


def test_entry_points_add_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keep_first_plugin.py").write_text(PLUGIN.format(extra="raise RuntimeError('imported')"))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {
        name: EntryPoint(name, module, registry.ENTRY_POINT_GROUP)
        for name, module in {
            "keep-first": "keep_first_plugin",
            "random": "keep_first_plugin",
            "gone": "no_such_module_here",
        }.items()
    }
    monkeypatch.setattr(registry, "_entry_points", lambda: found)
    registry.describe_method.cache_clear()
    try:
        info = describe_method("keep-first")  # described without being imported: it would raise
        assert (info.options[0].name, info.options[-1].name) == ("knee", "share")
        assert info.summary == "Keeps the first tokens, for a test."
        assert parse_plan(["keep-first:share=0.1"]).cuts[0].params["share"] == 0.1
        assert find_method("random").__name__ == "foveate.pruning.methods.random"
        with pytest.raises(RuntimeError, match="imported"):
            find_method("keep-first")
        with pytest.raises(UsageError, match="module is missing"):
            describe_method("gone")
        (tmp_path / "keep_first_plugin.py").unlink()
    finally:
        registry.describe_method.cache_clear()
    assert "keep-first" in method_names()


def test_listing_describes_every_method() -> None:
    assert [info.name for info in list_methods()] == list(method_names())
