"""Prompts of every form become the right tokens, and the user's words are found in any template.

Real tokenizers: the byte-level one of the tiny checkpoints, and the built-in model's where it is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import tiny
from transformers import CLIPImageProcessorPil

from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.manifest import ModelRecord
from foveate.runtime.processor import Processor
from foveate.runtime.prompt import TokenizedPrompt, read_prompt, tokenize
from foveate.runtime.visuals import Visual

SIZE = tiny.IMAGE_SIZE
LLAVA_15 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TRIMMED = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "<end>\n{% endfor %}<|assistant|>\n"
)
PLAIN_TEXT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
SHOUTING = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] | upper }}{% endfor %}{% endfor %}assistant:"
)


def make_processor(folder: Path, template: str | None) -> Processor:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    model = make.manifest().model.model_dump() | {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "vision": {"image_size": SIZE, "patch_size": tiny.PATCH_SIZE},
    }
    return Processor(folder, ModelRecord.model_validate(model), "llava")


@pytest.fixture(scope="module")
def processor_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Processor]:
    made: dict[str | None, Processor] = {}

    def get(template: str | None) -> Processor:
        if template not in made:
            made[template] = make_processor(tmp_path_factory.mktemp("processor"), template)
        return made[template]

    return get


@pytest.fixture(scope="module")
def processor(processor_of: Callable[[str | None], Processor]) -> Processor:
    return processor_of(tiny.CHAT_TEMPLATE)


def marked(prompt: TokenizedPrompt, processor: Processor) -> list[str]:
    """The runs of user text that were found."""
    words, word = [], ""
    for token, of_user in zip(prompt.input_ids.tolist(), prompt.user_text.tolist(), strict=True):
        if of_user:
            word += processor.decode([token])
        elif word:
            words.append(word)
            word = ""
    return [*words, word] if word else words


def ask(processor: Processor, prompt: Any, images: list[Any] = []) -> TokenizedPrompt:  # noqa: B006
    return tokenize(read_prompt(prompt, processor.places, images), processor)


def sources(prompt: TokenizedPrompt) -> list[Any]:
    return [visual.source for visual in prompt.visuals]


IMAGES = [tiny.make_image(0), tiny.make_image(1, (50, 120))]
CHAT = [
    {"role": "system", "content": "U"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "US"}]},
    {"role": "assistant", "content": "USER"},
    {"role": "user", "content": [{"type": "text", "text": "A"}]},
]


@pytest.mark.parametrize(
    "template",
    [tiny.CHAT_TEMPLATE, LLAVA_15, CHATML_TRIMMED, PLAIN_TEXT, None],
    ids=["tiny", "llava", "chatml", "plain", "none"],
)
def test_user_text_is_found_in_any_template(
    processor_of: Callable[[str | None], Processor], template: str | None
) -> None:
    """The texts are chosen to occur in role markers and in one another."""
    processor = processor_of(template)
    prompt = ask(processor, CHAT, IMAGES[:1])
    assert marked(prompt, processor) == ["US", "A"]
    assert np.count_nonzero(prompt.visual) == 1


def test_a_template_that_changes_the_text(processor_of: Callable[[str | None], Processor]) -> None:
    """Then it is searched for; what is not found counts as fixed."""
    processor = processor_of(SHOUTING)
    prompt = ask(processor, [{"role": "user", "content": "<image>WHAT is it"}], IMAGES[:1])
    assert marked(prompt, processor) == []
    prompt = ask(processor, [{"role": "user", "content": "<image>WHAT?"}], IMAGES[:1])
    assert marked(prompt, processor) == ["WHAT?"]


def test_forms_of_a_prompt(processor: Processor) -> None:
    hi = {"type": "text", "text": "Hi"}
    wanted = ask(
        processor,
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}],
        IMAGES[:1],
    )
    assert wanted.text == "<s>USER: <image>\nHi ASSISTANT:"
    assert wanted.input_ids[:1].tolist() == [tiny.make_tokenizer().bos_token_id]
    for prompt in (
        "Hi",
        "<image>Hi",
        "<image>\nHi",
        [{"role": "user", "content": "<image>Hi"}],
    ):
        assert ask(processor, prompt, IMAGES[:1]).text == wanted.text
    inline = [{"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, hi]}]
    found = ask(processor, inline)
    assert (found.text, sources(found)) == (wanted.text, IMAGES[:1])
    assert inline[0]["content"][0]["image"] is IMAGES[0]  # the caller's messages are left alone


def test_images_stand_where_the_text_says(processor: Processor) -> None:
    prompt = ask(processor, "a <image> b <image> c", IMAGES)
    assert marked(prompt, processor) == ["a", "b", "c"]
    assert sources(prompt) == IMAGES
    assert ask(processor, "ab", IMAGES).text.startswith("<s>USER: <image>\n<image>\nab")
    past_first = int(np.argmax(prompt.visual)) + 1
    assert sources(prompt.after(past_first)) == IMAGES[1:]
    assert sources(prompt.after(past_first - 1)) == IMAGES


def test_non_ascii_text_is_marked_whole(processor: Processor) -> None:
    prompt = ask(processor, "<image>Où est l'œuf ? 卵", IMAGES[:1])
    text = b"".join(bytes([b]) for b in "Où est l'œuf ? 卵".encode())
    assert np.count_nonzero(prompt.user_text) == len(text)


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("<image>Hi", [], "0 images, 1 place"),
        ("<image>Hi", IMAGES, "2 images, 1 place"),
        ([{"role": "user", "content": "Hi"}], IMAGES[:1], "1 image, 0 places"),
        ([{"role": "user", "content": [{"type": "image"}]}], [], "0 images, 1 place"),
        ([{"role": "user", "content": [{"type": "text", "text": "a <image> b"}]}], [], "0 images, 1 place"),
        ([{"role": "user"}], [], "malformed"),
        ([{"content": "Hi"}], [], "malformed"),
        ([{"role": "user", "content": [{"type": "audio"}]}], [], "part of a message is malformed"),
        ([{"role": "user", "content": [{"type": "video"}]}], [], "0 videos, 1 place"),
        ([{"role": "user", "content": [{"type": "video", "video": "a.gif"}]}], [], "takes no videos"),
        ([{"role": "user", "content": ["Hi"]}], [], "part of a message is malformed"),
        ([], [], "no messages"),
        (["Hi"], [], "a message is malformed"),
        (None, [], "the prompt is malformed"),
        ("a\udcffb", [], "not valid Unicode"),
    ],
)
def test_bad_prompts(processor: Processor, prompt: Any, images: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(processor, prompt, images)


def test_a_template_that_refuses(tmp_path: Path) -> None:
    processor = make_processor(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        ask(processor, "Hi")


def test_beginning_of_text_is_written_once(processor_of: Callable[[str | None], Processor]) -> None:
    bos = tiny.make_tokenizer().bos_token_id
    for template in (tiny.CHAT_TEMPLATE, "{{ bos_token }}" + LLAVA_15):
        ids = ask(processor_of(template), "Hi").input_ids
        assert np.count_nonzero(ids == bos) == 1


def test_pixels_are_transformers(processor: Processor) -> None:
    reference = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    wanted = reference(IMAGES, return_tensors="np")["pixel_values"]
    for image, pixels in zip(IMAGES, wanted, strict=True):
        (found,) = pixels_of(processor, image)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, pixels)


def test_broken_processor_folders(tmp_path: Path) -> None:
    processor = make_processor(tmp_path, tiny.CHAT_TEMPLATE)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match=r"the tokenizer in .* cannot be loaded"):
        ask(processor, "Hi")
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config["crop_size"] = {"height": 28, "width": 28}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"does not fit the model.*\[28, 28\].*preprocessor_config"):
        pixels_of(make_processor_again(tmp_path), IMAGES[0])
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(BundleError, match=r"the image processor in .* cannot be loaded"):
        pixels_of(make_processor_again(tmp_path), IMAGES[0])


def make_processor_again(folder: Path) -> Processor:
    tokenizer = tiny.make_tokenizer()
    tokenizer.save_pretrained(folder)
    changes = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "vision": {"image_size": SIZE, "patch_size": tiny.PATCH_SIZE},
    }
    return Processor(folder, make.manifest().model.model_copy(update=changes), "llava")


def pixels_of(processor: Processor, image: Any) -> np.ndarray:
    item = processor.made(Visual("image", image)).item
    assert item is not None
    return item.feeds["pixel_values"]


def test_a_tokenizer_without_the_image_token(tmp_path: Path) -> None:
    make_processor(tmp_path, tiny.CHAT_TEMPLATE)
    model = make.manifest().model.model_copy(update={"image_token_id": 99_999})
    with pytest.raises(BundleError, match=r"has no image token.*99999"):
        Processor(tmp_path, model, "llava").warm_up()
