"""The stages of a bundle in one layout: images to visual tokens, ids to hidden rows, these to logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from foveate.runtime.arrays import Array, Arrays, Floats, Ints, Memory, ints
from foveate.runtime.backend import Backend, Runner
from foveate.runtime.bundle import Bundle
from foveate.runtime.cache import KVCache
from foveate.runtime.chunk import FIXED, VisualTokens
from foveate.runtime.decoder import Decoder, DecoderInput, FusedDecoder, SegmentedDecoder
from foveate.runtime.families import VisualItem
from foveate.runtime.manifest import CutRecord

# More images than this go through the vision stage in several calls, so that memory stays bounded.
MAX_IMAGES_PER_CALL = 16

_DECODERS: dict[str, Callable[[Sequence[Runner], Sequence[CutRecord]], Decoder]] = {
    "fused": lambda runners, cuts: FusedDecoder(runners[0], cuts),
    "segmented": SegmentedDecoder,
}


class EmbeddedRows(NamedTuple):
    """`hidden` float32 `[b, s, d]`; `deepstack` float32 `[b, s, levels * d]` of models that have it."""

    hidden: Floats
    deepstack: Floats | None


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

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()

    @property
    def reads_words(self) -> bool:
        """Whether the vision stage looks at the user's words."""
        return self._vision.stage.has_input("prompt_ids") or self._reads_text

    @property
    def _reads_text(self) -> bool:
        """Whether it looks at them through the decoder."""
        return self._vision.stage.has_input("text_feature")

    @property
    def window(self) -> int | None:
        """How many rows and columns of its image a visual token sees; None for all before it."""
        return self.manifest.window.size if self.manifest.window else None

    @property
    def gives_scores(self) -> bool:
        """Whether the vision stage says how much each visual token is worth."""
        return self._vision.stage.has_output("score")

    @property
    def backend(self) -> Backend:
        """What runs the graphs."""
        return self._backend

    def allocate(self, shape: Sequence[int], dtype: str) -> Memory:
        """Zeroed memory that the graphs can be bound to."""
        return self._backend.allocate(shape, dtype)

    def capacity(self, store: int, needed: int) -> int:
        """See `Backend.capacity`."""
        return self._backend.capacity(store, needed)

    def require_rows(self, batch: int) -> None:
        """See `Backend.require_rows`."""
        self._backend.require_rows(batch)

    def require_prompts(self, lengths: Sequence[Sequence[int]]) -> None:
        """See `Backend.require_prompt`; `lengths` are those of each prompt, `budgets.least_lengths`."""
        self._backend.require_prompt(len(lengths), [max(each) for each in zip(*lengths, strict=True)])

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for `batch` sequences."""
        return KVCache(self.manifest.cache, batch, self._backend.allocate, self._backend.capacity)

    def look(
        self, items: Sequence[VisualItem], budgets: Arrays, words: Sequence[Ints] | None = None
    ) -> VisualTokens:
        """Visual tokens of some items; `budgets` are the other inputs `[items]`.

        `words` are the ids of the user's words for each item, for methods that look at them.
        """
        if not items:
            return VisualTokens.none(self.manifest.model.vision_width)
        feeds: dict[str, Array] = dict(budgets)
        said = words or [ints([])] * len(items)
        if self._vision.stage.has_input("prompt_ids"):
            feeds["prompt_ids"] = _padded(said)
        if self._reads_text:
            feeds["text_feature"] = self._text_features(said)
        step = MAX_IMAGES_PER_CALL if self._takes_several else 1
        parts = []
        for start in range(0, len(items), step):
            some = slice(start, start + step)
            own = {name: value[some] for name, value in feeds.items()}
            parts.append(_visual_tokens(self._vision.run({**own, **_stacked(items[some])})))
        return VisualTokens.joined(parts)

    def _text_features(self, words: Sequence[Ints]) -> Floats:
        """The decoder's last hidden state `[items, d]` of the words alone, BOS before them, at the last one.

        Without words and BOS there is no state: zeros.
        """
        bos = self.manifest.model.bos_token_id
        before = () if bos is None else (bos,)
        said = [(*before, *(int(token) for token in ids)) for ids in words]
        states = {ids: self._last_state(ints(ids)) if ids else self._no_state() for ids in set(said)}
        return np.stack([states[ids] for ids in said])

    def _last_state(self, ids: Ints) -> Floats:
        """Final hidden state `[d]` behind the last of some ids `[t]`, read as text without any image."""
        t, axes = len(ids), self.manifest.model.position_axes
        embedded = self.embed(ids[None], np.full((1, t), -1, np.int64))
        places = np.arange(t)[None]  # 1 t
        names = {spec.name for stage in self.manifest.stages.values() for spec in stage.inputs}
        ratios = {n: np.zeros(1, np.float32) for n in names if n.startswith("keep_ratio_l")}
        counts = {n: np.zeros(1, np.int64) for n in names if n.startswith(("keep_tokens_l", "seed_l"))}
        out = self.decoder.run(
            DecoderInput(
                hidden=embedded.hidden,
                position_ids=places if axes == 1 else np.repeat(places[:, :, None], axes, axis=2),
                token_role=np.full((1, t), FIXED, np.int64),
                length=ints([t]),
                query_index=ints([[-1]]),
                logits_index=ints([[t - 1]]),
                budgets={**ratios, **counts},
                block=np.full((1, t), -1, np.int64),
                deepstack=embedded.deepstack,
                window=self.window,
            ),
            self.new_cache(1),
        )
        assert out.final_hidden is not None, "a graph that reads the text comes with one that gives it"
        state: Floats = out.final_hidden[0, 0]
        return state

    def _no_state(self) -> Floats:
        return np.zeros(self.manifest.model.hidden_size, np.float32)

    @property
    def _takes_several(self) -> bool:
        """Whether items have one size, so that several fit into one call."""
        return self._vision.stage.inputs[0].shape[0] == "batch"

    def embed(self, input_ids: Ints, slots: Ints, visual: VisualTokens | None = None) -> EmbeddedRows:
        """Rows of ids and slots `[b, s]`; slots count the kept rows of `visual`."""
        visual = visual or VisualTokens.none(self.manifest.model.vision_width)
        feeds: dict[str, Array] = {
            "input_ids": input_ids,
            "slot": slots,
            "features": visual.features,
            "kept_index": visual.kept_index,
        }
        out = self._embed.run(feeds)
        return EmbeddedRows(out["hidden"], out.get("deepstack"))


def _padded(words: Sequence[Ints]) -> Ints:
    """Ids `[items, t]`, -1 behind the words; at least one column."""
    width = max(1, *(len(ids) for ids in words))
    out = np.full((len(words), width), -1, np.int64)
    for row, ids in zip(out, words, strict=True):
        row[: len(ids)] = ids
    return out


def _stacked(items: Sequence[VisualItem]) -> Arrays:
    """The feeds of some items as those of one call."""
    if len(items) == 1:
        return items[0].feeds
    return {name: np.concatenate([item.feeds[name] for item in items]) for name in items[0].feeds}


def _visual_tokens(out: Mapping[str, Array]) -> VisualTokens:
    """Of both kinds of vision graphs: `features` is `[k, c]`, the kept rows; or `[b, n, c]`, all of them."""
    features, order, count = out["features"], out["order"], out["count"]
    score = tuple(out["score"]) if "score" in out else None
    if features.ndim == 2:
        return VisualTokens(features, np.arange(len(features)), tuple(order), count, score)
    b, n, c = features.shape
    kept = [item * n + order[item, : count[item]] for item in range(b)]
    rows = features.reshape(b * n, c)  # b n c -> (b n) c
    return VisualTokens(rows, np.concatenate(kept), tuple(order), count, score)
