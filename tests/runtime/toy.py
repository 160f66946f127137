"""A small model in numpy behind the backend's interface, and a family for it: all that LLaVA has not.

Images of any size (a visual token for each 10 x 10 pixels), videos, runs with text between them, three axes
of positions, DeepStack rows, images that see ahead, a window by cached positions, scores. Two layouts, from
the same layers: what the host carries between the graphs of one agrees with what the other does inside.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import make
import numpy as np
import pytest
import tiny
from PIL import Image

from foveate.runtime.arrays import ints
from foveate.runtime.backend import NO_BINDINGS
from foveate.runtime.bundle import BundleWriter
from foveate.runtime.cache import allocate_numpy, in_steps
from foveate.runtime.families import VisualItem, grid_boxes
from foveate.runtime.manifest import Manifest, Stage
from foveate.runtime.model import Model
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.processor import Processor

C, D, HEAD, LAYERS, VOCABULARY, CUT = 6, 8, 4, 3, 272, 1
PATCH = 10
RANDOM = np.random.default_rng(7)
TABLE = RANDOM.normal(size=(VOCABULARY, D)).astype(np.float32)
CONNECT = RANDOM.normal(size=(C, D)).astype(np.float32)
LEVELS = 2  # DeepStack rows: before the cut and behind it
DEEP = RANDOM.normal(size=(C, LEVELS * D)).astype(np.float32)
WEIGHTS = [{name: RANDOM.normal(size=(D, D)) / 2 for name in "qkvo"} for _ in range(LAYERS)]
HEADS = RANDOM.normal(size=(D, VOCABULARY)).astype(np.float32)
WINDOW = 9


class Preprocessor:
    """An image is a run of tokens in brackets, a video a run for each frame, with its time before it."""

    placeholders: Mapping[str, str] = {"image": "<image>", "video": "<video>"}
    made = 0

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        assert facts == {"patch": PATCH}

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        return _item("image", [image], f"{of}[<image>]")

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        return _item("video", frames, "".join(f"{i / fps:.1f}s<image>" for i in range(len(frames))))


def _item(kind: str, frames: Sequence[Image.Image], text: str) -> VisualItem:
    Preprocessor.made += 1
    columns, rows = frames[0].width // PATCH, frames[0].height // PATCH
    n, t = rows * columns, len(frames)
    small = [np.asarray(f.resize((columns, rows), Image.Resampling.BOX), np.float32) / 255 for f in frames]
    colors = np.stack(small).reshape(t * n, 3)  # t r c 3 -> (t r c) 3
    y, x = np.mgrid[0:rows, 0:columns]
    grid = np.stack([0 * y, y, x], axis=-1).reshape(n, 3)
    return VisualItem(
        kind=kind,
        feeds={"patches": np.concatenate([colors, colors**2], axis=1)},
        text=text,
        runs=ints([n] * t),
        positions=np.concatenate([grid] * t),
        spans=ints([max(rows, columns)] * t),
        boxes=np.concatenate([grid_boxes(rows, columns)] * t),
        frame=np.repeat(np.arange(t), n),
    )


# --- the graphs ---------------------------------------------------------------------------------------------


class Runner:
    """A stage as a function; remembers what it was fed."""

    def __init__(self, name: str, stage: Stage, log: list[tuple[str, dict[str, Any]]]) -> None:
        self.name, self.stage, self._log = name, stage, log

    def run(self, feeds: Mapping[str, Any], bindings: Mapping[str, Any] = NO_BINDINGS) -> dict[str, Any]:
        own = {spec.name: feeds[spec.name] for spec in self.stage.inputs if spec.name not in bindings}
        self._log.append((self.name, own))
        if self.name.startswith("vision"):
            return look(own, gather=self.name == "vision")
        if self.name == "embed":
            return embed(own)
        first, last = {"decoder": (0, LAYERS), "decoder_0": (0, CUT), "decoder_1": (CUT, LAYERS)}[self.name]
        return decode(own, bindings, first, last)


class Backend:
    name = "toy"
    notes = ()

    def __init__(self) -> None:
        self.log: list[tuple[str, dict[str, Any]]] = []

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        return Runner(name, stage, self.log)

    def allocate(self, shape: Sequence[int], dtype: str) -> Any:
        return allocate_numpy(shape, dtype)

    def close(self) -> None:
        pass

    def capacity(self, store: int, needed: int) -> int:
        return in_steps(store, needed)

    def require_rows(self, batch: int) -> None:
        pass

    def require_prompt(self, batch: int, lengths: Sequence[int]) -> None:
        pass


def look(feeds: Mapping[str, Any], *, gather: bool) -> dict[str, Any]:
    """Keeps the brightest; without a budget half of them."""
    patches = feeds["patches"]
    n, score = len(patches), patches[:, 0]
    ratio, tokens = feeds["keep_ratio"], feeds["keep_tokens"]
    assert ratio.shape == tokens.shape == feeds["seed"].shape == (1,)
    assert feeds["prompt_ids"].shape[0] == 1
    count = min(n, int(tokens[0]) or max(1, int(np.ceil(n * (ratio[0] or 0.5)))))
    best = np.argsort(-score, kind="stable")
    order = np.concatenate([np.sort(best[:count]), np.sort(best[count:])])[None]
    features = patches[order[0, :count]] if gather else patches[None]
    return {"features": features, "order": order, "count": ints([count]), "score": score[None]}


def embed(feeds: Mapping[str, Any]) -> dict[str, Any]:
    kept, slot = feeds["features"][feeds["kept_index"]], feeds["slot"]
    hidden, deepstack = TABLE[feeds["input_ids"]].copy(), np.zeros((*slot.shape, LEVELS * D), np.float32)
    hidden[slot >= 0] = kept[slot[slot >= 0]] @ CONNECT
    deepstack[slot >= 0] = kept[slot[slot >= 0]] @ DEEP
    return {"hidden": hidden, "deepstack": deepstack}


def decode(feeds: Mapping[str, Any], memory: Mapping[str, Any], first: int, last: int) -> dict[str, Any]:
    """The layers of one graph; the cut after layer `CUT` is inside, or at its end."""
    chunk = {name: feeds[name] for name in ("position_ids", "block", "deepstack") if name in feeds}
    chunk["hidden"], length, out = feeds["hidden"], feeds["length"], {}
    index = feeds.get("logits_index")
    if "kept_index" in feeds:
        chunk["hidden"] = _rows(chunk["hidden"], feeds["kept_index"])
    for layer in range(first, last):
        group = int(layer >= CUT)
        past = [feeds[f"{name}_{group}"] for name in ("cache_length", "past_position")]
        chunk["hidden"] = _layer(layer, chunk, length, *past, memory)
        if layer < LEVELS:
            chunk["hidden"] = chunk["hidden"] + chunk["deepstack"][:, :, layer * D : (layer + 1) * D]
        if layer == CUT - 1:
            order, length = _cut(chunk["hidden"], feeds, length)
            out |= {"order_l1": order, "count_l1": length}
            if last > CUT:
                kept = order[:, : length.max()]
                chunk = {name: _rows(value, kept) for name, value in chunk.items()}
                place = np.take_along_axis(np.argsort(order, axis=1), index, axis=1)
                index = np.where(place < length[:, None], place, 0)
    if last < LAYERS:
        return out | {"hidden_out": chunk["hidden"]}
    return out | {"logits": _rows(chunk["hidden"], index) @ HEADS}


def _rows(values: Any, index: Any) -> Any:
    return np.stack([row[chosen] for row, chosen in zip(values, index, strict=True)])


def _layer(layer: int, chunk: Any, length: Any, filled: Any, places: Any, memory: Mapping[str, Any]) -> Any:
    """Attention by content and by distance, in a window; an image's tokens see the whole of their image."""
    hidden, out = chunk["hidden"], chunk["hidden"].copy()
    key, value = memory[f"past_key_{layer}"], memory[f"past_value_{layer}"]
    assert memory[f"present_key_{layer}"] is key
    assert places.shape == (len(hidden), key.shape[2])
    for b, size in enumerate(length):
        old, rows = int(filled[b]), hidden[b, :size].astype(np.float64)
        q, k, v = (np.tanh(rows @ WEIGHTS[layer][name]) for name in "qkv")
        key[b, 0, old : old + size], value[b, 0, old : old + size] = k[:, :HEAD], v[:, :HEAD]
        position, block = chunk["position_ids"][b, :size], chunk["block"][b, :size]
        stands = np.concatenate([places[b, :old], position[:, 0]])
        for i in range(size):
            sees = np.arange(old + size) <= old + i
            sees[old:] |= (block == block[i]) & (block[i] >= 0)
            far = np.abs(stands - position[i, 0])
            sees &= far < WINDOW
            weight = np.exp(key[b, 0, : old + size] @ q[i, :HEAD] - 0.1 * far) * sees
            mixed = weight @ value[b, 0, : old + size] / weight.sum()
            mixed = np.concatenate([mixed, np.cos(position[i].mean()) * mixed])
            out[b, i] = rows[i] / 2 + mixed @ WEIGHTS[layer]["o"]
    return out.astype(np.float32)


