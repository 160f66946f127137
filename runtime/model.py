"""The stages of a bundle in one layout: pixels to visual tokens, ids to hidden rows, these to logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foveate.runtime.arrays import Array, Arrays, Floats, Ints, ints
from foveate.runtime.backend import Backend, Runner
from foveate.runtime.bundle import Bundle
from foveate.runtime.cache import KVCache
from foveate.runtime.chunk import VisualTokens
from foveate.runtime.decoder import Decoder, FusedDecoder, SegmentedDecoder
from foveate.runtime.manifest import CutRecord

# More images than this go through the vision stage in several calls, so that memory stays bounded.
MAX_IMAGES_PER_CALL = 16

_DECODERS: dict[str, Callable[[Sequence[Runner], Sequence[CutRecord]], Decoder]] = {
    "fused": lambda runners, cuts: FusedDecoder(runners[0], cuts),
    "segmented": SegmentedDecoder,
}


class Model:
    """Loaded graphs. Knows only ids and arrays: no text, no options, no sampling.

    Raises:
        UsageError: the bundle lacks the layout.
        BackendError: a graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, layout: str, backend: Backend) -> None:
        self.manifest = bundle.manifest
        self.layout = layout
        self._backend = backend
        names = bundle.layout_stages(layout)
        runners = [
            backend.open(bundle.stage_path(name), name, bundle.manifest.stages[name]) for name in names
        ]
        self._vision, self._embed = runners[:2]
        self.decoder = _DECODERS[layout](runners[2:], bundle.manifest.decoder_cuts)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for `batch` sequences."""
        return KVCache(self.manifest.cache, batch, self._backend.allocate)

    def look(self, pixel_values: Floats, budgets: Arrays) -> VisualTokens:
        """Visual tokens of `pixel_values [b, 3, height, width]`; `budgets` are the other inputs `[b]`."""
        if not len(pixel_values):
            return VisualTokens.none(self.manifest.model.vision_width)
        parts = []
        for start in range(0, len(pixel_values), MAX_IMAGES_PER_CALL):
            some = slice(start, start + MAX_IMAGES_PER_CALL)
            feeds: dict[str, Array] = {name: value[some] for name, value in budgets.items()}
            feeds["pixel_values"] = pixel_values[some]
            out = self._vision.run(feeds)
            parts.append(_visual_tokens(out["features"], out["order"], out["count"]))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def embed(self, input_ids: Ints, slots: Ints, visual: VisualTokens | None = None) -> Floats:
        """Hidden rows `[b, s, d]` of ids and slots `[b, s]`; slots count the kept rows of `visual`."""
        visual = visual or VisualTokens.none(self.manifest.model.vision_width)
        feeds: dict[str, Array] = {
            "input_ids": input_ids,
            "slot": slots,
            "features": visual.features,
            "kept_index": visual.kept_index,
        }
        return self._embed.run(feeds)["hidden"]


def _visual_tokens(features: Floats, order: Ints, count: Ints) -> VisualTokens:
    """Of both kinds of vision graphs: `features` is `[k, c]`, the kept rows; or `[b, n, c]`, all of them."""
    if features.ndim == 2:
        return VisualTokens(features, np.arange(len(features)), order, count)
    b, n, c = features.shape
    kept = [image * n + order[image, : count[image]] for image in range(b)]
    return VisualTokens(features.reshape(b * n, c), np.concatenate(kept), order, count)  # b n c -> (b n) c


def _joined(parts: Sequence[VisualTokens]) -> VisualTokens:
    """The images of several calls as if of one."""
    starts = np.cumsum([0] + [len(part.features) for part in parts[:-1]])
    return VisualTokens(
        features=np.concatenate([part.features for part in parts]),
        kept_index=ints(
            np.concatenate([part.kept_index + at for part, at in zip(parts, starts, strict=True)])
        ),
        order=np.concatenate([part.order for part in parts]),
        count=np.concatenate([part.count for part in parts]),
    )
