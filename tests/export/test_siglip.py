"""SigLIP's tower against transformers': hidden states, projections, the last norm, the pooling head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny.shared import draw_weights
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from foveate.export.blocks.linear import transposed_weights
from foveate.export.blocks.siglip import SiglipConfig, SiglipVision, rename_head
from foveate.runtime.errors import CheckpointError

# 31 pixels are five patches of six and one pixel that is not read.
SIZES: dict[str, Any] = {
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 31,
    "patch_size": 6,
}


def theirs(**options: Any) -> Any:
    torch.manual_seed(0)
    model: Any = SiglipVisionModel(SiglipVisionConfig(**(SIZES | options)))
    draw_weights(model)
    return model.eval()


def ours(model: Any, *request: Any, **options: Any) -> SiglipVision:
    tower = SiglipVision(SiglipConfig.read(model.config.to_dict()), *request, **options)
    turned = transposed_weights(tower)
    state = {rename_head(name): tensor for name, tensor in model.state_dict().items()}
    tower.load_state_dict(
        {name: state[name].T if name in turned else state[name] for name in tower.state_dict()}
    )
    return tower


@torch.no_grad()
def test_all_that_it_leaves_is_transformers() -> None:
    model, pixels = theirs(), torch.randn(3, 3, 31, 31)
    projected: dict[str, Tensor] = {}
    probabilities: list[Tensor] = []
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            module.register_forward_hook(lambda _m, _i, out, name=name: projected.update({name: out}))
    attend = model.head.attention.forward
    model.head.attention.forward = lambda q, k, v: _spied(attend, probabilities, q, k, v)
    want = model(pixels, output_hidden_states=True)

    got = ours(model, [0, 2, 4], [1, 3], normed=True, pooled=True)(pixels)
    for depth, hidden in got.hidden.items():
        torch.testing.assert_close(hidden, want.hidden_states[depth], atol=1e-4, rtol=0)
    for layer in (1, 3):
        where = f"encoder.layers.{layer}.self_attn"
        torch.testing.assert_close(got.query[layer], projected[f"{where}.q_proj"], atol=1e-4, rtol=0)
        torch.testing.assert_close(got.key[layer], projected[f"{where}.k_proj"], atol=1e-4, rtol=0)
    assert got.normed is not None
    assert got.pooled is not None
    torch.testing.assert_close(got.normed, want.last_hidden_state, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.pooled, probabilities[0][:, 0], atol=1e-6, rtol=0)


def _spied(attend: Any, seen: list[Tensor], *qkv: Tensor) -> Any:
    out, probabilities = attend(*qkv, need_weights=True)
    seen.append(probabilities)
    return out, probabilities


def test_it_runs_no_layer_that_nobody_reads() -> None:
    model = theirs()
    assert len(ours(model, [2], []).encoder.layers) == 2
    assert len(ours(model, [2], [2]).encoder.layers) == 3  # its projections, not the layer
    assert len(ours(model, [2], [], normed=True).encoder.layers) == 4


@pytest.mark.parametrize("use_head", [True, False])
def test_only_tensors_of_the_tower_may_stay_unread(use_head: bool) -> None:
    model = theirs(vision_use_head=use_head)
    config = SiglipConfig.read(model.config.to_dict())
    read = set(ours(model, [2], [1]).state_dict())
    unread = {rename_head(name) for name in model.state_dict()} - read
    assert unread
    assert all(config.is_unread(name) for name in unread)
    for alien in ("head.other.weight", "encoder.layers.4.mlp.fc1.weight", "class_embedding"):
        assert not config.is_unread(alien)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_channels", 1), ("patch_size", 32), ("num_attention_heads", 5), ("hidden_act", "mish")],
)
def test_what_fits_no_model_is_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError):
        SiglipConfig.read({**SIZES, key: value})
