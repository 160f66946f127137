"""The processor side of a checkpoint: tokenizer, chat template, image preprocessing."""

from __future__ import annotations

import shutil
from pathlib import Path

from foveate.export.checkpoint import PROCESSOR_FILES
from foveate.runtime.errors import CheckpointError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def require_processor(checkpoint: Path) -> None:
    """Raises `CheckpointError` when the files that turn text and images into numbers are not all there."""
    for wanted in (_TOKENIZERS, _IMAGE_PROCESSORS):
        if not any((checkpoint / name).is_file() for name in wanted):
            raise CheckpointError(
                f"{checkpoint} has no {' or '.join(wanted)}",
                wanted="the tokenizer's and image processor's files beside the weights",
                mend="fetch them from the model's page; they are small",
            )


def copy_processor(checkpoint: Path, folder: Path) -> None:
    """Copies the processor's files into the bundle."""
    folder.mkdir()
    for name in PROCESSOR_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
