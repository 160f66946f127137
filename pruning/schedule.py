"""Schedules as files: which layers of a decoder are followed by a cut, and what each of them keeps.

``foveate search`` writes one, ``foveate export --schedule`` reads it, and people may write their own::

    method = "layer-rank"
    num_layers = 32          # of the model that it is for; may be left out

    [[cut]]
    layer = 2                # layers that have run; then come the method's options
    share = 0.5

Tables beside these two words and ``cut`` are remarks for people.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from foveate.pruning.plan import parse_plan
from foveate.runtime.errors import UsageError

FORM = 'method = "layer-rank", then [[cut]] tables, each with layer and the options of the cut'


@dataclass(frozen=True)
class CutSchedule:
    """Cuts of one method at rising layers.

    Attributes:
        method: the method's name.
        cuts: ``(layer, options)``, layers counted as those that have run.
        num_layers: of the decoder that it is for; None for any.
        about: how it was found, for people; tables of plain values.
    """

    method: str
    cuts: tuple[tuple[int, Mapping[str, object]], ...]
    num_layers: int | None = None
    about: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def words(self) -> list[str]:
        """What ``foveate export --method`` takes, a word for each cut."""
        return [
            f"{self.method}@{layer}" + (":" + ",".join(f"{k}={_word(v)}" for k, v in options.items()))
            if options
            else f"{self.method}@{layer}"
            for layer, options in self.cuts
        ]


def read_schedule(path: Path) -> list[str]:
    """The cuts in a file, as words for ``foveate export --method``.

    Raises:
        UsageError: no such file, no schedule in it, or a schedule that no model can follow.
    """
    return load_schedule(path).words()


def load_schedule(path: Path) -> CutSchedule:
    """The schedule in a file. Raises as :func:`read_schedule`."""
    found = _read_toml(path)
    method, layers, cuts = found.get("method"), found.get("num_layers"), found.get("cut")
    if not isinstance(method, str) or not isinstance(cuts, list) or not cuts:
        raise _refusal(path, "is no schedule", f"keys {', '.join(found) or 'none'}")
    if not all(isinstance(cut, dict) and _is_whole(cut.get("layer")) for cut in cuts):
        raise _refusal(path, "has a cut without a layer", "a [[cut]] without a whole number as layer")
    if layers is not None and not _is_whole(layers):
        raise _refusal(path, "has a number of layers that is none", repr(layers))
    pairs = tuple((cut["layer"], {k: v for k, v in cut.items() if k != "layer"}) for cut in cuts)
    about = {name: value for name, value in found.items() if isinstance(value, dict)}
    schedule = CutSchedule(method, pairs, layers, about)
    _check(path, schedule)
    return schedule


def write_schedule(path: Path, schedule: CutSchedule) -> None:
    """Write a schedule, whole or not at all.

    Raises:
        UsageError: the place cannot be written.
    """
    lines = [f"method = {_toml(schedule.method)}"]
    if schedule.num_layers is not None:
        lines.append(f"num_layers = {schedule.num_layers}")
    for layer, options in schedule.cuts:
        lines += ["", "[[cut]]", f"layer = {layer}", *(f"{k} = {_toml(v)}" for k, v in options.items())]
    for table, values in schedule.about.items():
        lines += ["", f"[{table}]", *(f"{k} = {_toml(v)}" for k, v in values.items())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".part")
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise UsageError(
            f"The schedule {path} cannot be written.",
            found=str(error.strerror or error),
            wanted="a place to write to",
            mend="Name another file.",
        ) from error


def _check(path: Path, schedule: CutSchedule) -> None:
    """Refuses what cannot be followed: layers that do not rise or do not exist, shares that grow."""
    layers = [layer for layer, _ in schedule.cuts]
    if any(after <= before for before, after in pairwise([0, *layers])):
        raise _refusal(path, "has layers that do not rise", ", ".join(map(str, layers)))
    last = schedule.num_layers
    if last is not None and layers[-1] >= last:
        raise _refusal(path, "cuts behind the last layer", f"layer {layers[-1]} of {last}")
    shares = [float(o["share"]) for _, o in schedule.cuts if isinstance(o.get("share"), (int, float))]  # type: ignore[arg-type]
    if any(after > before for before, after in pairwise(shares)):
        raise _refusal(path, "lets dropped tokens return", "shares " + ", ".join(f"{s:g}" for s in shares))
    parse_plan(schedule.words())  # the method and its options


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise _refusal(path, "cannot be read", str(error.strerror or error)) from error
    except tomllib.TOMLDecodeError as error:
        raise _refusal(path, "is not TOML", str(error)) from error


def _refusal(path: Path, what: str, found: str) -> UsageError:
    return UsageError(
        f"The schedule {path} {what}.",
        found=found,
        wanted=FORM,
        mend="Write it with foveate search, or as docs/commands/search.md shows.",
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _toml(value: object) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{text}"'
