"""What to say when something is larger than the engines were built for: which option to raise, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.runtime.engines import EngineRecord, Profile, build_command, option_of
from foveate.runtime.errors import BackendError, ProfileError
from foveate.runtime.manifest import Stage
from foveate.runtime.tensorrt import profiles
from foveate.runtime.tensorrt.engine import Engine
from foveate.runtime.tensorrt.profiles import Misfit, Shape

# What else helps than building again, by option.
_SMALLER = {
    "batch": "fewer requests at once",
    "prompt": "a shorter prompt, fewer images or a smaller --keep-ratio",
    "new": "fewer new tokens",
    "images": "fewer images",
    "visual": "smaller images",
    "kept": "a smaller --keep-ratio",
    "logits": "the logits of fewer tokens",
}


class Limits:
    """The limits of a bundle's engines.

    Args:
        record: what they were built for.
        bundle: its folder, for the command.
    """

    def __init__(self, record: EngineRecord, bundle: Path) -> None:
        self._record = record
        self._bundle = bundle

    def capacity(self, store: int, needed: int) -> int:
        """Slots of a cache, which are as many as the engine was built with.

        Raises:
            ProfileError: more are needed.
        """
        slots = self._record.capacity[store]
        if needed <= slots:
            return slots
        profile = self._record.profile
        # Answers grow by single tokens; who needs many more at once has a long prompt.
        option, value = ("new", profile.new + 1) if needed == slots + 1 else ("prompt", needed - profile.new)
        raise ProfileError(
            "prompt and answer are longer than the caches of the engines",
            found=f"{needed} tokens",
            wanted=f"at most {slots}",
            mend=self._mend(option, value),
        )

    def require_rows(self, batch: int) -> None:
        """Raises `ProfileError` for more sequences than run at once."""
        most = self._record.profile.batch
        if batch > most:
            raise ProfileError(
                "the engines run fewer sequences at once",
                found=str(batch),
                wanted=f"at most {most}",
                mend=self._mend("batch", batch),
            )

    def require_prompt(self, batch: int, lengths: Sequence[int]) -> None:
        """Raises `ProfileError` where prompts cannot fit, whatever is dropped of them.

        `lengths` are rows that at least reach each group of layers.
        """
        self.require_rows(batch)
        profile = self._record.profile
        for group, length in enumerate(lengths):
            option = "kept" if group and profile.kept else "prompt"
            most = profile.kept[group - 1] if option == "kept" else profile.prompt
            if length > most:
                where = f"behind cut {group} of the decoder" if group else "in the decoder"
                raise ProfileError(
                    "the prompt is longer than the engines were built for",
                    found=f"at least {length} tokens {where}",
                    wanted=f"at most {most}",
                    mend=self._mend(option, length),
                )

    def require_room(self, feeds: Mapping[str, object], width: int | None) -> None:
        """Raises `ProfileError` where a chunk does not fit behind what the caches hold.

        TensorRT would drop the rest without a word.
        """
        for group, _ in enumerate(self._record.capacity):
            length = feeds.get(f"cache_length_{group}")
            if length is not None and width is not None:
                self.capacity(group, int(max(length, default=0)) + width)  # type: ignore[call-overload]

    def require_static(self, engine: Engine, shapes: Mapping[str, Shape]) -> None:
        """Raises `BackendError` for an input of another rank, or another size where the engine's is fixed."""
        for name, shape in shapes.items():
            wanted = engine.tensors[name].shape
            if len(wanted) != len(shape) or any(
                w not in (-1, have) for w, have in zip(wanted, shape, strict=True)
            ):
                raise BackendError(
                    f"stage '{engine.name}': input '{name}' is misshapen",
                    found=str(list(shape)),
                    wanted=str(list(wanted)),
                )

    def exceeded(
        self, stage: Stage, name: str, found: Sequence[profiles.Profile], shapes: Mapping[str, Shape]
    ) -> ProfileError:
        """The error for shapes that no profile of a stage holds."""
        misfit = profiles.nearest(found, shapes)[0]
        axis = _axis(stage, misfit)
        option = option_of(name, axis)
        if option == "kept" and not self._record.profile.kept:
            option = "prompt"
        return ProfileError(
            f"stage '{name}': input '{misfit.name}' is out of the engine's range on axis '{axis}'",
            found=str(misfit.size),
            wanted=f"{misfit.low} to {misfit.high}",
            mend=self._mend(option, self._raised(option, misfit)) if misfit.size > misfit.high else "",
        )

    def _raised(self, option: str, misfit: Misfit) -> int:
        """The value of an option that lets so much in: axes grow in proportion, caches by what is missing."""
        value = getattr(self._record.profile, option)
        largest = max(value) if isinstance(value, tuple) else int(value)
        if option == "new":
            return largest + misfit.size - misfit.high
        return math.ceil(largest * misfit.size / misfit.high)

    def _mend(self, option: str, value: int) -> str:
        old: Profile = self._record.profile
        new = (value,) * len(old.kept) if option == "kept" else value
        command = build_command(self._bundle, old.model_copy(update={option: new}), self._record.options)
        return f"ask for {_SMALLER[option]}, or build with {option}={value}: {command}"


def _axis(stage: Stage, misfit: Misfit) -> str:
    """The manifest's name of an axis; lengths that only the engine takes have one for each sequence."""
    shapes = {spec.name: spec.shape for spec in stage.inputs}
    return str(shapes.get(misfit.name, ("batch",))[misfit.axis])
