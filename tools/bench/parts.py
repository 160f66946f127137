"""Which part of an answer a node of a graph belongs to: vision, select, embed, a segment, the head.

The names say the layer (`...layers.3.mlp.up_proj...`); what has no such name is told by where it stands:

- The *main path* leads from the results (features, hidden rows, logits, caches) back to the inputs through
  numbers that are computed with, not through indices: a gather's rows belong to it, its index does not.
- What is off the main path and leads to a cut's `order` or `count` is the cost of choosing, the evidence that
  it recomputes included. So is what brings rows along once they are chosen.
- The rest (masks, rotary tables) belongs to the first segment that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_CHOICE = re.compile(r"^(order|count|score)(_l\d+)?$")
_INDEXED = ("Gather", "GatherElements", "GatherND", "Slice", "Reshape", "Expand", "Tile", "Pad", "Compress")
# ONNX's numbers of int64 and bool: counts, indices and masks; anything else is computed with.
_INDICES = (7, 9)
VISION, SELECT, EMBED, HEAD = "vision", "select", "embed", "head"


def segment(number: int) -> str:
    """What the layers of a group of the cache are called."""
    return f"segment {number}"


class Parts:
    """The parts of one graph's nodes.

    Args:
        graph: an onnx `GraphProto`; weights need not be loaded.
        stage: its name in the manifest.
        groups: the decoder's layers, by segment.
    """

    def __init__(self, graph: Any, stage: str, groups: Iterable[Iterable[int]]) -> None:
        self._graph = graph
        self._stage = stage
        self._group = {layer: number for number, layers in enumerate(groups) for layer in layers}
        self.of: dict[str, str] = {node.name: self._part(i) for i, node in enumerate(graph.node)}

    def find(self, name: str) -> str:
        """The part of a node that ran: of what it was fused from, by the longest name inside its own."""
        if name in self.of:
            return self.of[name]
        inside = [known for known in self.of if known and known in name]
        if inside:
            return self.of[max(inside, key=len)]
        layer = LAYER.search(name)
        if layer and self._decoder:
            return segment(self._group[int(layer.group(1))])
        return self._default

    @property
    def _decoder(self) -> bool:
        return self._stage.startswith("decoder")

    @property
    def _default(self) -> str:
        if self._stage.startswith("vision"):
            return VISION
        return EMBED if not self._decoder else segment(self._first_group)

    def _part(self, index: int) -> str:
        if not self._decoder and not self._stage.startswith("vision"):
            return EMBED
        own = self._groups[index]
        if index in self._main:
            if own is not None:
                return segment(own) if self._decoder else VISION
            if not self._decoder:
                return SELECT if index in self._chosen else VISION
            if index in self._above:
                return HEAD
            return SELECT if index in self._chosen else segment(self._reads(index))
        if index in self._choosing or index in self._chosen:
            shared = self._first_reader.get(index)
            return SELECT if shared is None else segment(shared) if self._decoder else VISION
        return segment(self._reads(index)) if self._decoder else VISION

    def _reads(self, index: int) -> int:
        """The first segment that reads a node's results."""
        return self._readers.get(index, self._first_group)

    # --- the graph ------------------------------------------------------------------------------------------

    @cached_property
    def _makers(self) -> Mapping[str, int]:
        return {name: i for i, node in enumerate(self._graph.node) for name in node.output}

    @cached_property
    def _types(self) -> dict[str, int]:
        places = (*self._graph.value_info, *self._graph.input, *self._graph.output)
        return {value.name: value.type.tensor_type.elem_type for value in places}

    @cached_property
    def _groups(self) -> list[int | None]:
        """Of each node with a layer in its name: its segment; in the tower of a vision stage 0."""
        found = []
        for node in self._graph.node:
            layer = LAYER.search(node.name)
            decoder = self._group.get(int(layer.group(1)), 0) if layer else 0
            named = layer is not None if self._decoder else "." in node.name
            found.append((decoder if self._decoder else 0) if named else None)
        return found

    @cached_property
    def _first_group(self) -> int:
        return min((own for own in self._groups if own is not None), default=0)

    @cached_property
    def _last_group(self) -> int:
        return max((own for own in self._groups if own is not None), default=0)

    def _back(self, names: Iterable[str], *, numbers: bool) -> set[int]:
        """Nodes that lead to some values; with `numbers` only through what is computed with."""
        found: set[int] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            index = self._makers.get(name)
            if index is None or index in found:
                continue
            found.add(index)
            node = self._graph.node[index]
            inputs = node.input[:1] if numbers and node.op_type in _INDEXED else node.input
            todo += [each for each in inputs if not numbers or self._types.get(each) not in _INDICES]
        return found

    @cached_property
    def _main(self) -> set[int]:
        results = [value.name for value in self._graph.output if not _CHOICE.match(value.name)]
        return self._back([name for name in results if self._types.get(name) not in _INDICES], numbers=True)

    @cached_property
    def _choosing(self) -> set[int]:
        """What a cut's choice is made of, the layers before it included."""
        return self._back([v.name for v in self._graph.output if _CHOICE.match(v.name)], numbers=False)

    @cached_property
    def _chosen(self) -> set[int]:
        """What follows from a choice without running through a layer's arithmetic."""
        chosen = {v.name for v in self._graph.output if _CHOICE.match(v.name)}
        chosen |= {v.name for v in self._graph.input if v.name == "kept_index"}
        found: set[int] = set()
        for i, node in enumerate(self._graph.node):
            if self._groups[i] is None and any(name in chosen for name in node.input):
                found.add(i)
                chosen |= set(node.output)
        return found

    @cached_property
    def _above(self) -> set[int]:
        """What descends from the last segment's layers."""
        reached: set[str] = set()
        found: set[int] = set()
        last = {i for i, own in enumerate(self._groups) if own == self._last_group and i in self._main}
        final = "logits" in {value.name for value in self._graph.output}
        for i, node in enumerate(self._graph.node):
            if i in last or any(name in reached for name in node.input):
                found.add(i)
                reached |= set(node.output)
        return found - last if final else set()

    @cached_property
    def _readers(self) -> dict[int, int]:
        """The first segment that a node without a layer leads to, by whatever way."""
        return self._lowest(lambda i: self._groups[i] if i in self._main else None)

    @cached_property
    def _first_reader(self) -> dict[int, int]:
        """Of what leads to a choice, the segment before that choice that reads it as well."""
        before = {i: own for i, own in enumerate(self._groups) if own is not None and i in self._main}
        upstream = {i for i in self._choosing if i in before}
        own_first = self._lowest(lambda i: before[i] if i in upstream else None)
        if not self._decoder:
            tower = self._lowest(lambda i: 0 if i in before else None)
            return {i: 0 for i in tower if self._groups[i] is None and i not in self._chosen}
        return {i: number for i, number in own_first.items() if self._groups[i] is None}

    def _lowest(self, value: Any) -> dict[int, int]:
        """For each node the least `value` among the nodes that read its results, directly or not."""
        found: dict[int, int] = {}
        by_name: dict[str, int] = {}
        for i in range(len(self._graph.node) - 1, -1, -1):
            node = self._graph.node[i]
            below = [by_name[name] for name in node.output if name in by_name]
            if below:
                found[i] = min(below)
            own = value(i)
            least = min([*below, *([] if own is None else [own])], default=None)
            if least is not None:
                for name in node.input:
                    by_name[name] = min(least, by_name.get(name, least))
        return found
