"""What the oracles of all families share: transformers' processor, its decoder layers, its `generate`.

`TextOracle` serves Llama-like text models (llama, mistral, qwen2, qwen3, m-RoPE ones) as it is. A family adds
`items`, and what its text model does otherwise: `positions`, `rotary`, `sees`, `embed`, `logits`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from foveate.tools.parity.facts import NoOracleError
from foveate.tools.parity.families import Encoded, ItemTrace, LayerRun, Video

K = TypeVar("K", bound=Hashable)

# What a checkpoint without any chat template gets: LLaVA-1.5's.
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for p in m['content'] if p['type'] == 'image' %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}"
    "{% endfor %}ASSISTANT:"
)
# What the tokenizer and the processor return for the ladder, not for the model.
_NOT_FOR_THE_MODEL = ("input_ids", "attention_mask", "offset_mapping", "text_replacement_offsets")


class TextOracle:
    """One checkpoint in float32 with eager attention; see `Oracle` for what the methods mean.

    `text_model` is where `model.model` has its text model.
    """

    text_model = "language_model"
    mixes_kinds = True

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        factory: Any = AutoModelForImageTextToText
        self.model: Any = factory.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.config: Any = self.model.config
        self.text: Any = getattr(self.model.model, self.text_model)
        films = self.video_processor(checkpoint)
        self.takes_videos = films is not None
        self.processor: Any = load_processor(checkpoint, type(self.config), films)
        self.tokenizer: Any = self.processor.tokenizer

    # --- the prompt -----------------------------------------------------------------------------------------

    def video_processor(self, checkpoint: Path) -> Any:
        """What stands for transformers' video processor, which needs torchvision: takes a list of videos.

        Each comes as frames [f, height, width, 3] uint8 with `video_metadata`; see `encode`.
        """
        return None

    @property
    def visual_ids(self) -> tuple[int, ...]:
        """Token ids that stand for visual tokens."""
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        found = (getattr(self.config, name, None) for name in names)
        return tuple(dict.fromkeys(int(token) for token in found if token is not None))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template's text, up to where the model answers."""
        template = self.processor.chat_template or self.tokenizer.chat_template
        if not isinstance(template, str):
            template = _TEMPLATE.replace("IMAGE", self.token(self.visual_ids[0]))
        text = self.processor.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
        return str(text)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image],
        videos: Sequence[Video] = (),
    ) -> Encoded:
        """transformers' processor: chat template, ids, pixels."""
        text = self.render(messages)
        starts_itself = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        options: dict[str, Any] = {}
        if videos:
            options["videos"] = [np.stack([np.asarray(frame) for frame in frames]) for frames, _ in videos]
            options["video_metadata"] = [
                {"fps": fps, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
                for frames, fps in videos
            ]
        made = self.processor(
            # A list for each prompt, as `apply_chat_template` gives them: some count the images of a prompt.
            images=[list(images)] if images else None,
            text=[text],
            return_tensors="pt",
            add_special_tokens=not starts_itself,
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            **options,
        )
        replaced = made["text_replacement_offsets"][0] if images or videos else []
        ids = [int(token) for token in made["input_ids"][0]]
        spans = [(int(start), int(stop)) for start, stop in made["offset_mapping"][0]]
        visual = [token in self.visual_ids for token in ids]
        return Encoded(
            text=_expanded(text, replaced),
            input_ids=tuple(ids),
            visual=tuple(visual),
            item=tuple(
                _item_at(span, replaced) if seen else -1 for span, seen in zip(spans, visual, strict=True)
            ),
            offsets=tuple((0, 0) if seen else span for span, seen in zip(spans, visual, strict=True)),
            inputs={name: made[name] for name in made if name not in _NOT_FOR_THE_MODEL},
            kinds=tuple(str(one["type"]) for one in replaced),
        )

    def token(self, number: int) -> str:
        """How the vocabulary writes one token."""
        return str(self.tokenizer.convert_ids_to_tokens(number))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def items(self, inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """The family's own."""
        raise NotImplementedError

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """Nothing to compare, unless a family says what."""
        return []

    # --- the decoder ----------------------------------------------------------------------------------------

    def positions(self, encoded: Encoded) -> np.ndarray:
        """0, 1, 2, ... [s, 1]. For three axes see `rope_index`."""
        return np.arange(len(encoded.input_ids), dtype=np.int64)[:, None]

    def rope_index(self, encoded: Encoded) -> np.ndarray:
        """`get_rope_index` of the model, for those that have it: [s, 3]."""
        function = self.model.model.get_rope_index
        ids = torch.tensor([encoded.input_ids])
        have: dict[str, Any] = {**encoded.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        wanted = inspect.signature(function).parameters
        places, _ = function(**{name: value for name, value in have.items() if name in wanted})
        return np.asarray(places[:, 0].T.numpy(), np.int64)  # a 1 s -> s a

    @torch.no_grad()
    def embed(self, input_ids: Tensor) -> Tensor:
        """Text rows [s, d] of ids [s]."""
        rows: Tensor = self.text.embed_tokens(input_ids)
        return rows

    def project(self, features: Tensor) -> Tensor:
        """The family's own, where a row is projected by itself."""
        raise NoOracleError("no reference is written for rewritten features in this family")

    @torch.no_grad()
    def read(self, input_ids: Tensor) -> Tensor:
        """The text model on BOS, where it has one, and ids [t]: last hidden states behind the final norm."""
        first = getattr(self.config.get_text_config(), "bos_token_id", None)
        start = torch.tensor([] if first is None else [first], dtype=torch.long)
        ids = torch.cat([start, input_ids])
        rows: Tensor = self.text(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        return rows

    def rotary(self, index: int, hidden: Tensor, positions: Tensor) -> Any:
        """Cosines and sines that layer `index` takes, for rows [s, d] at `positions` [s, axes]."""
        axes = positions.shape[1]
        given = positions[None, :, 0] if axes == 1 else positions.T[:, None]  # [1, s] or [axes, 1, s]
        return self.text.rotary_emb(hidden[None], given)

    def sees(self, index: int, positions: Tensor, block: Tensor, *, window: bool) -> Tensor:
        """Which row may look at which, in layer `index`: bool [s, s]. Causal by row order.

        A family whose layers have other masks gives them here: with `window` as the layer runs, without as
        it would be without its sliding window.
        """
        rows = len(positions)
        size = getattr(self.text.layers[index].self_attn, "sliding_window", None)
        if window and size is not None and rows > size:
            raise ValueError(f"{rows} rows do not fit the sliding window of {size} of layer {index}")
        return torch.ones(rows, rows, dtype=torch.bool).tril()

    @torch.no_grad()
    def layer(self, index: int, hidden: Tensor, positions: Tensor, block: Tensor) -> LayerRun:
        """One decoder layer over rows; see `Oracle.layer`."""
        run = self.sees(index, positions, block, window=True)
        whole = self.sees(index, positions, block, window=False)
        made = self._run_layer(index, hidden, positions, run)
        if torch.equal(run, whole):
            return made
        return made._replace(attention=self._run_layer(index, hidden, positions, whole).attention)

    def _run_layer(self, index: int, hidden: Tensor, positions: Tensor, sees: Tensor) -> LayerRun:
        """The layer as it is, under a mask bool [s, s]."""
        layer = self.text.layers[index]
        attention = layer.self_attn
        mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        with (
            tapped({"query": attention.q_proj, "key": attention.k_proj, "attention": attention}) as taps,
            dot_products(attention) as products,
        ):
            out = layer(
                hidden[None],
                attention_mask=mask[None, None],  # [1, 1, s, s]
                position_ids=positions[None, :, 0],
                position_embeddings=self.rotary(index, hidden, positions),
                past_key_values=None,
                use_cache=False,
            )
        out = out[0] if isinstance(out, tuple) else out
        width = int(attention.head_dim)
        query_plain, key_plain = (split_heads(taps[name][0][0], width) for name in ("query", "key"))
        if hasattr(attention, "q_norm"):
            query_plain, key_plain = attention.q_norm(query_plain), attention.k_norm(key_plain)
        ((query, key),) = products
        return LayerRun(
            out=out[0],
            attention=taps["attention"][0][1][0],
            query_plain=query_plain,
            key_plain=key_plain,
            scale=float(attention.scaling),
            query=query[0],
            key=key[0],
        )

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: [s, d] -> [s, v]."""
        rows: Tensor = self.model.lm_head(self.text.norm(hidden))
        return rows

    @torch.no_grad()
    def generate(self, encoded: Encoded, max_new_tokens: int, eos: Sequence[int]) -> tuple[int, ...]:
        """transformers' own greedy `generate`, with its cache."""
        ids = torch.tensor([encoded.input_ids], dtype=torch.long)
        ends = list(eos) or None
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=(ends or [0])[0]
        )
        made = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **encoded.inputs
        )
        return tuple(int(token) for token in made[0, ids.shape[1] :])


def load_processor(checkpoint: Path, config: type[Any], video: Any = None) -> Any:
    """transformers' processor of a checkpoint, with Pillow on both sides.

    torchvision's resampling gives other pixels, which is not what is judged here; it may not be installed,
    either. `video` stands where the class wants a video processor.
    """
    family: Any = PROCESSOR_MAPPING[config]

    class Plain(family):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, value: Any) -> Any:
            return None  # a stand-in is of no class that transformers knows

    Plain.__name__ = family.__name__
    options, _ = family.get_processor_dict(checkpoint)
    images: Any = AutoImageProcessor
    parts = {
        "image_processor": images.from_pretrained(checkpoint, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(checkpoint, use_fast=True),
        "video_processor": None,
    }
    processor = Plain.from_args_and_dict([parts[name] for name in family.get_attributes()], options)
    if video is not None:
        processor.video_processor = video  # afterwards: transformers prints what it is given as JSON
    return processor


@contextmanager
def tapped(modules: Mapping[K, nn.Module]) -> Iterator[dict[K, list[Any]]]:
    """Collects what the modules return while the block runs: key -> one output per call."""
    taps: dict[K, list[Any]] = {key: [] for key in modules}
    handles = [
        module.register_forward_hook(lambda _module, _given, output, key=key: taps[key].append(output))
        for key, module in modules.items()
    ]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def dot_products(attention: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects query [1, h, s, e] and key [1, g, s, e] as they enter the products of an eager attention."""
    module = sys.modules[type(attention).__module__]
    eager = module.eager_attention_forward
    found: list[tuple[Tensor, Tensor]] = []

    def watched(owner: nn.Module, query: Tensor, key: Tensor, *others: Any, **options: Any) -> Any:
        found.append((query, key))
        return eager(owner, query, key, *others, **options)

    with mock.patch.object(module, "eager_attention_forward", watched):
        yield found


def split_heads(flat: Tensor, width: int) -> Tensor:
    """[s, h * width] -> [h, s, width]."""
    rows, total = flat.shape
    return flat.reshape(rows, total // width, width).transpose(0, 1)  # s (h e) -> h s e


def _expanded(text: str, replaced: Sequence[Mapping[str, Any]]) -> str:
    """The text that was tokenised: each placeholder replaced."""
    done, cursor = "", 0
    for one in replaced:
        start, stop = one["span"]
        done += text[cursor:start] + one["replacement"]
        cursor = stop
    return done + text[cursor:]


def _item_at(span: tuple[int, int], replaced: Sequence[Mapping[str, Any]]) -> int:
    """The number of the replacement in which a visual token stands."""
    for number, one in enumerate(replaced):
        start, stop = one["new_span"]
        if start <= span[0] < stop:
            return number
    raise ValueError(f"a visual token stands outside of all images, at character {span[0]}")
