"""The processor of a bundle: chat template, tokenizer and the family's preprocessing of images and videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.runtime.arrays import Ints, ints
from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import Preprocessor, find_preprocessor
from foveate.runtime.manifest import ModelRecord
from foveate.runtime.pretrained import load_tokenizer
from foveate.runtime.visuals import Visual


@dataclass(frozen=True)
class Encoding:
    """Token ids `[t]` and the span `[t, 2]` of each in the text."""

    input_ids: Ints
    spans: Ints


class Processor:
    """Turns rendered text to ids and back, messages to text, and images and videos to what the model takes.

    Raises:
        BundleError: on first use, when the folder's files cannot be loaded.
        MissingDependencyError: on first use, without transformers.
    """

    def __init__(self, folder: Path, model: ModelRecord, family: str) -> None:
        self._folder = folder
        self._model = model
        self._family = family

    @cached_property
    def image_token(self) -> str:
        """The text that stands for an image, for instance `<image>`.

        Raises:
            BundleError: the tokenizer has no token of the model's id.
        """
        token = self._tokenizer.convert_ids_to_tokens(self._model.image_token_id)
        if not token:
            raise BundleError(
                f"the tokenizer in {self._folder} has no image token",
                found=f"no token with id {self._model.image_token_id} among {len(self._tokenizer)}",
                wanted="the id that config.json calls image_token_index or image_token_id",
                mend="add the token to the checkpoint's tokenizer and export again",
            )
        return str(token)

    @property
    def visual_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that stand for visual tokens: the image's and, if there is one, the video's."""
        ids = (self._model.image_token_id, self._model.video_token_id)
        return tuple(number for number in ids if number is not None)

    @property
    def placeholders(self) -> Mapping[str, str]:
        """What the chat template writes for an image, and for a video where the model takes them."""
        return self._preprocessor.placeholders

    @property
    def counts_images(self) -> bool:
        """Whether an image is made otherwise when it is not the only one of its prompt."""
        return bool(getattr(self._preprocessor, "counts_images", False))

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """What says in a user's text that an image or video belongs there, for each kind."""
        return {kind: (f"<{kind}>", mark) for kind, mark in self.placeholders.items()}

    def warm_up(self) -> None:
        """Load everything now instead of on first use."""
        self.made(Visual("image", Image.new("RGB", (64, 64))))

    def encode(self, text: str) -> Encoding:
        """Ids of a rendered prompt; the beginning-of-text token is added unless the template wrote it."""
        tokenizer = self._tokenizer
        written = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        coded = tokenizer(text, add_special_tokens=not written, return_offsets_mapping=True)
        return Encoding(ints(coded["input_ids"]), ints(coded["offset_mapping"]).reshape(-1, 2))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template applied to messages whose contents are lists of parts, up to the model's turn.

        Raises:
            InputError: the template refuses the messages.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                self._contents(messages),
                chat_template=self._template_for(messages),
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # templates raise whatever they like
            raise InputError("the chat template refuses these messages", found=str(error)) from error
        return str(text)

    def _template_for(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template; some families have another one for conversations with a video in them."""
        film = any(part["type"] == "video" for message in messages for part in message["content"])
        other = getattr(self._preprocessor, "video_template", None) if film else None
        return self._template if other is None else str(other)

    def made(self, visual: Visual, of: int | None = None) -> Visual:
        """An image or video with all that the model gets of it, see `Visual.made`. Raises `InputError`."""
        return visual.made(self._preprocessor, of)

    def _contents(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as the template wants them: lists of parts, or texts with image tokens in them."""
        if self._takes_parts:
            return [dict(message) for message in messages]
        flat = []
        for message in messages:
            texts = [
                part["text"] if part["type"] == "text" else f"{self.placeholders[part['type']]}\n"
                for part in message["content"]
            ]
            flat.append({**message, "content": "".join(texts)})
        return flat

    @cached_property
    def _takes_parts(self) -> bool:
        parts = [{"type": "image"}, {"type": "text", "text": "?"}]
        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": parts}], chat_template=self._template, tokenize=False
            )
        except Exception:  # a template for plain texts may stumble over a list
            return False
        # A template for plain texts prints the list as Python would.
        return self.placeholders["image"] in text

    @cached_property
    def _template(self) -> str:
        """The processor's chat template, else the tokenizer's, else LLaVA-1.5's."""
        modern = self._folder / "chat_template.jinja"
        if modern.is_file():
            return modern.read_text(encoding="utf-8")
        for legacy in ("chat_template.json", "processor_config.json"):
            path = self._folder / legacy
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if isinstance(content.get("chat_template"), str):
                return str(content["chat_template"])
        own = self._tokenizer.chat_template
        return own if isinstance(own, str) else LLAVA_TEMPLATE.replace("<image>", self.placeholders["image"])

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        return find_preprocessor(self._family)(self._folder, self._model.vision, self.image_token)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self._folder)
        if not tokenizer.is_fast:
            wanted = "tokenizer.json"
            raise BundleError(
                "the tokenizer has no fast form, which gives the places of words", wanted=wanted
            )
        return tokenizer


LLAVA_TEMPLATE = """\
{% for message in messages %}{{ message['role'] | upper }}: \
{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}\
{% endfor %}ASSISTANT:"""
