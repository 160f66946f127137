"""What a pruning method may be configured with: sites, options and their validation. Standard library only.

A method declares a frozen dataclass ``Config(MethodConfig)`` whose fields are made with :func:`option`. The
same description serves three readers: ``Config.from_dict`` (export, manifests), ``parse_plan`` (the command
line) and ``foveate methods`` (which must not import torch, see :mod:`foveate.pruning.registry`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypeVar

from foveate.runtime.errors import UsageError

KNEE_NAMES = ("chord", "cumulative", "recursive", "derivative", "iqr")
"""The knee rules of :mod:`foveate.pruning.knee`; here, so that they can be listed without torch."""

SPREADS = ("image", "tile")
"""Over what an encoder method ranks its candidates."""

Schedule: TypeAlias = tuple[tuple[int | float, Mapping[str, object]], ...]
"""Where a method cuts when no layer is named: layers, or a share of the depth, with the options there."""

_Value = TypeVar("_Value")
_ConfigType = TypeVar("_ConfigType", bound="MethodConfig")


class Site(str, Enum):
    """Where a cut is made: after the vision encoder, or after a decoder layer.

    ``layers`` cuts no token: a method there leaves out arithmetic of visual tokens in the decoder's layers.
    """

    ENCODER = "encoder"
    LAYERS = "layers"
    DECODER = "decoder"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Option:
    """One option of a method, as shown to users and as checked.

    Attributes:
        name: the word a user types.
        kind: the field's annotation, a key of :data:`KINDS`.
        default: the value when nothing is given.
        help: one sentence.
        low: smallest allowed number, inclusive (exclusive with ``open_low``).
        high: largest allowed number, inclusive.
        open_low: whether ``low`` itself is refused.
        choices: the only allowed words; empty when any value of the kind will do.
    """

    name: str
    kind: str
    default: object
    help: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    choices: tuple[str, ...] = ()

    def convert(self, method: str, value: object) -> object:
        """``value`` (typed, or text from a command line) as this option's type; ``UsageError`` otherwise."""
        try:
            converted = KINDS[self.kind](value)
        except (TypeError, ValueError):
            raise self._refusal(method, value) from None
        if isinstance(converted, float) and not math.isfinite(converted):
            raise self._refusal(method, value)
        if self.choices and converted not in self.choices:
            raise self._refusal(method, value)
        numbers = converted if isinstance(converted, tuple) else (converted,)
        for number in numbers:
            if isinstance(number, (int, float)) and not isinstance(number, bool) and not self._allows(number):
                raise self._refusal(method, value)
        return converted

    def wanted(self) -> str:
        """What this option accepts, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words, none, _ = KIND_WORDS[self.kind].partition(" or none")
        if self.low is not None and self.high is not None:
            words += f" in {'(' if self.open_low else '['}{self.low:.10g}, {self.high:.10g}]"
        elif self.low is not None:
            words += f" {'above' if self.open_low else 'of at least'} {self.low:.10g}"
        return words + (", or none" if none else "")

    def _allows(self, number: float) -> bool:
        if self.low is not None and (number < self.low or (self.open_low and number == self.low)):
            return False
        return self.high is None or number <= self.high

    def _refusal(self, method: str, value: object) -> UsageError:
        return UsageError(
            f"Method '{method}' cannot use {self.name}={value}.",
            found=f"{value!r}",
            wanted=self.wanted(),
            mend=f"Give {self.name} a value that fits, or leave it out for {self.default}.",
        )


def option(
    default: _Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    choices: tuple[str, ...] = (),
) -> _Value:
    """A dataclass field that carries its own help and limits (typed as its default, for type checkers)."""
    about = {"help": help, "low": low, "high": high, "open_low": open_low, "choices": choices}
    made: Any = dataclasses.field(default=default, metadata=about)
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of every method's ``Config``: frozen, refuses unknown options, survives a JSON round trip.

    Subclasses that add ``__post_init__`` (for contradictions between options) call this one first.
    """

    def __post_init__(self) -> None:
        """Checks every value, also when the config is made by hand.

        Raises:
            UsageError: a value of the wrong type or range.
        """
        for each in self.options():
            value = each.convert(_method_name(type(self)), getattr(self, each.name))
            object.__setattr__(self, each.name, value)  # a list becomes the declared tuple

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The options in the order in which they are declared."""
        return tuple(
            Option(field.name, str(field.type), field.default, **field.metadata)
            for field in dataclasses.fields(cls)
        )

    @classmethod
    def from_dict(cls: type[_ConfigType], given: Mapping[str, object], *, method: str = "") -> _ConfigType:
        """The config for ``given`` options.

        Raises:
            UsageError: an option that does not exist, or a value of the wrong type or range.
        """
        values: dict[str, Any] = check_options(method or _method_name(cls), cls.options(), given)
        return cls(**values)

    def uses(self, *names: str, **only_with: str) -> None:
        """Refuses the options ``names`` unless the option in ``only_with`` has that value.

        A value equal to the default counts as not given: plans are completed with defaults.

        Raises:
            UsageError: an option that would have no effect.
        """
        ((owner, value),) = only_with.items()
        if getattr(self, owner) == value:
            return
        defaults = {each.name: each.default for each in self.options()}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise UsageError(
                    f"Method '{_method_name(type(self))}' uses option '{name}' only with {owner}={value}.",
                    found=f"{owner}={getattr(self, owner)}",
                    wanted=f"{owner}={value}",
                    mend=f"Drop '{name}' or change '{owner}'.",
                )

    def to_dict(self) -> dict[str, object]:
        """Every option with its value, ready for JSON (tuples become lists)."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class KneeConfig(MethodConfig):
    """The options of the knee rules, shared by the methods that cut a sorted score curve."""

    knee: str = option("chord", "rule that finds the knee of the sorted score curve", choices=KNEE_NAMES)
    knee_scale: float = option(1.0, "factor on the knee's count, for calibration", low=0, open_low=True)
    smooth: int = option(15, "derivative knee: width of the smoothing window (odd; 1 = none)", low=1)
    skip: int = option(7, "derivative knee: this many leading tokens are never the knee", low=0)
    difference: int = option(1, "derivative knee: 1 = largest drop, 2 = largest bend", low=1, high=2)

    def __post_init__(self) -> None:
        """Refuses options of a knee that is not used (``UsageError``)."""
        super().__post_init__()
        self.uses("smooth", "skip", "difference", knee="derivative")


