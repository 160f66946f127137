"""What a plan leaves out of the decoder's layers, simulated: all of it is computed, then masked or zeroed.

This is how the paper's own code works (YOPO, arXiv 2410.06169), so it shares nothing with graphs in which the
work is gone. One difference is meant: a head that is off masks visual columns before the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from foveate.tools.parity.families import LayerRun, Oracle
from foveate.tools.parity.reference_parts import Cut, Flow

Run = Callable[[int, Flow], LayerRun]


def runner(oracle: Oracle, plan: Sequence[Cut]) -> Run:
    """How to run a layer: `Oracle.layer`, or the same with what the plan's word for the layers leaves out."""
    cut = next((cut for cut in plan if cut.site == "layers"), None)
    if cut is not None:
        return Skipper(oracle, cut.params).layer
    return lambda index, flow: oracle.layer(index, flow.hidden, flow.positions, flow.block)


class Skipper:
    """An oracle's layers, whose visual rows do less."""

    def __init__(self, oracle: Oracle, params: Mapping[str, Any]) -> None:
        """`params` are the method's options, all of them."""
        self.oracle = oracle
        self.parts = int(params["ffn"])
        self.words = str(params["heads"])
        self.window = params["window"]
        self.both_ways = bool(params["both_ways"])

    @torch.no_grad()
    def layer(self, index: int, flow: Flow) -> LayerRun:
        """One layer over rows; evidence is that of the active heads, over everything before a row."""
        layer = self.oracle.text.layers[index]
        visual = flow.block >= 0
        groups = self.active(index)
        each = layer.self_attn.num_key_value_groups
        heads = [group * each + i for group in groups for i in range(each)]
        with ExitStack() as stack:
            stack.enter_context(_fewer_neurons(layer.mlp, self.parts, visual))
            stack.enter_context(_fewer_heads(layer.self_attn, heads, visual))
            whole = run = self.oracle.layer(index, flow.hidden, flow.positions, flow.block)
            if self.window is not None:
                stack.enter_context(_replaced_mask(layer.self_attn, self.sees(flow)))
                run = self.oracle.layer(index, flow.hidden, flow.positions, flow.block)
        return run._replace(
            attention=whole.attention[heads],
            query_plain=run.query_plain[heads],
            query=run.query[heads],
            key_plain=run.key_plain[groups],
            key=run.key[groups],
        )

    def sees(self, flow: Flow) -> Tensor:
        """Which row may look at which, bool [s, s]: of visual rows, a visual one sees its neighbours only."""
        vision = self.oracle.config.vision_config
        side, reach = vision.image_size // vision.patch_size, self.window // 2
        count = len(flow.block)
        seen = torch.ones(count, count, dtype=torch.bool).tril()
        for one in range(count):
            for other in range(count):
                if min(int(flow.block[one]), int(flow.block[other])) < 0:
                    continue
                (top, left), (row, column) = (divmod(int(flow.number[i]), side) for i in (one, other))
                near = max(abs(top - row), abs(left - column)) <= reach
                before = self.both_ways or other <= one
                seen[one, other] = near and before and bool(flow.block[one] == flow.block[other])
        return seen

    def active(self, index: int) -> list[int]:
        """The key-value heads of a layer that look at visual rows."""
        attention = self.oracle.text.layers[index].self_attn
        count = attention.k_proj.out_features // attention.head_dim
        if self.words == "all":
            return list(range(count))
        bits = format(int(self.words.split("+")[index], 16), "b").zfill(count)[::-1]
        return [group for group, bit in enumerate(bits) if bit == "1"]


@contextmanager
def _fewer_neurons(mlp: Any, parts: int, visual: Tensor) -> Iterator[None]:
    """Visual rows use the first of `parts` parts of the neurons."""

    def silence(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        neurons = given[0].clone()  # [1, s, d_ff]
        first = neurons.shape[2] // parts
        for row in torch.nonzero(visual)[:, 0].tolist():
            neurons[0, row, first:] = 0
        return (neurons,)

    handle = mlp.down_proj.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced_mask(attention: Any, sees: Tensor) -> Iterator[None]:
    """Another mask for all heads."""

    def mask(module: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        lowest = torch.finfo(torch.float32).min
        return given, {**named, "attention_mask": torch.zeros(1, 1, *sees.shape).masked_fill(~sees, lowest)}

    # Before the hooks that are there: they take away what single heads do not see.
    handle = attention.register_forward_pre_hook(mask, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _fewer_heads(attention: Any, active: Sequence[int], visual: Tensor) -> Iterator[None]:
    """The other heads see no visual column, and give visual rows nothing."""
    width = attention.head_dim
    count = attention.q_proj.out_features // width
    off = [head for head in range(count) if head not in active]

    def mask(module: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        whole = named["attention_mask"].expand(1, count, -1, -1).clone()  # [1, h, s, s]
        for head in off:
            # Visual rows keep theirs: what they make of it is thrown away, and a row without keys is no row.
            whole[0, head] = torch.where(
                ~visual[:, None] & visual[None, :], torch.finfo(whole.dtype).min, whole[0, head]
            )
        return given, {**named, "attention_mask": whole}

    def silence(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mixed = given[0].clone()  # [1, s, h * e]
        for head in off:
            mixed[0, visual, head * width : (head + 1) * width] = 0
        return (mixed,)

    if not off:
        yield
        return
    handles = [
        attention.register_forward_pre_hook(mask, with_kwargs=True),
        attention.o_proj.register_forward_pre_hook(silence),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
