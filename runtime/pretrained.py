"""Loads what transformers reads from a bundle's processor folder: without its noise, with our errors.

transformers is imported on first use and never needs torch here: its image processors run on their Pillow
backend and give numpy arrays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from foveate.runtime.errors import BundleError, MissingDependencyError

_T = TypeVar("_T")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder. Raises as `loaded`."""

    def load() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    return loaded("tokenizer", folder, load)


def load_image_processor(folder: Path) -> Any:
    """The image processor in a folder, on its Pillow backend. Raises as `loaded`."""

    def load() -> Any:
        from transformers import AutoImageProcessor

        processor: Any = AutoImageProcessor
        return processor.from_pretrained(folder, backend="pil", local_files_only=True)

    return loaded("image processor", folder, load)


def loaded(what: str, folder: Path, load: Callable[[], _T]) -> _T:
    """What `load` gives, quietly.

    Raises:
        BundleError: the files cannot be loaded.
        MissingDependencyError: transformers, or what it needs for these files, is not installed.
    """
    try:
        with _quiet():
            return load()
    except ImportError as error:
        raise MissingDependencyError.of(error.name or "transformers") from error
    except Exception as error:  # transformers has no common root of exceptions
        raise BundleError(f"the {what} in {folder} cannot be loaded", found=str(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings that torch is missing, which is the point."""
    # All loggers: transformers sets the level of its own one while it is imported.
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
