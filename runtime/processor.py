"""The processor of a bundle: chat template, tokenizer and image preprocessing, by way of transformers.

transformers is imported on first use and never needs torch here: the image processors run on their Pillow
backend and give numpy arrays.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from foveate.runtime.arrays import Floats, Ints, ints
from foveate.runtime.errors import BundleError, InputError, MissingDependencyError
from foveate.runtime.manifest import ModelRecord

_T = TypeVar("_T")


@dataclass(frozen=True)
class Encoding:
    """Token ids `[t]` and the span `[t, 2]` of each in the text."""

    input_ids: Ints
    spans: Ints


class Processor:
    """Turns rendered text to ids and back, messages to text, and images to pixels.

    Raises:
        BundleError: on first use, when the folder's files cannot be loaded.
        MissingDependencyError: on first use, without transformers.
    """

    def __init__(self, folder: Path, model: ModelRecord) -> None:
        self._folder = folder
        self._model = model

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
    def image_token_id(self) -> int:
        """Its id."""
        return self._model.image_token_id

    def warm_up(self) -> None:
        """Load everything now instead of on first use."""
        _ = self.image_token, self._image_processor

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
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # templates raise whatever they like
            raise InputError("the chat template refuses these messages", found=str(error)) from error
        return str(text)

    def pixels(self, images: Sequence[Image.Image]) -> Floats:
        """Preprocessed images `[b, 3, height, width]`."""
        if not images:
            return np.zeros((0, 3, *self._model.image_size), np.float32)
        out = self._image_processor(list(images), return_tensors="np")
        pixels = np.ascontiguousarray(out["pixel_values"], dtype=np.float32)
        if pixels.shape[2:] != self._model.image_size:
            raise BundleError(
                "the image processor does not fit the model",
                found=f"{list(pixels.shape[2:])} pixels",
                wanted=str(list(self._model.image_size)),
                mend="compare preprocessor_config.json with vision_config.image_size, and export again",
            )
        return pixels

    def _contents(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as the template wants them: lists of parts, or texts with image tokens in them."""
        if self._takes_parts:
            return [dict(message) for message in messages]
        flat = []
        for message in messages:
            texts = [part.get("text", f"{self.image_token}\n") for part in message["content"]]
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
        return self.image_token in text  # a template for plain texts prints the list as Python would

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
        return own if isinstance(own, str) else LLAVA_TEMPLATE.replace("<image>", self.image_token)

    @cached_property
    def _tokenizer(self) -> Any:
        def load() -> Any:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)

        tokenizer = self._load("tokenizer", load)
        if not tokenizer.is_fast:
            wanted = "tokenizer.json"
            raise BundleError(
                "the tokenizer has no fast form, which gives the places of words", wanted=wanted
            )
        return tokenizer

    @cached_property
    def _image_processor(self) -> Any:
        def load() -> Any:
            from transformers import AutoImageProcessor

            processor: Any = AutoImageProcessor
            return processor.from_pretrained(self._folder, backend="pil", local_files_only=True)

        return self._load("image processor", load)

    def _load(self, what: str, load: Callable[[], _T]) -> _T:
        try:
            with _quiet():
                return load()
        except ImportError as error:
            raise MissingDependencyError.of(error.name or "transformers") from error
        except Exception as error:  # transformers has no common root of exceptions
            raise BundleError(f"the {what} in {self._folder} cannot be loaded", found=str(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings that torch is missing, which is the point."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


LLAVA_TEMPLATE = """\
{% for message in messages %}{{ message['role'] | upper }}: \
{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}\
{% endfor %}ASSISTANT:"""