def _cut(hidden: Any, feeds: Mapping[str, Any], length: Any) -> tuple[Any, Any]:
    """Keeps everything but the worse half of the visual tokens; ratio 1 keeps these too."""
    orders, counts = [], []
    for b, size in enumerate(length):
        visual = np.flatnonzero(feeds["token_role"][b, :size] == 1)
        share = float(feeds["keep_ratio_l1"][b]) or 0.5
        goes = visual[np.argsort(-hidden[b, visual, 0], kind="stable")][int(np.ceil(len(visual) * share)) :]
        stays = np.setdiff1d(np.arange(size), goes)
        orders.append(np.concatenate([stays, np.setdiff1d(np.arange(hidden.shape[1]), stays)]))
        counts.append(len(stays))
    return ints(orders), ints(counts)


# --- the bundle ---------------------------------------------------------------------------------------------

_MANY = {"dtype": "float32", "shape": ["batch"]}
_EVIDENCE = ("token_role", "query_index", "keep_ratio_l1", "keep_tokens_l1")
_COMMON = ("hidden", "position_ids", "length", "block", "cache_length_0", "past_position_0", "deepstack")
_STAGES = {
    "vision": (("patches", "keep_ratio", "keep_tokens", "seed", "prompt_ids"), ("features", "score")),
    "embed": (("input_ids", "slot", "features", "kept_index"), ("hidden", "deepstack")),
    "decoder": ((*_COMMON, *_EVIDENCE, "logits_index", "cache_length_1", "past_position_1"), ("logits",)),
    "decoder_0": ((*_COMMON, *_EVIDENCE), ("hidden_out",)),
    "decoder_1": (
        (*_COMMON[:4], "deepstack", "kept_index", "cache_length_1", "past_position_1", "logits_index"),
        ("logits",),
    ),
}
_STAGES["vision_segmented"] = _STAGES["vision"]


