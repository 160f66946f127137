"""The class that lmms-eval runs: a chat model that answers `generate_until` from a bundle.

lmms-eval asks for `Foveate` of this module, and only then is lmms-eval itself imported: every module of
Foveate can be imported without it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foveate.runtime.errors import UsageError
from foveate.runtime.generate import Generation
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import Request, load
from foveate.tools.demo import resolve_bundle
from foveate.tools.extras import needs
from foveate.tools.lmms_eval import NAME, Arguments, read_messages


def __getattr__(name: str) -> Any:
    if name == "Foveate":
        return _model_class()
    raise AttributeError(name)


@functools.cache
def _model_class() -> type:
    """The chat model, as a child of what lmms-eval wants its models to be."""
    with needs("lmms"):
        from lmms_eval.api.model import lmms

    class Foveate(ChatModel, lmms):  # type: ignore[misc]  # lmms-eval carries no types
        """Bundles, for lmms-eval."""

    return Foveate


class ChatModel:
    """One process, ONNX Runtime; samples of equal generation options run in batches.

    lmms-eval's base class adds `task_dict`, where samples are found, and `cache_hook`.
    """

    is_simple = False
    task_dict: Mapping[str, Any]
    cache_hook: Any

    def __init__(
        self,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **given: Any,
    ) -> None:
        """`given` as in `Arguments`; the three named ones come from lmms-eval's own options.

        Raises:
            FoveateError: as `Arguments.read` and `foveate.runtime.pipeline.load` do.
        """
        super().__init__()
        if device not in (None, "cpu"):
            raise UsageError(f"model '{NAME}' runs on the CPU", found=f"device {device}", wanted="cpu")
        if not str(batch_size).isdecimal() or int(str(batch_size)) < 1:
            raise UsageError("the batch size is no number", found=str(batch_size), wanted="1 or more")
        self.batch_size = int(str(batch_size))
        self.arguments = Arguments.read(given)
        self.arguments.options({})  # a wrong budget is reported before anything is loaded
        bundle = resolve_bundle(self.arguments.bundle, say=_say)
        self.pipeline = load(
            bundle,
            layout=self.arguments.layout,
            backend=self.arguments.backend,
            threads=self.arguments.threads,
        )

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """The answers in the order of the requests; logs how much was kept.

        Raises:
            FoveateError: a sample cannot be answered. Nothing is guessed in its place.
        """
        from tqdm import tqdm

        answers: dict[int, Generation] = {}
        started = time.perf_counter()
        with tqdm(total=len(requests), desc="Model Responding") as bar:
            for options, numbers in self._batches(requests):
                prompts = [Request(self._prompt(requests[number].args)) for number in numbers]
                for number, answer in zip(
                    numbers, self.pipeline.generate_batch(prompts, options), strict=True
                ):
                    answers[number] = answer
                    context, _, task_options, *_ = requests[number].args
                    self.cache_hook.add_partial("generate_until", (context, task_options), answer.text)
                bar.update(len(numbers))
        done = [answers[number] for number in range(len(requests))]
        _log(done, time.perf_counter() - started)
        return [_result(answer) for answer in done]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: raises `UsageError`."""
        raise _not_offered("loglikelihood", "choose tasks whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: raises `UsageError`."""
        raise _not_offered("generate_until_multi_round", "choose tasks of one round")

    def _prompt(self, args: Sequence[Any]) -> list[dict[str, Any]]:
        _, messages_of, _, number, task, split = args
        return read_messages(messages_of(self.task_dict[task][split][number]))

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[GenerateOptions, list[int]]]:
        """Numbers of requests that run together, and their options."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(number)
        for numbers in groups.values():
            options = self.arguments.options(_mapping(requests[numbers[0]].args[2]))
            for start in range(0, len(numbers), self.batch_size):
                yield options, numbers[start : start + self.batch_size]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _say(text: str) -> None:
    """Into lmms-eval's log."""
    from loguru import logger

    logger.info(f"Foveate: {text}")


def _result(answer: Generation) -> Any:
    """An answer as lmms-eval has them."""
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    counts = TokenCounts(input_tokens=len(answer.report.positions), output_tokens=len(answer.token_ids))
    return GenerationResult(text=answer.text, token_counts=counts)


def _log(answers: Sequence[Generation], seconds: float) -> None:
    """Speed and what was kept, into lmms-eval's results and its log."""
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    tokens = sum(len(answer.token_ids) for answer in answers)
    seen = [answer.report for answer in answers if answer.report.visual_tokens]
    kept = {
        "visual_tokens": _mean([report.visual_tokens for report in seen]),
        "kept_behind_the_last_cut": _mean([report.kept for report in seen]),
        "kept_layer_average": _mean([report.layer_average for report in seen]),
        "seconds_to_first_token": _mean([answer.timings.ttft for answer in answers]),
    }
    log_metrics(
        total_gen_tokens=tokens,
        total_elapsed_time=seconds,
        avg_speed=tokens / seconds if seconds > 0 else 0.0,
        additional_metrics=kept,
    )
    _say(", ".join(f"{name} {value:.3g}" for name, value in kept.items()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _not_offered(what: str, mend: str) -> UsageError:
    return UsageError(f"model '{NAME}' does not offer {what}", wanted="generate_until", mend=mend)
