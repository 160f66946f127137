"""A tiny LLaVA that knows nothing, and its bundle with a cut at both sites; do not write into them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/tiny/: fixtures are not part of the package


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two layers on either side; a picture is 25 visual tokens."""
    import tiny
    import torch

    torch.set_num_threads(1)
    halves = {"vision_options": {"num_hidden_layers": 2}, "text_options": {"num_hidden_layers": 2}}
    return tiny.make_llava(tmp_path_factory.mktemp("shallow") / "checkpoint", **halves)


@pytest.fixture(scope="session")
def shallow_bundle(shallow: Path) -> Path:
    """`cls-knee:min_keep=3` and `random@1:ratio=0.5`, fused."""
    from foveate.export import export_model

    plan = ("cls-knee:min_keep=3", "random@1:ratio=0.5")
    return export_model(shallow, shallow.parent / "bundle", plan=plan, layouts=("fused",)).path
