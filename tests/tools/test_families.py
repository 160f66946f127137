"""`foveate families` says, without torch, what the families themselves say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from foveate.export.families import list_families as modules
from foveate.export.families import load_family
from foveate.runtime.errors import UsageError
from foveate.tools.families import describe_family, family_names, list_families
from foveate.tools.large_shapes import SHAPES

NEEDS_CLS = {"cls_full", "cls_mean", "cosine"}


def test_the_same_families_with_the_same_facts() -> None:
    assert family_names() == modules()
    for family in list_families():
        told = load_family(family.model_type).FACTS.to_dict()
        assert {field: family[field] for field in told} == told


def test_an_unknown_family_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match="llava"):
        describe_family("llama")


def test_needs_no_torch() -> None:
    code = (
        "import sys\nfrom foveate.tools.cli.main import main\n"
        "try: main(['families', '--json'])\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["False", "False"]
    assert [entry["model_type"] for entry in json.loads(done.stdout)] == list(family_names())


@pytest.mark.parametrize("name", family_names())
def test_there_is_a_published_shape_and_it_is_read(name: str) -> None:
    """Its default score is one that the encoder can give, and scores of CLS are listed where there is one."""
    shape = next(shape for shape in SHAPES.values() if shape["model_type"] == name)
    family = load_family(name)
    encoder = family.encoder_shape(family.Config.read(shape))
    assert bool(NEEDS_CLS & set(family.FACTS.scores)) == encoder.has_cls
    assert family.FACTS.default_plan[0] == ("cls-knee" if encoder.has_cls else "saliency-knee")
    assert encoder.has_pool <= ("pooled" in family.FACTS.scores)
