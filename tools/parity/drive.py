"""A bundle's graphs driven by hand, one prompt at a time: the ladder's own small host.

It shares nothing with the runtime's host code, so that a fault in either shows; and it can look inside: with
`probe`, the output of every layer comes out (see `graphs.py`). Prefill only: empty caches, one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foveate.runtime.bundle import Bundle
from foveate.tools.parity.choose import Budget
from foveate.tools.parity.graphs import Graph
from foveate.tools.parity.prompts import Turn

METHOD_BUDGET = Budget()
KEEP_ALL = Budget(keep_ratio=1.0)


@dataclass(frozen=True)
class VisionRun:
    """`features` [b, n, c] (fused: dropped rows are zero), kept patches per image, layers' outputs."""

    features: np.ndarray
    patches: tuple[tuple[int, ...], ...]
    layers: Mapping[int, np.ndarray]
    projections: Mapping[tuple[int, str], np.ndarray]
    orders: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class DecoderRun:
    """`logits` [rows alive at the end, v]; `cuts[key]` the rows kept; `layers[i]` [rows, d]."""

    logits: np.ndarray
    cuts: Mapping[str, tuple[int, ...]]
    layers: Mapping[int, np.ndarray]
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Driver:
    """The stages of one layout of a bundle, loaded on first use."""

    def __init__(self, bundle: Bundle, layout: str, *, probe: bool = False) -> None:
        """`probe` makes every layer's output visible."""
        self.manifest = bundle.manifest
        self.bundle, self.layout, self.probe = bundle, layout, probe
        self.stage_names = bundle.layout_stages(layout)
        self._graphs: dict[str, Graph] = {}

    def graph(self, name: str) -> Graph:
        """The session of a stage."""
        if name not in self._graphs:
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

    # --- stages ---------------------------------------------------------------------------------------------

    def vision(self, pixel_values: np.ndarray, budgets: Mapping[str, Budget]) -> VisionRun:
        """Run the vision stage on `pixel_values` [b, 3, height, width]."""
        images, total = len(pixel_values), self.manifest.model.visual_tokens_per_image
        graph = self.graph(self.vision_stage)
        feeds: dict[str, np.ndarray] = {"pixel_values": pixel_values.astype(np.float32)}
        feeds |= budget_feeds(budgets.get("encoder", METHOD_BUDGET), "", images)
        out = graph.run(feeds)
        counts = [int(count) for count in out["count"]]
        orders = tuple(tuple(int(i) for i in order) for order in out["order"])
        patches = tuple(order[:count] for order, count in zip(orders, counts, strict=True))
        features = out["features"]
        if features.ndim == 2:  # fused: the kept rows only, image after image
            full = np.zeros((images, total, features.shape[1]), np.float32)
            starts = np.cumsum([0, *counts])
            for image, kept in enumerate(patches):
                full[image, list(kept)] = features[starts[image] : starts[image + 1]]
            features = full
        layers = {i: out[name] for i, name in graph.layers.items() if name in out}
        projections = {key: out[name] for key, name in graph.projections.items() if name in out}
        return VisionRun(features, patches, layers, projections, orders)

    def embed(self, turn: Turn, features: np.ndarray, patches: Sequence[Sequence[int]]) -> np.ndarray:
        """The decoder's input [s, d] for a turn whose images keep `patches`; `features` is [b, n, c]."""
        total = self.manifest.model.visual_tokens_per_image
        flat = features.reshape(-1, features.shape[-1])  # [b, n, c] -> [b * n, c]
        kept = [image * total + j for image, rows in enumerate(patches) for j in rows]
        rows = self.rows(turn, patches)
        image_token = self.manifest.model.image_token_id
        ids = [turn.input_ids[row] for row in rows]
        visual = iter(range(len(kept)))
        slots = [next(visual) if token == image_token and kept else -1 for token in ids]
        feeds: dict[str, np.ndarray] = {
            "input_ids": np.array([ids], np.int64),
            "slot": np.array([slots], np.int64),
            "features": flat.astype(np.float32),
            "kept_index": np.array(kept, np.int64),
        }
        return np.asarray(self.graph("embed").run(feeds)["hidden"][0])

    def rows(self, turn: Turn, patches: Sequence[Sequence[int]]) -> list[int]:
        """Rows of the unpruned prompt that the encoder's cut leaves."""
        total = self.manifest.model.visual_tokens_per_image
        kept = {image * total + j for image, rows in enumerate(patches) for j in rows}
        alive, seen = [], 0
        for row, token in enumerate(turn.input_ids):
            if token != self.manifest.model.image_token_id or not patches:
                alive.append(row)
                continue
            if seen in kept:
                alive.append(row)
            seen += 1
        return alive

    def decoder(
        self,
        hidden: np.ndarray,
        positions: Sequence[int],
        roles: Sequence[int],
        question: Sequence[int],
        budgets: Mapping[str, Budget],
    ) -> DecoderRun:
        """Prefill from `hidden` [s, d]; every surviving row's logits are asked for."""
        run = self._fused if len(self.stage_names) == 3 else self._segmented
        return run(hidden, list(positions), list(roles), list(question), budgets)

    def _fused(
        self,
        hidden: np.ndarray,
        positions: list[int],
        roles: list[int],
        question: list[int],
        budgets: Mapping[str, Budget],
    ) -> DecoderRun:
        rows = len(positions)
        graph = self.graph(self.stage_names[2])
        feeds = self._feeds(
            hidden, positions, roles, question, budgets, range(self.manifest.model.num_layers)
        )
        out = graph.run(feeds | {"logits_index": np.arange(rows, dtype=np.int64)[None]})
        cuts, orders, alive = {}, {}, np.arange(rows)
        for cut in self.manifest.decoder_cuts:
            cuts[cut.name], orders[cut.name] = _kept(out, cut.layer)
            alive = alive[list(cuts[cut.name])]
        layers = {i: out[name][0] for i, name in graph.layers.items() if name in out}
        return DecoderRun(out["logits"][0][alive], cuts, layers, orders)

    def _segmented(
        self,
        hidden: np.ndarray,
        positions: list[int],
        roles: list[int],
        question: list[int],
        budgets: Mapping[str, Budget],
    ) -> DecoderRun:
        cuts: dict[str, tuple[int, ...]] = {}
        orders: dict[str, tuple[int, ...]] = {}
        layers: dict[int, np.ndarray] = {}
        kept: list[int] | None = None
        for index, group in enumerate(self.manifest.cache.groups):
            graph = self.graph(self.stage_names[2 + index])
            feeds = self._feeds(hidden, positions, roles, question, budgets, group)
            feeds["logits_index"] = np.arange(len(positions), dtype=np.int64)[None]
            if kept is not None:
                feeds["kept_index"] = np.array([kept], np.int64)
            out = graph.run(feeds)
            layers |= {i: out[name][0] for i, name in graph.layers.items() if name in out}
            if index < len(self.manifest.decoder_cuts):
                cut = self.manifest.decoder_cuts[index]
                cuts[cut.name], orders[cut.name] = _kept(out, cut.layer)
                kept = list(cuts[cut.name])
                hidden = out["hidden_out"][0]
                layers[group[-1]] = hidden
                positions, roles = [positions[row] for row in kept], [roles[row] for row in kept]
                question = [kept.index(row) for row in question if row in kept]
        return DecoderRun(out["logits"][0], cuts, layers, orders)

    def _feeds(
        self,
        hidden: np.ndarray,
        positions: list[int],
        roles: list[int],
        question: list[int],
        budgets: Mapping[str, Budget],
        layers: Sequence[int],
    ) -> dict[str, np.ndarray]:
        """Everything that a decoder graph may ask for, except which rows' logits and which rows to gather."""
        rows, cache = len(positions), self.manifest.cache
        feeds: dict[str, np.ndarray] = {
            "hidden": hidden[None].astype(np.float32),
            "position_ids": np.array([positions], np.int64),
            "length": np.array([rows], np.int64),
            "token_role": np.array([roles], np.int64),
            "query_index": np.array([question or [-1]], np.int64),
        }
        feeds |= {f"cache_length_{group}": np.zeros(1, np.int64) for group in range(len(cache.groups))}
        empty = np.zeros((1, cache.num_kv_heads, rows, cache.head_dim), np.float32)
        feeds |= {f"past_{part}_{layer}": empty for layer in layers for part in ("key", "value")}
        for cut in self.manifest.decoder_cuts:
            feeds |= budget_feeds(budgets.get(cut.name, METHOD_BUDGET), f"_l{cut.layer}", 1)
        return feeds


def budget_feeds(budget: Budget, suffix: str, batch: int) -> dict[str, np.ndarray]:
    """The inputs of one site's budget, the same for each of `batch` rows."""
    return {
        f"keep_ratio{suffix}": np.full(batch, budget.keep_ratio, np.float32),
        f"keep_tokens{suffix}": np.full(batch, budget.keep_tokens, np.int64),
        f"seed{suffix}": np.full(batch, budget.seed, np.int64),
    }


def _kept(out: Mapping[str, np.ndarray], layer: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The kept rows that a cut reports, and its whole order."""
    order = tuple(int(row) for row in out[f"order_l{layer}"][0])
    return order[: int(out[f"count_l{layer}"][0])], order
