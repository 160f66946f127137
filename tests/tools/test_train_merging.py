"""Training of vistog and setok: it trains what runs, every weight, and the same way each time."""

from __future__ import annotations

import pytest
import torch

from foveate.export.adapter import Adapter
from foveate.pruning.budget import Budget
from foveate.tools.demo_model.__main__ import SHIPPED
from foveate.tools.train import merging
from foveate.tools.train.bench import Bench
from foveate.tools.train.recipes import make_recipe, make_trainer
from foveate.tools.train.vistog import Trainer as VistogTrainer

TINY = {"batch": 2, "warm": 1, "warm_batch": 3, "questions": 2}


@pytest.fixture(scope="module", params=["setok", "vistog"])
def trainer(request: pytest.FixtureRequest) -> merging.Trainer:
    name: str = request.param
    words = [f"{key}={value}" for key, value in TINY.items()]
    made = make_trainer(name, SHIPPED, make_recipe(name, words))
    assert isinstance(made, merging.Trainer)
    return made


@pytest.mark.parametrize("tokens", [0, 5, 64])
def test_rows_are_those_that_the_method_makes(trainer: merging.Trainer, tokens: int) -> None:
    if trainer.name == "vistog" and tokens == 64:
        pytest.skip("every patch as it is: nothing to train")
    bench = trainer.bench
    with torch.no_grad():
        states = bench.hidden_states(bench.held_out(3))
        asked = torch.full((3,), tokens)
        merged = trainer.merge(states, asked, None)
        evidence = bench.evidence(states)
        if isinstance(trainer, VistogTrainer):
            evidence = evidence._replace(extra=trainer.beside(states))
        chosen = trainer.cuts["encoder"](evidence, Budget(torch.zeros(3), asked))
    assert merged.used.sum(dim=1).tolist() == chosen.count.tolist()
    if tokens == 64:  # the request keeps everything, and the method leaves it alone
        return
    for item in range(3):
        kept = chosen.order[item, : int(chosen.count[item])]
        torch.testing.assert_close(merged.rows[item][merged.used[item]], chosen.features[item, kept])
    assert (merged.members & merged.used.unsqueeze(-1)).sum(dim=1).eq(1).all()  # one row for each patch


def test_a_step_depends_on_its_number_alone(trainer: merging.Trainer) -> None:
    for step in (0, 3):
        first = trainer.loss(step)
        trainer.loss(1)
        assert torch.equal(first, trainer.loss(step))


def test_every_weight_is_trained(trainer: merging.Trainer) -> None:
    """Zero first weights stop some gradients; with others set, all flow."""
    cut = trainer.cuts["encoder"]
    before = {name: value.detach().clone() for name, value in cut.named_parameters()}
    with torch.no_grad():
        for value in cut.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    trainer.loss(5).backward()  # type: ignore[no-untyped-call]
    for name, value in cut.named_parameters():
        assert value.grad is not None, name
        # A shift of all keys moves no softmax.
        assert name.endswith("k_proj.bias") or value.grad.abs().max() > 0, name
        value.grad = None
    with torch.no_grad():
        for name, value in cut.named_parameters():
            value.copy_(before[name])


def test_the_shipped_adapter_fits_the_demo(trainer: merging.Trainer) -> None:
    """Far above a blind model (20 %) on scenes that nothing was trained on."""
    adapter = Adapter.read(SHIPPED.with_name("adapters") / f"{trainer.name}.safetensors")
    assert adapter.source_weights == Bench(SHIPPED).weights_sha256
    assert set(adapter.tensors) == set(trainer.tensors())
    trainer.load(adapter.tensors)
    right, _ = trainer.examine(25, "test")
    assert right.float().mean() > {"setok": 0.55, "vistog": 0.42}[trainer.name]
