"""Writes full-size checkpoints with random weights, for measuring speed and memory without a download.

    python -m foveate.tools.bench.checkpoints llava-1b OUT
    python -m foveate.tools.bench.checkpoints llava-7b OUT --workers 8
    python -m foveate.tools.bench.checkpoints siglip-qwen2-0.5b OUT

A folder as `save_pretrained` leaves it: float16 weights, tokenizer, image processor, chat template. Foveate,
transformers and optimum-intel read it. The weights are drawn from a seed by each tensor's name, so a folder
can be written again; the byte-level BPE is trained here, on words made of syllables.

Random weights say nothing about the quality of an answer, and little about how sensitive a model is to
quantisation: trained models have outlying channels, these have none.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foveate.runtime.errors import ExportError, UsageError
from foveate.tools.bench.random_weights import Tensor, published, write_shards
from foveate.tools.bench.shapes import LLAVA_1B, LLAVA_7B, SIGLIP_QWEN2
from foveate.tools.extras import needs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BASE_VOCABULARY: Final = 32000
PAD, BOS, EOS, IMAGE, VIDEO = "<pad>", "<s>", "</s>", "<image>", "<video>"
# What the benchmark asks comes out as one token a word, as in a trained vocabulary.
_ENGLISH: Final = (
    "USER ASSISTANT : . ? , the a of in is what which describe this picture image scene one sentence short "
    "sentences detail everything you see and how many there are where on to left right what colour object"
)
_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' if message['role'] == 'assistant' else '' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Checkpoint:
    """One shape: the model's configuration, its special tokens, and what its processor's two files say."""

    config: Mapping[str, Any]
    specials: tuple[str, ...]
    processor: Mapping[str, Any]
    images: Mapping[str, Any]


_CLIP_IMAGES: Final = {
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "LlavaProcessor",
    "crop_size": {"height": 336, "width": 336},
    "size": {"shortest_edge": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
_SIGLIP_IMAGES: Final = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "processor_class": "LlavaOnevisionProcessor",
    "size": {"height": 384, "width": 384},
    "image_grid_pinpoints": SIGLIP_QWEN2["image_grid_pinpoints"],
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
}

_LLAVA_PROCESSOR: Final = {
    "processor_class": "LlavaProcessor",
    "image_token": IMAGE,
    "num_additional_image_tokens": 1,
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
}

CHECKPOINTS: Final[Mapping[str, Checkpoint]] = {
    "llava-1b": Checkpoint(LLAVA_1B, (IMAGE, PAD), _LLAVA_PROCESSOR, _CLIP_IMAGES),
    "llava-7b": Checkpoint(LLAVA_7B, (IMAGE, PAD), _LLAVA_PROCESSOR, _CLIP_IMAGES),
    "siglip-qwen2-0.5b": Checkpoint(
        config=SIGLIP_QWEN2,
        specials=(IMAGE, VIDEO, PAD),
        processor={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 729,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        images=_SIGLIP_IMAGES,
    ),
}


def write_checkpoint(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    workers: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes the checkpoint `name` into the new folder `folder` and returns it.

    `workers` shards are drawn at once, each in 2 GB of memory; the weights are the same whatever it is.

    Raises:
        UsageError: there is no such checkpoint, or the folder is there already.
        ExportError: the disk has no room.
        MissingDependencyError: torch is not installed.
    """
    if name not in CHECKPOINTS:
        raise UsageError("unknown checkpoint", found=repr(name), wanted=", ".join(CHECKPOINTS))
    if folder.exists():
        raise UsageError("the folder is there already", found=str(folder), mend="remove it or name another")
    checkpoint = CHECKPOINTS[name]
    with needs("export"), _whole(folder) as hidden:
        say("training the tokenizer")
        tokenizer = make_tokenizer(checkpoint.specials, seed)
        _write_processor(checkpoint, tokenizer, hidden)
        say("drawing the weights")
        _write_model(checkpoint.config, tokenizer, hidden, seed, workers)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A hidden sibling that takes the folder's name if all goes well, and is removed if not."""
    hidden = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        yield hidden
        hidden.rename(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


# --- tokenizer and processor ----------------------------------------------------------------------------


def make_tokenizer(specials: tuple[str, ...], seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 32000 tokens, then the `specials` from id 32000 on; puts `<s>` in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(seed), trainer)
    if core.get_vocab_size() != BASE_VOCABULARY:
        raise ExportError("the tokenizer's words ran out", found=f"{core.get_vocab_size()} tokens")
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    bos = (BOS, core.token_to_id(BOS))
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    made: Any = PreTrainedTokenizerFast  # whose constructor carries no types
    tokenizer: PreTrainedTokenizerFast = made(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        extra_special_tokens={f"{token.strip('<>')}_token": token for token in specials if token != PAD},
    )
    return tokenizer


def _corpus(seed: int) -> Iterator[str]:
    """English words very often, then tens of thousands of made-up ones, the shorter the more often."""
    english = _ENGLISH.split()
    yield from (f"{word} {word.capitalize()} {word}" for word in english for _ in range(2000))
    rng = np.random.default_rng(seed)
    starts, vowels = (
        [
            "b",
            "c",
            "d",
            "f",
            "g",
            "h",
            "j",
            "k",
            "l",
            "m",
            "n",
            "p",
            "r",
            "s",
            "t",
            "v",
            "w",
            "z",
            "br",
            "ch",
            "cl",
            "gr",
            "pl",
            "sh",
            "st",
            "th",
            "tr",
        ],
        "aeiou",
    )
    syllables = [start + vowel for start in starts for vowel in vowels]
    for length, words in ((1, 400), (2, 18000), (3, 24000)):
        for picked in rng.integers(0, len(syllables), (words, length)):
            word = "".join(syllables[i] for i in picked)
            yield f" {word}" * (8 - 2 * length)


def _write_processor(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    # By hand: transformers 5 itself writes one file, which engines other than transformers do not read.
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(checkpoint.images), indent=2))
    (folder / "processor_config.json").write_text(json.dumps(dict(checkpoint.processor), indent=2))


# --- weights --------------------------------------------------------------------------------------------


def _write_model(
    config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int, workers: int
) -> None:
    import torch
    import transformers

    library: Any = transformers  # which carries no types of what we need
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in (PAD, BOS, EOS)}
    special = {"pad_token_id": ids[PAD], "bos_token_id": ids[BOS], "eos_token_id": ids[EOS]}
    filled = {**config, "text_config": {**config["text_config"], **special}, "pad_token_id": ids[PAD]}
    parsed = library.AutoConfig.for_model(**filled)
    with torch.device("meta"):
        model = library.AutoModelForImageTextToText.from_config(parsed, dtype=torch.float16)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    library.GenerationConfig(do_sample=False, **special).save_pretrained(folder)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    tensors = {
        published(name): Tensor(tuple(weight.shape), weight is table and table is not head, weight is head)
        for name, weight in model.named_parameters()
    }
    used = torch.zeros(parsed.text_config.vocab_size, dtype=torch.bool)
    used[max(ids[BOS], ids[EOS]) + 1 : BASE_VOCABULARY] = True
    write_shards(tensors, folder, used, parsed.text_config.num_hidden_layers, seed, workers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(CHECKPOINTS))
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="shards drawn at once, 2 GB of memory each")
    given = parser.parse_args()
    folder = write_checkpoint(given.name, given.out, seed=given.seed, workers=given.workers, say=print)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
