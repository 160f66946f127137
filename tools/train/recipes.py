"""From a method's name and a user's words to its trainer and recipe."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.pruning.registry import describe_method
from foveate.runtime.errors import UsageError
from foveate.tools.train import TRAINED
from foveate.tools.train.bench import Bench
from foveate.tools.train.trainer import Recipe, Trainer

_KINDS = {"int": int, "float": float}
_MAY_BE_ZERO = ("seed", "weight_decay", "stride", "warm", "slack", "groups", "varied")


def check_method(name: str) -> None:
    """Raises UsageError unless the method exists and has a trainer."""
    kind = describe_method(name).kind
    if name not in TRAINED:
        raise UsageError(
            f"Method '{name}' cannot be trained.",
            found=f"{name}, which is {kind}",
            wanted=", ".join(TRAINED),
            mend="Export it as it is." if kind != "trained" else "Train it with its own package.",
        )


def make_recipe(name: str, words: Sequence[str] = (), **given: Any) -> Recipe:
    """The method's recipe, changed by ``given`` (None: as it is) and by ``words`` such as ``steps=100``.

    Raises:
        UsageError: a setting that does not exist, or a value that is none.
    """
    check_method(name)
    recipe: Recipe = _module(name).Recipe()
    values = {key: value for key, value in given.items() if value is not None}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise _refusal(name, recipe, word, "NAME=VALUE")
        values[key] = text
    fields = {field.name: str(field.type) for field in dataclasses.fields(recipe)}
    for key, value in values.items():
        if key not in fields:
            raise _refusal(name, recipe, f"{key}={value}", ", ".join(fields))
        try:
            values[key] = _KINDS[fields[key]](value)
        except ValueError as error:
            raise _refusal(name, recipe, f"{key}={value}", f"a number ({fields[key]})") from error
        low = 0 if key in _MAY_BE_ZERO else 1e-12
        if not low <= values[key] < float("inf"):
            raise _refusal(
                name, recipe, f"{key}={value}", "a number " + ("of at least 0" if low == 0 else "above 0")
            )
    return dataclasses.replace(recipe, **values)


def make_trainer(name: str, source: Path, recipe: Recipe) -> Trainer:
    """The method's trainer on a checkpoint.

    Raises:
        CheckpointError: no checkpoint.
        UsageError: not one that can be trained on, or a recipe that does not fit the model.
    """
    trainer: Trainer = _module(name).Trainer(Bench(source), recipe)
    return trainer


def _module(name: str) -> Any:
    return importlib.import_module(f"foveate.tools.train.{name.replace('-', '_')}")


def _refusal(name: str, recipe: Recipe, found: str, wanted: str) -> UsageError:
    now = ", ".join(f"{key}={value}" for key, value in recipe.to_dict().items())
    return UsageError(
        f"The training of '{name}' has no such setting.",
        found=found,
        wanted=wanted,
        mend=f"Now it is: {now}.",
    )
