"""A bundle's graphs driven by hand, one prompt at a time: the ladder's own small host.

It shares nothing with the runtime's host code, so that a fault in either shows; only the pixels of an image
come from the runtime's preprocessor. It can look inside: with `probe`, the output of every layer comes out
(see `graphs.py`). Prefill only: empty caches, one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foveate.runtime.arrays import host_dtype
from foveate.runtime.backend import Backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.families import VisualItem
from foveate.tools.parity.facts import Budget
from foveate.tools.parity.graphs import Graph
from foveate.tools.parity.hosted import HostedGraph
from foveate.tools.parity.prompts import VISUAL, Turn
from foveate.tools.parity.reference_parts import TurnTrace

METHOD_BUDGET = Budget()
KEEP_ALL = Budget(keep_ratio=1.0)


@dataclass(frozen=True)
class ItemRun:
    """The vision stage on one item: `features` [n, c] (fused: dropped rows are zero), the visual tokens kept,
    the whole order; `layers[i]` and `projections[i, name]` [t, r, w] where the driver probes.
    """

    features: np.ndarray
    kept: tuple[int, ...]
    order: tuple[int, ...]
    layers: Mapping[int, np.ndarray]
    projections: Mapping[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class Rows:
    """What enters the decoder: `hidden` [s, d], `positions` [s, axes], `block` [s] (which item, -1: text),
    `deepstack` [s, levels * d]; roles [s] and the rows that ask. `embedded` [s, d]: what entered the decoder
    at these rows; `entered`: how many visual ones did.
    """

    hidden: np.ndarray
    positions: np.ndarray
    block: np.ndarray
    deepstack: np.ndarray
    roles: Sequence[int]
    query: Sequence[int]
    number: Sequence[int]
    embedded: np.ndarray
    entered: int

    @classmethod
    def of(cls, trace: TurnTrace, turn: Turn) -> Rows:
        """The reference's own, behind the encoder's cut."""
        rows = trace.rows[0]
        levels, count, width = trace.deepstack.shape
        return cls(
            hidden=trace.embedded.numpy(),
            positions=trace.positions.numpy(),
            block=trace.block.numpy(),
            deepstack=trace.deepstack.transpose(0, 1)
            .reshape(count, levels * width)
            .numpy(),  # l s d -> s (l d)
            roles=[turn.roles[row] for row in rows],
            query=[rows.index(row) for row in turn.query],
            number=[turn.item[:row].count(turn.item[row]) for row in rows],
            embedded=trace.embedded.numpy(),
            entered=[turn.roles[row] for row in rows].count(VISUAL),
        )

    def only(self, kept: Sequence[int], hidden: np.ndarray) -> Rows:
        """Behind a cut: the kept rows, `hidden` of all rows as the segment before left it."""
        index = list(kept)
        return Rows(
            hidden=hidden,
            positions=self.positions[index],
            block=self.block[index],
            deepstack=self.deepstack[index],
            roles=[self.roles[row] for row in index],
            query=[index.index(row) for row in self.query if row in index],
            number=[self.number[row] for row in index],
            embedded=self.embedded[index],
            entered=self.entered,
        )


@dataclass(frozen=True)
class DecoderRun:
    """`logits` [rows alive at the end, v]; `cuts[key]` the rows kept; `layers[i]` [rows, d].

    `behind[key]` [rows kept, d] is what a cut hands on, where it comes out of a graph (segmented);
    `final_hidden` [rows, d] what the head reads, where the graphs say so.
    """

    logits: np.ndarray
    cuts: Mapping[str, tuple[int, ...]]
    layers: Mapping[int, np.ndarray]
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    behind: Mapping[str, np.ndarray] = field(default_factory=dict)
    final_hidden: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


class Driver:
    """The stages of one layout of a bundle, loaded on first use."""

    def __init__(
        self, bundle: Bundle, layout: str, *, probe: bool = False, backend: Backend | None = None
    ) -> None:
        """`probe` makes every layer's output visible; `backend` is for others than the ladder's sessions."""
        self._backend = backend
        self.manifest = bundle.manifest
        self.bundle, self.layout, self.probe = bundle, layout, probe
        self.stage_names = bundle.layout_stages(layout)
        self._graphs: dict[str, Graph | HostedGraph] = {}

    def graph(self, name: str) -> Graph | HostedGraph:
        """The session of a stage."""
        if name not in self._graphs and self._backend is not None:
            self._graphs[name] = HostedGraph(self.bundle, name, self._backend)
        elif name not in self._graphs:
            self._graphs[name] = Graph(self.bundle.stage_path(name), probe=self.probe)
        return self._graphs[name]

    @property
    def vision_stage(self) -> str:
        """Name of this layout's vision stage."""
        return self.stage_names[0]

    def decoder_stage(self, layer: int) -> str:
        """Name of the stage that holds a decoder layer."""
        names = self.stage_names[2:]
        groups = self.manifest.cache.groups
        return (
            names[0]
            if len(names) == 1
            else names[next(i for i, group in enumerate(groups) if layer in group)]
        )

    # --- vision and embeddings ------------------------------------------------------------------------------

    def vision(
        self, items: Sequence[VisualItem], words: Sequence[int], budgets: Mapping[str, Budget]
    ) -> list[ItemRun]:
        """Run the vision stage: all items in one call where the graph takes several, else one by one."""
        several = self.manifest.stages[self.vision_stage].inputs[0].shape[0] == "batch"
        groups = [list(items)] if several and items else [[item] for item in items]
        return [run for group in groups for run in self._look(group, words, budgets)]

    def _look(
        self, items: Sequence[VisualItem], words: Sequence[int], budgets: Mapping[str, Budget]
    ) -> list[ItemRun]:
        graph, count = self.graph(self.vision_stage), len(items)
        feeds = {name: np.concatenate([item.feeds[name] for item in items]) for name in items[0].feeds}
        if count == 1:
            feeds = dict(items[0].feeds)
        feeds["prompt_ids"] = np.array([list(words) or [-1]] * count, np.int64)
        if "text_feature" in graph.inputs:
            feeds["text_feature"] = np.stack([self.text_feature(words)] * count)
        feeds |= budget_feeds(budgets.get("encoder", METHOD_BUDGET), "", count)
        out = graph.run(feeds)
        orders = [tuple(int(i) for i in order) for order in out["order"]]
        kept = [order[: int(number)] for order, number in zip(orders, out["count"], strict=True)]
        features = _all_rows(out["features"], kept, [len(order) for order in orders])

        def own(value: np.ndarray, item: int) -> np.ndarray:
            tiles = len(value) // count  # several items in one call are of one size
            return value[item * tiles : (item + 1) * tiles]

        return [
            ItemRun(
                features[item],
                kept[item],
                orders[item],
                {i: own(out[name], item) for i, name in graph.layers.items() if name in out},
                {key: own(out[name], item) for key, name in graph.projections.items() if name in out},
            )
            for item in range(count)
        ]

    def embed(
        self,
        turn: Turn,
        features: Sequence[np.ndarray],
        kept: Sequence[Sequence[int]],
        positions: str | None = None,
    ) -> Rows:
        """The decoder's input for a turn whose items have `features` [n, c] and keep the rows `kept`."""
        sizes = [len(each) for each in features]
        starts = np.cumsum([0, *sizes])
        index = [int(starts[item]) + j for item, rows in enumerate(kept) for j in rows]
        alive = surviving_rows(turn, kept)
        visual = iter(range(len(index)))
        slots = [next(visual) if turn.item[row] >= 0 else -1 for row in alive]
        width = self.manifest.model.vision_width
        feeds: dict[str, np.ndarray] = {
            "input_ids": np.array([[turn.input_ids[row] for row in alive]], np.int64),
            "slot": np.array([slots], np.int64),
            "features": np.concatenate([np.zeros((0, width), np.float32), *features]).astype(np.float32),
            "kept_index": np.array(index, np.int64),
        }
        out = self.graph("embed").run(feeds)
        axes = turn.positions.shape[1]
        mode = positions or self.manifest.positions
        compact = np.arange(len(alive))[:, None].repeat(axes, axis=1)
        return Rows(
            hidden=out["hidden"][0],
            positions=compact if mode == "compact" else turn.positions[alive],
            block=np.array([turn.item[row] for row in alive]),
            deepstack=out["deepstack"][0] if "deepstack" in out else np.zeros((len(alive), 0), np.float32),
            roles=[turn.roles[row] for row in alive],
            query=[alive.index(row) for row in turn.query],
            number=[turn.item[:row].count(turn.item[row]) for row in alive],
            embedded=out["hidden"][0],
            entered=[turn.roles[row] for row in alive].count(VISUAL),
        )

    def text_feature(self, words: Sequence[int]) -> np.ndarray:
        """What the head reads [d] behind BOS and the words alone; zeros without both."""
        first = self.manifest.model.bos_token_id
        ids = tuple([] if first is None else [first]) + tuple(words)
        if not ids:
            return np.zeros(self.manifest.model.hidden_size, np.float32)
        axes = self.manifest.model.position_axes
        rows = self.embed(Turn.plain(ids, axes), [], [])
        return np.asarray(self.decoder(rows, {}).final_hidden[-1])

    # --- the decoder ----------------------------------------------------------------------------------------

    def decoder(self, rows: Rows, budgets: Mapping[str, Budget]) -> DecoderRun:
        """Prefill; every surviving row's logits are asked for."""
        run = self._fused if len(self.stage_names) == 3 else self._segmented
        return run(rows, budgets)

    def _fused(self, rows: Rows, budgets: Mapping[str, Budget]) -> DecoderRun:
        count = len(rows.roles)
        graph = self.graph(self.stage_names[2])
        feeds = self._feeds(graph, rows, budgets, range(self.manifest.model.num_layers))
        out = graph.run(feeds | {"logits_index": np.arange(count, dtype=np.int64)[None]})
        cuts, orders, alive = {}, {}, np.arange(count)
        for cut in self.manifest.decoder_cuts:
            cuts[cut.name], orders[cut.name] = _kept(out, cut.layer)
            alive = alive[list(cuts[cut.name])]
        layers = {i: out[name][0] for i, name in graph.layers.items() if name in out}
        return DecoderRun(
            out["logits"][0][alive], cuts, layers, orders, final_hidden=_final_hidden(out)[alive]
        )

    def _segmented(self, rows: Rows, budgets: Mapping[str, Budget]) -> DecoderRun:
        cuts: dict[str, tuple[int, ...]] = {}
        orders: dict[str, tuple[int, ...]] = {}
        layers: dict[int, np.ndarray] = {}
        behind: dict[str, np.ndarray] = {}
        kept: list[int] | None = None
        for index, group in enumerate(self.manifest.cache.groups):
            graph = self.graph(self.stage_names[2 + index])
            feeds = self._feeds(graph, rows, budgets, group)
            feeds["logits_index"] = np.arange(len(rows.roles), dtype=np.int64)[None]
            if kept is not None:
                feeds["kept_index"] = np.array([kept], np.int64)
            out = graph.run(feeds)
            layers |= {i: out[name][0] for i, name in graph.layers.items() if name in out}
            if index < len(self.manifest.decoder_cuts):
                cut = self.manifest.decoder_cuts[index]
                cuts[cut.name], orders[cut.name] = _kept(out, cut.layer)
                kept = list(cuts[cut.name])
                behind[cut.name] = out["hidden_out"][0][kept]
                # A layer that is the last of its graph has no name, unless DeepStack rows are added to it.
                layers.setdefault(group[-1], out["hidden_out"][0])
                rows = rows.only(kept, out["hidden_out"][0])
        return DecoderRun(out["logits"][0], cuts, layers, orders, behind, _final_hidden(out))

    def _feeds(
        self, graph: Graph | HostedGraph, rows: Rows, budgets: Mapping[str, Budget], layers: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Everything that a decoder graph may ask for, except which rows' logits and which rows to gather."""
        count, cache = len(rows.roles), self.manifest.cache
        axes = self.manifest.model.position_axes
        feeds: dict[str, np.ndarray] = {
            "hidden": rows.hidden[None].astype(np.float32),
            "position_ids": (rows.positions[:, 0] if axes == 1 else rows.positions)[None].astype(np.int64),
            "block": rows.block[None].astype(np.int64),
            "length": np.array([count], np.int64),
            "token_role": np.array([rows.roles], np.int64),
            "query_index": np.array([rows.query or [-1]], np.int64),
            "text_index": np.array([[row for row, role in enumerate(rows.roles) if role != 1]], np.int64),
            "embedded": rows.embedded[None].astype(np.float32),
            "entered": np.array([rows.entered], np.int64),
        }
        feeds |= self._one_tile(rows)
        if "deepstack" in graph.inputs:
            width = int(graph.inputs["deepstack"].shape[2])
            given = rows.deepstack if rows.deepstack.shape[1] else np.zeros((count, width), np.float32)
            feeds["deepstack"] = given[None].astype(np.float32)
        for group in range(len(cache.groups)):
            feeds[f"cache_length_{group}"] = feeds[f"text_cache_length_{group}"] = np.zeros(1, np.int64)
            feeds[f"total_length_{group}"] = np.array([count], np.int32)
            feeds[f"past_position_{group}"] = np.zeros((1, count), np.int64)
            feeds[f"past_text_{group}"] = np.full((1, 1), -1, np.int64)
        memory = [f"past_{part}_{i}" for i in layers for part in ("key", "value", "text_key", "text_value")]
        for name in (name for name in memory if name in graph.inputs):
            heads = int(graph.inputs[name].shape[1])
            feeds[name] = np.zeros((1, heads, count, cache.head_dim), host_dtype(cache.dtype))
        for cut in self.manifest.decoder_cuts:
            feeds |= budget_feeds(budgets.get(cut.name, METHOD_BUDGET), f"_l{cut.layer}", 1)
        return feeds

    def _one_tile(self, rows: Rows) -> dict[str, np.ndarray]:
        """For visual tokens with a window: all in one tile, which is slow, and the same function."""
        window = self.manifest.window
        if window is None:
            return {}
        visual = [row for row, role in enumerate(rows.roles) if role == 1]
        cell, place = np.full((1, len(rows.roles), 3), -1), np.zeros((1, len(rows.roles)), np.int64)
        for spot, row in enumerate(visual):
            cell[0, row] = rows.block[row], *divmod(rows.number[row], window.grid[1])
            place[0, row] = spot
        tile = np.array([[visual or [-1]]], np.int64)
        return {"visual_tile": tile, "visual_near": tile, "visual_place": place, "cell": cell}


def surviving_rows(turn: Turn, kept: Sequence[Sequence[int]]) -> list[int]:
    """Rows of the unpruned prompt that the encoder's cut leaves."""
    seen = [0] * len(kept)
    alive = []
    for row, item in enumerate(turn.item):
        if item >= 0:
            seen[item] += 1
        if item < 0 or seen[item] - 1 in kept[item]:
            alive.append(row)
    return alive


def budget_feeds(budget: Budget, suffix: str, batch: int) -> dict[str, np.ndarray]:
    """The inputs of one site's budget, the same for each of `batch` rows."""
    return {
        f"keep_ratio{suffix}": np.full(batch, budget.keep_ratio, np.float32),
        f"keep_tokens{suffix}": np.full(batch, budget.keep_tokens, np.int64),
        f"seed{suffix}": np.full(batch, budget.seed, np.int64),
    }


def _all_rows(features: np.ndarray, kept: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[np.ndarray]:
    """Features [n, c] of each item, of both kinds of graphs; those that were not gathered are zero."""
    if features.ndim == 3:
        return list(features)
    starts = np.cumsum([0, *map(len, kept)])
    every = []
    for item, rows in enumerate(kept):
        full = np.zeros((sizes[item], features.shape[1]), np.float32)
        full[list(rows)] = features[starts[item] : starts[item + 1]]
        every.append(full)
    return every


def _final_hidden(out: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows [m, d] that the head read; m rows of nothing where the graph does not give them."""
    return out["final_hidden"][0] if "final_hidden" in out else np.zeros((out["logits"].shape[1], 0))


def _kept(out: Mapping[str, np.ndarray], layer: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The kept rows that a cut reports, and its whole order."""
    order = tuple(int(row) for row in out[f"order_l{layer}"][0])
    return order[: int(out[f"count_l{layer}"][0])], order
