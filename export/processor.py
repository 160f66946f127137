"""The processor side of a checkpoint: tokenizer, chat template, image preprocessing."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers import Tokenizer

from foveate.export.checkpoint import PROCESSOR_FILES
from foveate.runtime.errors import CheckpointError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def require_processor(checkpoint: Path, image_token_id: int) -> None:
    """Checks the files that turn text and images into numbers.

    Raises:
        CheckpointError: a file is missing or damaged, or the tokenizer does not know the image token.
    """
    for wanted in (_TOKENIZERS, _IMAGE_PROCESSORS):
        if not any((checkpoint / name).is_file() for name in wanted):
            raise CheckpointError(
                f"{checkpoint} has no {' or '.join(wanted)}",
                wanted="the tokenizer's and image processor's files beside the weights",
                mend="fetch them from the model's page; they are small",
            )

    tokenizer = checkpoint / "tokenizer.json"
    if tokenizer.is_file() and _read_tokenizer(tokenizer).id_to_token(image_token_id) is None:
        raise CheckpointError(
            "the tokenizer has no token for images",
            found=f"image_token_index {image_token_id} in config.json, which tokenizer.json does not know",
            wanted="the id of the image placeholder",
            mend="take the tokenizer's files from the page of the model that config.json belongs to",
        )


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # tokenizers raises plain Exception
        raise CheckpointError(
            f"{path.name} can't be read", found=str(e)[:300], mend="fetch the file again"
        ) from e


def copy_processor(checkpoint: Path, folder: Path) -> None:
    """Copies the processor's files into the bundle."""
    folder.mkdir()
    for name in PROCESSOR_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
