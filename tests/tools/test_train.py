"""Training: the loop's promises, labels, and what it refuses. The runs are a few steps long."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.export.adapter import Adapter
from foveate.pruning.registry import list_methods
from foveate.runtime.errors import CheckpointError, UsageError
from foveate.tools.demo_model import scenes
from foveate.tools.demo_model.packed import answer_logits, decode_exits, looked_at
from foveate.tools.train import TRAINED, loop, recipes
from foveate.tools.train.bench import Bench
from foveate.tools.train.dyvte import harmless
from foveate.tools.train.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/tiny/: fixtures are not part of the package

CHECKPOINT = Path(scenes.__file__).with_name("checkpoint")
SMALL = {
    "dyvte": {"scenes": 5, "steps": 4, "batch": 8, "check_every": 2, "check_scenes": 2, "warmup": 1},
    "quecc": {
        **{"steps": 4, "batch": 1, "questions": 2, "warm": 2},
        **{"check_every": 2, "check_scenes": 1, "warmup": 1},
    },
}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(CHECKPOINT)


def _trainer(name: str, bench: Bench, **changes: Any) -> Trainer:
    recipe = recipes.make_recipe(name, (), **{**SMALL[name], **changes})
    trainer: Trainer = importlib.import_module(f"foveate.tools.train.{name}").Trainer(bench, recipe)
    return trainer


def _stop_at(trainer: Trainer, step: int) -> None:
    """Ctrl-C in the middle of that step."""
    loss = trainer.loss

    def stopping(number: int) -> torch.Tensor:
        if number == step:
            raise KeyboardInterrupt
        return loss(number)

    trainer.loss = stopping  # type: ignore[method-assign]


@pytest.mark.parametrize("name", list(SMALL))
def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(name: str, bench: Bench, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    loop.train(_trainer(name, bench), whole)
    stopped = _trainer(name, bench)
    _stop_at(stopped, 3)
    with pytest.raises(KeyboardInterrupt):
        loop.train(stopped, parts)
    assert not parts.exists()
    assert loop.Files(parts).state.is_file()
    loop.train(_trainer(name, bench), parts, resume=True)
    one, other = Adapter.read(whole), Adapter.read(parts)
    assert (one.params, one.trained) == (other.params, other.trained)
    assert list(one.tensors) == list(other.tensors)
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{stem}{end}" for stem in ("whole", "parts") for end in (".safetensors", ".csv", ".png")}
    with loop.Files(parts).table.open() as file:
        assert [int(float(row["step"])) for row in csv.DictReader(file)] == [0, 2, 4]


def test_an_adapter_says_what_it_is_and_is_small(bench: Bench, tmp_path: Path) -> None:
    trainer = _trainer("dyvte", bench)
    loop.train(trainer, tmp_path / "a.safetensors")
    adapter = Adapter.read(tmp_path / "a.safetensors")
    assert adapter.method == "dyvte"
    assert adapter.source_weights == bench.weights_sha256
    assert adapter.trained["recipe"]["seed"] == 1
    assert 0 <= adapter.trained["validation"]["right"] <= 1
    assert {value.dtype for value in adapter.tensors.values()} == {torch.float16}
    assert set(adapter.tensors) == {f"l{i}.gate.{w}.weight" for i in range(1, 6) for w in ("fc1", "fc2")}
    for name, value in trainer.tensors().items():  # what was examined is what was written
        assert torch.equal(value, adapter.tensors[name].float())


def test_another_seed_gives_other_weights_and_only_the_method_moves(bench: Bench, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    one, two = (
        loop.train(_trainer("quecc", bench, seed=seed), tmp_path / f"{seed}.safetensors") for seed in (1, 2)
    )
    assert not torch.equal(one.tensors["encoder.q_proj.weight"], two.tensors["encoder.q_proj.weight"])
    start = _trainer("quecc", bench, seed=1).tensors()
    moved = [name for name, value in start.items() if not torch.equal(value.half(), one.tensors[name])]
    assert set(moved) == set(start), "a weight that no gradient reaches"
    for name, value in bench.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_resuming_refuses_another_configuration(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    stopped = _trainer("dyvte", bench)
    _stop_at(stopped, 3)
    with pytest.raises(KeyboardInterrupt):
        loop.train(stopped, out)
    state = loop.Files(out).state.read_bytes()
    with pytest.raises(UsageError, match="another configuration") as caught:
        loop.train(_trainer("dyvte", bench, rate=0.5), out, resume=True)
    assert "recipe.rate" in str(caught.value)
    with pytest.raises(UsageError, match="another configuration"):
        loop.train(_trainer("quecc", bench), out, resume=True)
    assert loop.Files(out).state.read_bytes() == state
    assert not out.exists()
    loop.Files(out).state.write_bytes(state[:100])
    with pytest.raises(UsageError, match="no state of a training run"):
        loop.train(_trainer("dyvte", bench), out, resume=True)


def test_nothing_is_replaced_or_resumed_unasked(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        loop.train(_trainer("dyvte", bench), out)
    with pytest.raises(UsageError, match="no training run to resume"):
        loop.train(_trainer("dyvte", bench), out, resume=True, overwrite=True)
    with pytest.raises(UsageError, match="is there already"):
        loop.check_place(tmp_path, resume=False, overwrite=True)
    assert out.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [out]


def test_every_trained_method_has_a_trainer() -> None:
    assert set(TRAINED) == {method.name for method in list_methods() if method.kind == "trained"}
    for name in TRAINED:
        module = importlib.import_module(f"foveate.tools.train.{name.replace('-', '_')}")
        assert module.Trainer.name == name
        assert recipes.make_recipe(name, ["steps=3"], seed=4).to_dict()["steps"] == 3


@pytest.mark.parametrize(
    "words", [["speed=3"], ["steps"], ["steps=0"], ["steps=many"], ["rate=nan"], ["rate=-1"], ["batch=1.5"]]
)
def test_a_recipe_refuses_what_it_has_not(words: list[str]) -> None:
    with pytest.raises(UsageError, match="no such setting"):
        recipes.make_recipe("dyvte", words)


def test_only_trained_methods_and_models_of_the_demos_make(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be trained"):
        recipes.make_recipe("cls-knee")
    with pytest.raises(UsageError, match="no pruning method"):
        recipes.make_recipe("dyvt")
    with pytest.raises(CheckpointError):
        Bench(tmp_path / "nothing")
    import tiny

    with pytest.raises(UsageError, match="cannot be trained on"):
        Bench(tiny.make_llava(tmp_path / "other"))


def test_leaving_early_is_what_closing_the_columns_is(bench: Bench) -> None:
    """`decode_exits` against `answer_logits` with a cut that keeps nothing, and without one."""
    drawn = bench.held_out(2)
    questions = bench.pack(bench.ask(drawn, 8, training=False))
    features = bench.hidden_states(drawn)[bench.feature_layer][:, 1:]
    states, logits = decode_exits(bench.model, features, questions)
    torch.testing.assert_close(logits[-1], answer_logits(bench.model, features, questions))
    single = questions.unpack()
    for layer in (1, 3, 5):
        cut = (layer, lambda relevance: torch.zeros_like(relevance).bool())
        wanted = answer_logits(bench.model, features.repeat_interleave(8, 0), single, cut=cut)
        torch.testing.assert_close(logits[layer - 1].flatten(0, 1), wanted[:, 0], rtol=1e-4, atol=1e-4)
    assert len(states) == 5


def test_what_is_looked_at_is_the_attention_that_a_cut_sees(bench: Bench) -> None:
    """Of the first layer alone it must be at least the mean that `answer_logits` gives its cut."""
    drawn = bench.held_out(1)
    questions = bench.pack(bench.ask(drawn, 2, training=False))
    features = bench.hidden_states(drawn)[bench.feature_layer][:, 1:]
    looked = looked_at(bench.model, features, questions)
    assert looked.shape == (1, 2, 64)
    means: list[torch.Tensor] = []

    def watch(relevance: torch.Tensor) -> torch.Tensor:
        means.append(relevance)
        return torch.ones_like(relevance).bool()

    single = questions.unpack()
    for layer in range(1, 6):
        answer_logits(bench.model, features.repeat_interleave(2, 0), single, cut=(layer, watch))
    assert (looked[0] >= torch.stack(means).sum(0) - 1e-5).all()
    assert (looked <= 5).all()


def test_labels_of_exits(bench: Bench) -> None:
    questions = bench.pack(bench.ask(bench.held_out(1), 2, training=False))
    full = torch.nn.functional.one_hot(questions.targets.clamp_min(0), 400).float() * 9
    worse = full * 0.5  # the same tokens, less sure of them
    other = full.roll(1, -1)
    labels = harmless([full, worse, other, full], questions, 1.03, 0.0)
    assert labels.tolist() == [[True, True], [False, False], [False, False]]
    assert harmless([worse, full], questions, 1.03, 10.0).all()
