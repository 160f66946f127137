"""The commands do what their help says, on a real tiny bundle; with --json stdout is one JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from typer.testing import Result

from foveate.runtime.backends.cuda import INSTALL

Foveate = Callable[..., Result]

QUESTION = ("--prompt", "What is this?", "--max-new-tokens", "4")


def test_run_prints_the_answer_and_one_line(foveate: Foveate, bundle: Path, image: Path) -> None:
    done = foveate("run", bundle, "--image", image, *QUESTION)
    assert done.exit_code == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    for words in (
        "visual tokens 25 →",
        "at encoder (",
        "at decoder@2 (",
        "layer average",
        "first token",
        "tokens/s",
        "cache ",
        "layers 0-1: ",
    ):
        assert words in last
    for part in ("preprocess", "vision", "prefill"):
        assert part in last


def test_run_json_tells_everything(foveate: Foveate, bundle: Path, image: Path) -> None:
    done = foveate(
        "run",
        bundle,
        "--image",
        image,
        *QUESTION,
        "--keep",
        "encoder=10",
        "--keep",
        "decoder@2=0.5",
        "--json",
    )
    answer = json.loads(done.stdout)
    encoder, decoder = answer["pruning"]["sites"]
    assert (encoder["site"], encoder["total"], encoder["kept"], encoder["removed"]) == ("encoder", 25, 10, 15)
    assert (decoder["site"], decoder["total"], decoder["kept"], decoder["removed"]) == ("decoder@2", 10, 5, 5)
    assert len(encoder["kept_index"][0]) == 10
    assert set(decoder["kept_index"][0]) <= set(encoder["kept_index"][0])
    assert len(answer["token_ids"]) <= 4
    assert {"text", "finish_reason", "timings", "layout", "bundle"} <= set(answer)
    assert answer["timings"]["ttft"] > 0
    assert answer["pruning"]["positions"][0] == 0
    segments = answer["pruning"]["segments"]
    assert segments[0]["tokens"] - segments[1]["tokens"] == 5
    assert answer["pruning"]["cache_bytes"] == sum(each["cache_bytes"] for each in segments)


def test_the_same_ratio_by_both_options(foveate: Foveate, bundle: Path, image: Path) -> None:
    answers = [
        json.loads(foveate("run", bundle, "--image", image, *QUESTION, *words, "--json").stdout)
        for words in (("--keep-ratio", "0.4"), ("--keep-tokens", "10"), ("--keep", "encoder=0.4"))
    ]
    assert len({tuple(answer["token_ids"]) for answer in answers}) == 1
    assert {answer["pruning"]["sites"][0]["kept"] for answer in answers} == {10}


def test_one_budget_for_two_images(foveate: Foveate, bundle: Path, image: Path) -> None:
    words = ("run", bundle, "--image", image, "--image", image, *QUESTION, "--keep-tokens", "9", "--json")
    kept = {}
    for share in ("each", "proportional"):
        answer = json.loads(foveate(*words, "--share", share).stdout)
        kept[share] = [len(index) for index in answer["pruning"]["sites"][0]["kept_index"]]
    assert kept == {"each": [9, 9], "proportional": [5, 4]}
    refused = foveate("run", bundle, "--image", image, *QUESTION, "--share", "proportional")
    assert refused.exit_code == 2
    assert "keep_tokens" in refused.stderr


def test_videos_are_refused_by_a_model_without_them(foveate: Foveate, bundle: Path, image: Path) -> None:
    done = foveate("run", bundle, "--video", image, *QUESTION)
    assert done.exit_code == 7
    assert "takes no videos" in done.stderr
    done = foveate("run", bundle, "--image", image, *QUESTION, "--fps", "2")
    assert done.exit_code == 2
    assert "--fps and --max-frames are for videos" in done.stderr


def test_run_draws_a_panel_for_each_site(foveate: Foveate, bundle: Path, image: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "kept.png"
    done = foveate("run", bundle, "--image", image, "--image", image, *QUESTION, "--show", picture)
    assert done.exit_code == 0, done.stderr
    with Image.open(picture) as drawn:
        assert drawn.width > 3 * 300
        assert drawn.height > 2 * 300  # a row for each image


def test_run_without_an_image(foveate: Foveate, bundle: Path) -> None:
    done = foveate("run", bundle, *QUESTION)
    assert done.exit_code == 0, done.stderr
    assert "no image" in done.stdout


def test_run_reads_the_prompt_from_standard_input(foveate: Foveate, bundle: Path) -> None:
    piped = foveate(
        "run", bundle, "--prompt", "-", "--max-new-tokens", "4", "--json", stdin="What is this?\n"
    )
    typed = foveate("run", bundle, *QUESTION, "--json")
    assert json.loads(piped.stdout)["token_ids"] == json.loads(typed.stdout)["token_ids"]


def test_chat_goes_on_after_a_bad_image(foveate: Foveate, bundle: Path, image: Path) -> None:
    lines = f"What is this?\n/image {image}.missing\nAnd this?\n/image {image}\nAnd this?\n\n"
    done = foveate("run", bundle, "--chat", "--max-new-tokens", "3", stdin=lines)
    assert done.exit_code == 0, done.stderr
    assert "there is no image" in done.stderr
    assert "visual tokens 25" in done.stderr


def test_export_json(foveate: Foveate, checkpoint: Path, tmp_path: Path) -> None:
    words = (
        "--layout",
        "segmented",
        "--positions",
        "original",
        "--method",
        "text-relevance@1:ratio=0.25",
        "--json",
    )
    document = json.loads(foveate("export", checkpoint, "-o", tmp_path / "bundle", *words).stdout)
    assert document["positions"] == "original"
    assert list(document["layouts"]) == ["segmented"]
    (cut,) = document["pruning"]
    assert (cut["site"], cut["layer"], cut["params"]["ratio"]) == ("decoder", 1, 0.25)


def test_inspect(foveate: Foveate, bundle: Path) -> None:
    shown = foveate("inspect", bundle, "--full")
    assert shown.exit_code == 0, shown.stderr
    for words in ("cls-knee", "decoder@2", "pixel_values", "past_key_0", "weights.bin", "not verified yet"):
        assert words in shown.stdout
    document = json.loads(foveate("inspect", bundle, "--json").stdout)
    assert document["stages"]["vision"]["inputs"][0]["name"] == "pixel_values"


def test_methods(foveate: Foveate) -> None:
    shown = foveate("methods")
    for words in ("cls-knee", "text-relevance", "random", "2409.01162", "trained", "baseline"):
        assert words in shown.stdout
    assert "min_keep" in foveate("methods", "cls-knee").stdout
    assert "50% of the layers (share=0.25)" in foveate("methods", "pyramiddrop").stdout
    listed = {method["name"]: method for method in json.loads(foveate("methods", "--json").stdout)}
    assert listed["random"]["sites"] == ["encoder", "decoder"]
    (one,) = json.loads(foveate("methods", "cls-knee", "--json").stdout)
    assert {option["name"]: option["default"] for option in one["options"]}["knee"] == "chord"


def test_doctor(foveate: Foveate) -> None:
    shown = foveate("doctor")
    assert shown.exit_code == 0
    for words in ("onnxruntime", "CPUExecutionProvider", "usable cores", "export", "demo model"):
        assert words in shown.stdout
    document = json.loads(foveate("doctor", "--json").stdout)
    assert document["ready"]
    extras = {extra["name"]: extra for extra in document["extras"]}
    assert INSTALL.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")
    assert "onnxruntime-gpu[cuda,cudnn]" in INSTALL
    assert extras["base"]["complete"]
    for name, extra in extras.items():
        # onnxruntime-gpu owns the folder of onnxruntime, so that line is a longer one.
        mend = INSTALL if name == "gpu" else f'pip install "foveate[{name}]"'
        assert extra["complete"] or extra["mend"] == mend