def manifest(image_token_id: int) -> Manifest:
    base = make.manifest()
    sizes = {"vocab_size": VOCABULARY, "max_positions": 512, "hidden_size": D, "vision_width": C}
    family = {"position_axes": 3, "vision": {"patch": PATCH}, "visual_tokens": None}
    model = base.model.model_dump() | sizes | family | {"image_token_id": image_token_id, "eos_token_ids": []}
    stages = {
        name: {
            "file": f"onnx/{name.split('_')[0]}.onnx",
            "inputs": [{"name": each, "dtype": "float32", "shape": ["tokens"]} for each in inputs],
            "outputs": [{"name": each, **_MANY} for each in outputs],
        }
        for name, (inputs, outputs) in _STAGES.items()
    }
    return make.manifest(
        family="toy",
        model=model,
        positions="original",
        stages=stages,
        layouts={
            "fused": ["vision", "embed", "decoder"],
            "segmented": ["vision_segmented", "embed", "decoder_0", "decoder_1"],
        },
        cache=base.cache.model_dump() | {"positions": True},
    )


def make_pipeline(folder: Path, layout: str, patch: pytest.MonkeyPatch) -> Pipeline:
    """The toy behind the public interface; `model._backend.log` tells what its graphs were fed."""
    module = ModuleType("foveate.runtime.families.toy")
    module.Preprocessor = Preprocessor  # type: ignore[attr-defined]
    patch.setitem(sys.modules, module.__name__, module)
    tokenizer = tiny.make_tokenizer()
    with BundleWriter(folder / f"toy-{layout}") as writer:
        make.write_files(writer.path)
        tokenizer.save_pretrained(writer.path / "processor")
        template = tiny.CHAT_TEMPLATE.replace(
            "{% else %}{{ part['text'] }}",
            "{% elif part['type'] == 'video' %}{{ '<video>' }}{% else %}{{ part['text'] }}",
        )
        (writer.path / "processor" / "chat_template.jinja").write_text(template)
        bundle = writer.finish(manifest(tokenizer.convert_tokens_to_ids("<image>")))
    processor = Processor(bundle.processor_path, bundle.manifest.model, "toy")
    return Pipeline(bundle, Model(bundle, layout, Backend()), processor)