@dataclass(frozen=True, kw_only=True)
class CurveConfig(KneeConfig):
    """The options of methods that cut a curve of encoder scores: knee, limits, and who fills the count."""

    min_keep: int = option(16, "the knee never keeps fewer", low=1)
    max_keep: int | None = option(None, "the knee never keeps more", low=1)
    round_to: int = option(1, "round the knee's count up to a multiple", low=1)
    spread: str = option(
        "image", "rank over the whole item, or give every tile (crop, frame) its share", choices=SPREADS
    )

    def __post_init__(self) -> None:
        """Refuses limits that contradict each other (``UsageError``)."""
        super().__post_init__()
        if self.max_keep is not None and self.max_keep < self.min_keep:
            raise UsageError(
                f"Method '{_method_name(type(self))}' has max_keep below min_keep.",
                found=f"min_keep={self.min_keep}, max_keep={self.max_keep}",
                wanted="min_keep <= max_keep",
                mend="Lower min_keep or raise max_keep.",
            )


def check_options(method: str, options: tuple[Option, ...], given: Mapping[str, object]) -> dict[str, object]:
    """``given`` converted and completed with defaults; ``UsageError`` names the first wrong option."""
    known = {each.name: each for each in options}
    for name in given:
        if name not in known:
            raise UsageError(
                f"Method '{method}' has no option '{name}'.",
                found=name,
                wanted=", ".join(known) or "no options at all",
                mend="Run `foveate methods` for the options of every method.",
            )
    return {
        name: each.convert(method, given[name]) if name in given else each.default
        for name, each in known.items()
    }


def _method_name(config: type) -> str:
    return config.__module__.rsplit(".", 1)[-1].replace("_", "-")


def _to_int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(value)
    return int(value)


def _to_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(value)
    return float(value)


def _to_bool(value: object) -> bool:
    words = {"true": True, "yes": True, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError(value)
    return words[value.lower()]


def _to_str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _to_ints(value: object) -> tuple[int, ...]:
    parts: object = value.split("+") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        raise TypeError(value)
    return tuple(_to_int(part) for part in parts)


def _or_none(convert: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None or value == "none" else convert(value)


KINDS: dict[str, Callable[[object], object]] = {
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "str": _to_str,
    "int | None": _or_none(_to_int),
    "tuple[int, ...] | None": _or_none(_to_ints),
}
"""Annotation of an option -> how a typed value or a word from the command line becomes one."""

KIND_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "int | None": "a whole number or none",
    "tuple[int, ...] | None": "whole numbers joined by + (as 20+21+22) or none",
}
