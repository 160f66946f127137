"""The builder's options as they are typed, checked against the machine."""

from __future__ import annotations

import re
from typing import Any, Final, get_args

from foveate.export.engines.machine import Here
from foveate.runtime.engines import Attention, BuildOptions, Hardware
from foveate.runtime.errors import UsageError

_UNITS: Final = {"": 1, "B": 1}
_UNITS.update({f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)})
_UNITS.update({f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)})
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_LEAST_WORKSPACE: Final = 1 << 20
_LEVELS: Final = range(6)
# The version that brought lengths to the native layers.
_NATIVE_SINCE: Final = 11


def make_options(here: Here | None, **words: Any) -> BuildOptions:
    """Options of the command line; `attention` None is "native" where this TensorRT has it.

    `here` is None where nothing is built: then nothing is compared with the machine.

    Raises:
        UsageError: a word or number is not among those allowed, or too large for the machine.
    """
    attention = words.pop("attention", None)
    workspace = words.pop("workspace", None)
    if attention is None:
        attention = "portable" if here is not None and here.tensorrt_major < _NATIVE_SINCE else "native"
    _one_of("--attention", attention, get_args(Attention))
    _one_of("--hardware", words.get("hardware", "none"), get_args(Hardware))
    if words.get("level", 3) not in _LEVELS:
        raise UsageError("--level is out of range", found=str(words["level"]), wanted="0 to 5")
    if here is not None and attention == "native" and here.tensorrt_major < _NATIVE_SINCE:
        raise UsageError(
            "this TensorRT has no attention layer that takes lengths",
            found=f"TensorRT {here.machine.tensorrt}",
            wanted=f"{_NATIVE_SINCE}.0 or newer for --attention native",
            mend="build with --attention portable",
        )
    options = BuildOptions(attention=attention, workspace=_bytes(workspace), **words)
    if here is not None and options.workspace is not None and options.workspace > here.memory:
        raise UsageError(
            "--workspace is more than the GPU has",
            found=f"{options.workspace / 2**30:.1f} GiB",
            wanted=f"at most {here.memory / 2**30:.1f} GiB ({here.machine.gpu})",
        )
    return options


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} cannot be '{value}'", wanted=" or ".join(allowed))


def _bytes(text: str | int | None) -> int | None:
    """`4GiB`, `512MB` or a number of bytes."""
    if text is None or isinstance(text, int):
        return text
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found.group(2).upper()) if found else None
    size = int(float(found.group(1)) * unit) if found and unit else 0
    if size < _LEAST_WORKSPACE:
        raise UsageError("--workspace is no size", found=repr(text), wanted="1MiB or more, as 4GiB or 512MB")
    return size
