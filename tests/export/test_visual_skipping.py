"""Layers in which visual rows do less, against plain definitions; the ladder judges whole models."""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from foveate.export.blocks.decoder import (
    MLP,
    Attention,
    ChunkState,
    LayerCache,
    NearAttention,
    SplitAttention,
)
from foveate.export.blocks.decoder import _attention as attention_of
from foveate.export.blocks.decoder import _mlp as mlp_of
from foveate.export.blocks.linear import Piece, partial_weights, transposed_weights
from foveate.export.blocks.neighbours import Sight, Tiles
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.blocks.visual_skipping import Skipping, SplitMLP, TextRows, checkpoint_names
from foveate.export.skipping import as_planned
from foveate.pruning.plan import parse_plan
from foveate.runtime.errors import UsageError
from foveate.runtime.neighbours import cells, tile

TEXT = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "vocab_size": 8,
    "attention_bias": True,
    "mlp_bias": True,
}
CONFIG = DecoderConfig.read(TEXT)
ALL = ((0, 1, 2),) * 3
ROLES = torch.tensor([[0, 1, 1, 1, 0, 2, 2, 0], [0, 0, 1, 1, 2, 0, 0, 0]])
LENGTH = torch.tensor([8, 6])


@dataclass(frozen=True)
class Family:
    """All that a family's configuration has to have here."""

    text: DecoderConfig


def skipped(groups: tuple[int, ...] = (0, 1, 2), neurons: int = 20, **options: Any) -> DecoderConfig:
    return replace(CONFIG, skipping=Skipping(neurons, (groups,) * 3, **options))


def rows(index: Tensor | None = None) -> TextRows:
    return TextRows.of(ROLES, LENGTH, torch.zeros(2, dtype=torch.int64), index)


def filled(module: torch.nn.Module, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    for value in module.parameters():
        value.data = torch.randn(value.shape, dtype=torch.float64) / 3
    return module


def copy_weights(whole: torch.nn.Module, part: torch.nn.Module) -> Any:
    """The whole module's weights, cut as the exporter cuts a checkpoint's."""
    layer = torch.nn.ModuleDict({"block": part})
    names, pieces, turned = checkpoint_names(layer), partial_weights(layer), transposed_weights(layer)
    given = {f"block.{name}": value.data for name, value in whole.named_parameters()}
    for name, value in layer.named_parameters():
        tensor = given[names[name]]
        tensor = pieces[name].cut(tensor.t() if name in turned else tensor)  # a checkpoint's is [out, in]
        value.data = tensor.t() if name in turned else tensor
    return part


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: Any, **sizes: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """A target's causal attention over an empty cache."""
    heads, groups = sizes["num_heads"], sizes["num_kv_heads"]
    b, s, _ = query.shape
    q, k, v = (
        x.reshape(b, s, n, -1).transpose(1, 2) for x, n in ((query, heads), (key, groups), (value, groups))
    )
    k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=sizes["scale"])
    return mixed.transpose(1, 2).reshape(b, s, -1), past_key, past_value


TARGET: Any = types.SimpleNamespace(cached_attention=by_definition, rotary=lambda x, *_: x)


def state(text: TextRows | None) -> ChunkState:
    angles = torch.zeros(2, 8, 2, dtype=torch.float64)
    return ChunkState((angles, angles), (angles, angles), LENGTH, torch.zeros(2, dtype=torch.int64), {}, text)


def test_text_rows() -> None:
    given = torch.tensor([[0, 4, 5, 6, 7], [0, 1, 4, 5, -1]])
    for made in (rows(), rows(given)):
        assert made.length.tolist() == [5, 4]
        assert made.index[0].tolist() == [0, 4, 5, 6, 7]
        assert made.index[1, :4].tolist() == [0, 1, 4, 5]
    x = torch.arange(16).reshape(2, 8)[:, :, None] + torch.zeros(1, 1, 3)
    back = rows(given).spread(rows(given).gather(x), -1.0)
    is_text = torch.tensor([[1, 0, 0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 0, 0]]).bool()
    assert torch.equal(back, torch.where(is_text[:, :, None], x, -1.0))


@pytest.mark.parametrize("neurons", [1, 10, 19])
def test_fewer_neurons(neurons: int) -> None:
    """Visual rows as if the other neurons were silent, text rows as ever."""
    whole = filled(MLP(CONFIG))
    part = copy_weights(whole, mlp_of(skipped(neurons=neurons)))
    x = torch.randn(2, 8, 24, dtype=torch.float64)
    inner = whole.activation(whole.gate_proj(x)) * whole.up_proj(x)
    few = whole.down_proj(inner * (torch.arange(20) < neurons))
    text = rows().is_text[:, :, None]
    assert torch.allclose(part(x, rows()), torch.where(text, whole(x), few), atol=1e-12)


