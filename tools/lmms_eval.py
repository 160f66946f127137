"""Bundles as a model of lmms-eval: `python -m lmms_eval --model foveate --model_args bundle=...`.

lmms-eval finds `manifest` by the entry-point group `lmms_eval.models`. What has to be known without lmms-eval
is here: which arguments there are, how its messages and generation options become ours. The class that it
runs is in `lmms_eval_model.py`, which imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.runtime.errors import InputError, UsageError
from foveate.runtime.options import ENCODER, Budget, GenerateOptions
from foveate.tools.extras import needs

NAME = "foveate"
MODEL = "foveate.tools.lmms_eval_model.Foveate"

# What lmms-eval's own models take where a task does not say.
MAX_NEW_TOKENS = 1024

# Options of tasks that other models use, and that mean nothing to greedy decoding or to us.
_WITHOUT_EFFECT = frozenset(
    {"image_aspect_ratio", "use_cache", "repetition_penalty", "length_penalty", "seed"}
)


def manifest() -> Any:
    """What lmms-eval's registry is told: the name `foveate`, a chat model.

    Raises:
        MissingDependencyError: lmms-eval is not installed, or older than its entry points.
    """
    with needs("lmms"):
        from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=MODEL)


@dataclass(frozen=True)
class Arguments:
    """`--model_args` as lmms-eval parses them: numbers, booleans and texts by name.

    Attributes:
        bundle: the folder that `foveate export` wrote, or `demo`; `pretrained` means the same.
        layout, backend, threads: as of `foveate.runtime.pipeline.load`.
        keep: budgets by site, as `encoder:0.25+decoder@2:64`; with a point it is a ratio, else tokens.
        keep_ratio, keep_tokens, share, pruning_seed: as of `GenerateOptions`.
        allow_unpruned: whether a sample of which nothing was pruned is fine. It is by default: a method with
            a count of its own may keep all of one picture; the log says how much was kept on average.
    """

    bundle: str
    layout: str | None = None
    backend: str | None = None
    threads: int | None = None
    keep_ratio: float | None = None
    keep_tokens: int | None = None
    keep: str = ""
    share: str = "each"
    pruning_seed: int | None = None
    allow_unpruned: bool = True

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Arguments:
        """The arguments by name.

        Raises:
            UsageError: an unknown argument, or no bundle.
        """
        values = {("bundle" if name == "pretrained" else name): value for name, value in given.items()}
        known = list(cls.__dataclass_fields__)
        unknown = sorted(set(values) - set(known))
        if unknown or "bundle" not in values:
            raise UsageError(
                f"lmms-eval's model '{NAME}' has no argument '{unknown[0]}'"
                if unknown
                else "no bundle is named",
                found=", ".join(map(str, given)) or "no arguments",
                wanted=", ".join(known),
                mend="write --model_args bundle=FOLDER,keep_ratio=0.25",
            )
        return cls(**values)

    def options(self, task: Mapping[str, Any]) -> GenerateOptions:
        """These budgets, and a task's `generation_kwargs`.

        Raises:
            UsageError: an option that cannot be honoured: beams, several answers.
        """
        number = self.keep_tokens
        return GenerateOptions(
            **read_generation(task),
            keep_ratio=None if self.keep_ratio is None else float(self.keep_ratio),
            keep_tokens=None if number is None else int(number),
            keep=read_budgets(self.keep),
            share=self.share,
            pruning_seed=self.pruning_seed,
            allow_unpruned=self.allow_unpruned,
        )


def read_budgets(text: str) -> dict[str, Budget]:
    """`encoder:0.25+decoder@2:64` as budgets by site (`UsageError` if it is none)."""
    budgets = {}
    for part in filter(None, str(text).split("+")):
        site, colon, amount = part.rpartition(":")
        if not colon or not (site == ENCODER or site.startswith("decoder@")):
            raise UsageError(
                "keep is no list of budgets by site",
                found=repr(part),
                wanted="encoder:0.25, or decoder@2:64, joined by +",
            )
        budgets[site] = Budget.parse(amount)
    return budgets


def read_generation(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's `generation_kwargs` as keyword arguments of `GenerateOptions`.

    Options that mean nothing without beams or sampling are dropped; so is what only other models use.

    Raises:
        UsageError: beams, several answers, or an option that nobody knows.
    """
    given = {name: value for name, value in task.items() if value is not None and name not in _WITHOUT_EFFECT}
    for name in ("num_beams", "n", "num_return_sequences"):
        if int(given.pop(name, 1)) != 1:
            raise UsageError(
                f"the task asks for {name}={task[name]}, and Foveate follows one answer only",
                found=f"{name}={task[name]}",
                wanted=f"{name}=1",
                mend=f"pass --gen_kwargs {name}=1",
            )
    until = given.pop("until", ())
    stop = (until,) if isinstance(until, str) else tuple(until)
    options: dict[str, Any] = {
        "max_new_tokens": int(given.pop("max_new_tokens", MAX_NEW_TOKENS)),
        "stop": tuple(text for text in stop if text),
    }
    temperature, top_p, top_k = (given.pop(name, None) for name in ("temperature", "top_p", "top_k"))
    sampling = given.pop("do_sample", bool(temperature))
    if sampling:
        options |= {"temperature": 1.0 if not temperature else float(temperature)}
        options |= {} if top_p is None else {"top_p": float(top_p)}
        options |= {} if not top_k else {"top_k": int(top_k)}
    if given:
        raise UsageError(
            "the task sets generation options that Foveate does not have",
            found=", ".join(sorted(given)),
            wanted="max_new_tokens, until, do_sample, temperature, top_p, top_k",
            mend="override them with --gen_kwargs",
        )
    return options


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's chat messages (contents of text, image and video parts) as a prompt of ours.

    Raises:
        InputError: a part of another kind, such as audio.
    """
    return [
        {"role": message["role"], "content": [_part(part) for part in _parts(message["content"])]}
        for message in messages
    ]


def _parts(content: Any) -> Sequence[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        return {"type": "image", "image": part["url"]}
    if kind == "video" and part.get("start_time") is None and part.get("end_time") is None:
        return {"type": "video", "video": Path(part["url"])}
    raise InputError(
        "a message has a part that Foveate cannot look at",
        found=f"{kind}, a part of it" if kind == "video" else str(kind),
        wanted="text, an image, or a whole video",
    )
