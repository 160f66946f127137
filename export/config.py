"""Reading `config.json` with errors that name the key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.runtime.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; raises `CheckpointError` when it is missing or not one."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(
            f"{path.name} is missing",
            found=f"no {path}",
            wanted="a Hugging Face checkpoint folder",
            mend="give the folder that holds config.json and the *.safetensors files",
        ) from e
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise CheckpointError(
            f"{path} can't be read as JSON", found=str(e), mend="fetch the file again"
        ) from e
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a JSON object", found=type(loaded).__name__)
    return loaded


def config_sha256(config: Mapping[str, Any]) -> str:
    """Returns the hash of the configuration's meaning: independent of key order and white space."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


class Reader:
    """Typed look-ups in one section of `config.json`; every complaint names section and key."""

    def __init__(self, section: Mapping[str, Any], name: str) -> None:
        self.section, self.name = section, name

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.refused(key, value, "a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refused(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if not 0 < value < float("inf"):
            raise self.refused(key, value, "a positive, finite number")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.refused(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, value, "true or false")
        return value

    def section_of(self, key: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns an object inside this one; `default` where it is absent, null or empty."""
        value = self._get(key, default) or default
        if not isinstance(value, Mapping):
            raise self.refused(key, value, "an object")
        return value

    def token_ids(self, key: str, default: int | None) -> tuple[int, ...]:
        """Returns a token id or a list of them as a tuple; nothing where it is null."""
        value = self.section.get(key, default)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            raise self.refused(key, value, "a token id, a list of token ids, or null")
        return tuple(ids)

    def _get(self, key: str, default: object) -> object:
        value = self.section.get(key)
        return default if value is None else value

    def require_divisible(self, name: str, value: int, by_name: str, by: int) -> None:
        if value % by:
            raise CheckpointError(
                f"{self.name}: {name} is not a multiple of {by_name}",
                found=f"{name}={value}, {by_name}={by}",
                mend="this configuration fits no model; check config.json",
            )

    def refused(self, key: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name}.{key} in config.json is not usable", found=repr(value), wanted=wanted
        )