@pytest.mark.parametrize("groups", [(), (0,), (2,), (0, 2)])
def test_fewer_heads(groups: tuple[int, ...]) -> None:
    """As if the other heads saw no visual column, and gave visual rows nothing."""
    whole = filled(Attention(CONFIG, TARGET, None))
    part = attention_of(skipped(groups), TARGET, None, 0)
    assert isinstance(part, SplitAttention)
    copy_weights(whole, part)
    x, text = torch.randn(2, 8, 24, dtype=torch.float64), rows()
    nothing = torch.zeros(1, dtype=torch.float64)
    got = part(x, state(text), LayerCache(nothing, nothing, nothing, nothing))[0]

    def heads(y: Tensor, count: int) -> Tensor:
        return y.reshape(2, 8, count, 4).transpose(1, 2)

    q = heads(whole.q_proj(x), 6)
    k, v = (heads(each(x), 3).repeat_interleave(2, dim=1) for each in (whole.k_proj, whole.v_proj))
    off = torch.tensor([head // 2 not in groups for head in range(6)])
    hidden = off[None, :, None, None] & ~text.is_text[:, None, None, :]
    sees = torch.ones(8, 8, dtype=torch.bool).tril() & ~hidden
    scores = (q @ k.transpose(2, 3) / 2).masked_fill(~sees, -1e9)
    mixed = scores.softmax(dim=3) @ v
    mixed = torch.where(off[None, :, None, None] & ~text.is_text[:, None, :, None], 0.0, mixed)
    wanted = whole.o_proj(mixed.transpose(1, 2).reshape(2, 8, 24))
    valid = torch.arange(8)[None, :] < LENGTH[:, None]
    assert torch.allclose(got[valid], wanted[valid], atol=1e-12)


def test_without_visual_rows_nothing_changes() -> None:
    whole = filled(Attention(CONFIG, TARGET, None))
    part = copy_weights(whole, attention_of(skipped((1,)), TARGET, None, 0))
    text = TextRows.of(torch.zeros_like(ROLES), torch.tensor([8, 8]), torch.zeros(2, dtype=torch.int64), None)
    x, nothing = torch.randn(2, 8, 24, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    caches = LayerCache(nothing, nothing, nothing, nothing)
    assert torch.allclose(part(x, state(text), caches)[0], whole(x, state(None), caches)[0], atol=1e-12)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("side", [1, 2, 7])
def test_windows_whatever_the_tiles(window: int, both_ways: bool, side: int, monkeypatch: Any) -> None:
    """Visual rows of two images with text before and between, an earlier turn's text, dropped tokens."""
    monkeypatch.setattr("foveate.runtime.neighbours._SMALLEST", max(side, window - 1))
    rng, grid, past = torch.Generator().manual_seed(window), (4, 5), 6
    origin = torch.tensor(
        [[-1, 0, 1, 3, 7, 8, 12, 19, -1, -1, 20, 26, 27, -1], [-1, -1, 5, 6, 7, 9, 11, -1, *[-1] * 6]]
    )
    length, cached = torch.tensor([14, 8]), torch.tensor([6, 3])
    visual = origin >= 0
    cell = cells(origin.numpy(), grid)
    tiling = tile(cell, visual.numpy(), window)
    old = torch.tensor([[0, 2, 5], [0, 1, -1]])  # the others are visual tokens of the turn before
    text = TextRows.of(visual.long(), length, cached, None)
    tiles = Tiles(*map(torch.from_numpy, tiling), torch.from_numpy(cell), old)
    sight = Sight.of(tiles, text, length, cached, 24, window, both_ways)
    q = torch.randn(2, 14, 4 * 6, generator=rng, dtype=torch.float64)
    k, v = (torch.randn(2, 14, 2 * 6, generator=rng, dtype=torch.float64) for _ in range(2))
    caches = [torch.randn(2, 2, 24, 6, generator=rng, dtype=torch.float64) for _ in range(2)]
    for cache, new in zip(caches, (k, v), strict=True):
        for b in range(2):
            cache[b, :, cached[b] : cached[b] + 14] = new[b].reshape(14, 2, 6).transpose(0, 1)
    got = sight.mix(q, k, v, (caches[0], caches[1]), 0.7)
    for b, row in torch.nonzero(visual).tolist():
        top, left = cell[b, row, 1:]
        seen = [int(slot) for slot in old[b] if slot >= 0]
        for other in range(int(length[b])):
            if not visual[b, other]:
                near = other < row
            else:
                near = cell[b, other, 0] == cell[b, row, 0] and (both_ways or other <= row)
                near = (
                    near and max(abs(cell[b, other, 1] - top), abs(cell[b, other, 2] - left)) <= window // 2
                )
            seen += [past * (b == 0) + 3 * (b == 1) + other] if near else []
        for head in range(4):
            keys, values = (cache[b, head // 2, seen] for cache in caches)
            share = torch.softmax(keys @ q[b, row, head * 6 : head * 6 + 6] * 0.7, dim=0)
            assert torch.allclose(got[b, row, head * 6 : head * 6 + 6], share @ values, atol=1e-12)


def test_nothing_left_out_is_the_whole_model() -> None:
    for words in ("yopo:ffn=1", "yopo:ffn=1,heads=7+7+7"):
        assert as_planned(Family(CONFIG), parse_plan((words,)), None).text.skipping is None
    made = as_planned(Family(CONFIG), parse_plan(("yopo:ffn=4,heads=7+1+7,window=3",)), (4, 4)).text
    assert made.skipping == Skipping(5, ((0, 1, 2), (0,), (0, 1, 2)), 3, True)
    assert isinstance(attention_of(made, TARGET, None, 0), NearAttention)
    assert isinstance(mlp_of(made), SplitMLP)


def test_pieces_are_as_large_as_they_say() -> None:
    piece = Piece(0, ((0, 2), (5, 6)), 8)
    assert piece.width == 3
    assert piece.cut(torch.arange(8)).tolist() == [0, 1, 5]
    assert piece.whole((3, 4)) == (8, 4)
    assert Piece(1, ((0, 2),), 8).cut(torch.arange(8)).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("words", "grid", "masked"),
    [
        (("yopo:window=3",), None, False),
        (("yopo:heads=7+1+7",), (4, 4), True),
        (("yopo:window=3",), (4, 4), True),
        (("yopo:heads=7+0+7", "exit@2"), (4, 4), False),
    ],
)
def test_what_cannot_be(words: tuple[str, ...], grid: tuple[int, int] | None, masked: bool) -> None:
    config = Family(replace(CONFIG, bidirectional_images=masked))
    with pytest.raises(UsageError):
        as_planned(config, parse_plan(words), grid)
