"""The demo checkpoint's processor: small byte-level BPE, CLIP image processor, LLaVA-1.5 chat template."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from foveate.tools.demo_model.recipe import IMAGE_MEAN, IMAGE_STD
from foveate.tools.demo_model.scenes import (
    CELL,
    COLORS,
    DIRECTIONS,
    KINDS,
    SIZE,
    make_scene,
)

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
# Content is a string, or a list of {"type": "image"} and {"type": "text", "text": ...}; images come first.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
BEFORE_IMAGE = f"{BOS}USER: "


def prompt_after_image(question: str) -> str:
    """The part of the prompt that follows the visual tokens."""
    return f"\n{question} ASSISTANT:"


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on the questions and answers of fixed scenes, so that it never changes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    core.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (PAD, BOS, EOS, IMAGE)]
    )
    bos = (BOS, core.token_to_id(BOS))
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    words = [f" {word}" for word in (*KINDS, *COLORS, "top", "bottom", "left", "right")]
    words += [word for name in DIRECTIONS for word in f" {name}".replace(" ", "\0 ").split("\0")]
    lines = words * 40
    for seed in range(300):
        for question in make_scene(seed, "train").questions:
            lines.append(f"USER: \n{question.text} ASSISTANT: {question.answer}")
    return lines


def build_processor(vocabulary: int) -> LlavaProcessor:
    """Tokenizer, image processor and chat template together."""
    images = CLIPImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": SIZE},
        resample=3,
        do_center_crop=True,
        crop_size={"height": SIZE, "width": SIZE},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(vocabulary),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of the special tokens by role."""
    names = {"pad": PAD, "bos": BOS, "eos": EOS, "image": IMAGE}
    return {role: tokenizer.convert_tokens_to_ids(name) for role, name in names.items()}


def save_processor(vocabulary: int, folder: Path) -> LlavaProcessor:
    """Write the processor files into `folder`."""
    processor = build_processor(vocabulary)
    processor.save_pretrained(folder)
    return processor
