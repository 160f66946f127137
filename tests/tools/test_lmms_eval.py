"""lmms-eval's model `foveate`: arguments, options, messages; a whole run where lmms-eval is installed."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.runtime.errors import FoveateError, InputError, UsageError
from foveate.runtime.options import Budget, GenerateOptions
from foveate.tools.lmms_eval import Arguments, read_budgets, read_generation, read_messages
from foveate.tools.lmms_task import TASK, write_task


def test_arguments() -> None:
    given = Arguments.read({"pretrained": "bundle", "keep_ratio": 0.25, "threads": 1})
    assert given == Arguments("bundle", threads=1, keep_ratio=0.25)
    made = given.options({"max_new_tokens": 16, "do_sample": False, "temperature": 0, "top_p": 1.0})
    assert made == GenerateOptions(max_new_tokens=16, keep_ratio=0.25, allow_unpruned=True)
    with pytest.raises(UsageError, match="no argument 'keep_ration'"):
        Arguments.read({"bundle": "b", "keep_ration": 0.25})
    with pytest.raises(UsageError, match="no bundle is named"):
        Arguments.read({"keep_ratio": 0.25})


def test_budgets_by_site() -> None:
    wanted = {"encoder": Budget(ratio=0.25), "decoder@2": Budget(tokens=64)}
    assert read_budgets("encoder:0.25+decoder@2:64") == wanted
    assert read_budgets("") == {}
    for wrong in ("0.25", "encoder", "elsewhere:3", "encoder:many"):
        with pytest.raises(UsageError):
            read_budgets(wrong)


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ({}, GenerateOptions(max_new_tokens=1024)),
        ({"max_new_tokens": 16, "num_beams": 1, "top_p": None}, GenerateOptions(max_new_tokens=16)),
        ({"until": ["\n\n", ""], "temperature": 0.0, "top_k": 5}, GenerateOptions(1024, stop=("\n\n",))),
        ({"until": "###", "image_aspect_ratio": "pad"}, GenerateOptions(1024, stop=("###",))),
        ({"temperature": 0.7, "top_p": 0.9}, GenerateOptions(1024, temperature=0.7, top_p=0.9)),
        ({"do_sample": True, "top_k": 4}, GenerateOptions(1024, temperature=1.0, top_k=4)),
        ({"do_sample": False, "temperature": 0.7}, GenerateOptions(1024)),
    ],
)
def test_generation_options(task: dict[str, Any], wanted: GenerateOptions) -> None:
    assert GenerateOptions(**read_generation(task)) == wanted


@pytest.mark.parametrize("task", [{"num_beams": 3}, {"n": 2}, {"logprobs": True}])
def test_generation_options_that_cannot_be_honoured(task: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="gen_kwargs"):
        read_generation(task)


def test_messages() -> None:
    picture = Image.new("RGB", (4, 4))
    given = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "What?"}]},
        {"role": "user", "content": [{"type": "video", "url": "clip.mp4", "start_time": None}]},
    ]
    assert read_messages(given) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]},
        {"role": "user", "content": [{"type": "video", "video": Path("clip.mp4")}]},
    ]
    for wrong in ({"type": "audio", "url": "a.wav"}, {"type": "video", "url": "v.mp4", "start_time": 3.0}):
        with pytest.raises(InputError, match="cannot look at"):
            read_messages([{"role": "user", "content": [wrong]}])


def test_lmms_eval_finds_the_model() -> None:
    points = importlib.metadata.entry_points(group="lmms_eval.models")
    assert "foveate.tools.lmms_eval:manifest" in {point.value for point in points}


def test_the_toy_task(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", scenes=2)
    rows = [json.loads(line) for line in (task.parent / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert np.asarray(Image.open(rows[0]["image"])).shape == (128, 128, 3)
    with pytest.raises(UsageError):
        write_task(tmp_path / "none", scenes=0)


# --- with lmms-eval itself ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness() -> Any:
    return pytest.importorskip("lmms_eval.evaluator", reason="needs the extra lmms", exc_type=ImportError)


def test_the_manifest(harness: Any) -> None:
    from lmms_eval.models import get_model, list_available_models

    assert "foveate" in list_available_models()
    assert get_model("foveate").__module__ == "foveate.tools.lmms_eval_model"


def run(harness: Any, folder: Path, bundle: str, **arguments: Any) -> dict[str, Any]:
    from lmms_eval.tasks import TaskManager

    words = ",".join(
        f"{name}={value}" for name, value in {"bundle": bundle, "threads": 1, **arguments}.items()
    )
    results: dict[str, Any] = harness.simple_evaluate(
        model="foveate",
        model_args=words,
        tasks=[TASK],
        batch_size=4,
        task_manager=TaskManager("ERROR", include_path=str(folder)),
        log_samples=True,
        bootstrap_iters=0,
    )
    return results


def test_a_whole_run_gives_the_pipelines_answers(harness: Any, tmp_path: Path) -> None:
    """The score of the built-in model, sample by sample what the pipeline itself answers."""
    from foveate.runtime.pipeline import load
    from foveate.tools.demo import resolve_bundle

    task = write_task(tmp_path / "task", scenes=3)
    results = run(harness, task.parent, "demo", keep="encoder:0.5")
    samples = results["samples"][TASK]
    rows = [json.loads(line) for line in (task.parent / "questions.jsonl").read_text().splitlines()]
    assert len(samples) == len(rows)
    pipeline = load(resolve_bundle("demo"), threads=1)
    options = GenerateOptions(max_new_tokens=8, keep={"encoder": Budget(ratio=0.5)})
    right = 0
    for row, sample in zip(rows, sorted(samples, key=lambda each: each["doc_id"]), strict=True):
        wanted = pipeline.generate(row["question"], [row["image"]], options).text
        assert sample["filtered_resps"][0].strip() == wanted.strip()
        right += wanted.strip() == row["answer"]
    score = next(value for name, value in results["results"][TASK].items() if name.startswith("exact_match,"))
    assert score == pytest.approx(right / len(rows))
    assert score > 0.6


def test_errors_reach_the_user(harness: Any, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", scenes=1)
    for arguments in ({"keep_ratio": 0}, {"keep_tokens": 5, "keep_ratio": 0.5}, {"what": 1}):
        with pytest.raises(FoveateError):
            run(harness, task.parent, "demo", **arguments)
    with pytest.raises(FoveateError):
        run(harness, task.parent, str(tmp_path / "no-bundle"))
