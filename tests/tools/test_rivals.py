"""Rivals in processes of their own: the protocol with the real transformers, and what an absent one says."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import transformers as library
from PIL import Image

from foveate.runtime.errors import BackendError, InputError, MissingDependencyError, UsageError
from foveate.tools.bench.rivals import NAMES, ChildRival, Question, Rival, RivalSettings, make
from foveate.tools.bench.rivals.serve import PARTS, Clock, load

LIBRARY: Any = library
NEW = 6
PROMPT = "What is in this picture?"
TOY = """
import os
SETUP, MODEL, DISTRIBUTIONS = "make it", "", ("pillow", "nobody-has-this")
class Engine:
    def __init__(self, model, checkpoint, threads, options):
        print("an engine that talks")
        os.system("echo and its libraries, too")
        self.settings = {"threads": threads}
    def ask(self, picture, prompt, new_tokens, mark):
        if prompt == "die":
            os._exit(3)
        if prompt == "fail":
            raise ValueError("no such thing")
        mark("prefill")
        mark("prefill")
        return {"prompt_tokens": 1, "new_tokens": new_tokens, "text": f"{prompt} {picture.mode}",
                "told": {"vision": 0.0}}
"""


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        for what in ("PYTHON", "MODEL"):
            monkeypatch.delenv(f"FOVEATE_{name.replace('-', '_').upper()}_{what}", raising=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a picture."""
    path = tmp_path_factory.mktemp("rivals") / "picture.png"
    tiny.make_image(3).save(path)
    return path


@pytest.fixture(scope="module")
def transformers(shallow: Path) -> Iterator[Rival]:
    """transformers in its child process, started."""
    rival = make("transformers", shallow, RivalSettings(threads=1))
    try:
        yield rival
    finally:
        rival.stop()


def toy(folder: Path) -> ChildRival:
    """An engine of a few lines."""
    (folder / "toy.py").write_text(TOY)
    return ChildRival("toy", folder, RivalSettings(), load(str(folder / "toy.py")))


def generated(checkpoint: Path, picture: Path) -> tuple[str, int]:
    """What transformers answers in this process, and the prompt's length."""
    model = LIBRARY.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32")
    processor = LIBRARY.AutoProcessor.from_pretrained(checkpoint)
    with Image.open(picture) as opened:
        inputs = processor(images=opened, text=f"<s>USER: <image>\n{PROMPT} ASSISTANT:", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)[0, length:]
    return processor.tokenizer.decode(ids, skip_special_tokens=True), length


def test_transformers_answers_as_it_does_here_and_tells_its_parts(
    transformers: Rival, picture: Path, shallow: Path
) -> None:
    question = Question(picture, PROMPT, NEW)
    started = transformers.start(question)
    assert started.first is not None
    assert {"python", "torch", "transformers"} <= set(started.versions)
    assert started.settings["dtype"] == "float32"
    assert 0 < started.rss_bytes <= started.load_peak_rss

    answer = transformers.ask(question)
    text, length = generated(shallow, picture)
    assert (answer.text, answer.prompt_tokens, answer.new_tokens) == (text, length, NEW)
    assert started.first.text == answer.text
    for split in (answer.wall, answer.cpu):
        parts = asdict(split)
        assert all(parts[name] > 0 for name in (*PARTS, "ttft", "total"))
        assert sum(parts[name] for name in PARTS[:3]) == pytest.approx(split.ttft)
        assert split.ttft + parts["decode"] == pytest.approx(split.total)
    assert 0 < answer.rss <= answer.peak_rss


def engine(checkpoint: Path, **options: str) -> Any:
    """transformers' engine in this process."""
    spec = importlib.util.find_spec("foveate.tools.bench.rivals.transformers")
    assert spec is not None
    assert spec.origin is not None
    return load(spec.origin).Engine(str(checkpoint), str(checkpoint), 1, options)


def test_transformers_with_a_static_cache_answers_the_same_and_says_whether_it_compiled(
    picture: Path, shallow: Path
) -> None:
    made = engine(shallow, cache="static")
    assert made.settings["cache"] == "static"
    assert made.settings["compiled"] is False  # transformers compiles for accelerators only
    with Image.open(picture) as opened:
        assert made.ask(opened, PROMPT, NEW, lambda part: None)["text"] == generated(shallow, picture)[0]


@pytest.mark.skipif(LIBRARY.utils.is_torch_cuda_available(), reason="there is a GPU")
def test_transformers_without_the_gpu_that_it_was_asked_for(shallow: Path) -> None:
    with pytest.raises(RuntimeError, match="sees no GPU"):
        engine(shallow, device="cuda", dtype="float16")


@pytest.mark.slow
def test_our_own_bundle_is_a_contestant_too(picture: Path, shallow: Path, shallow_bundle: Path) -> None:
    settings = RivalSettings(model=shallow_bundle, options={"budget": "all"})
    rival = make("foveate", shallow, settings)
    rival.start()
    answer = rival.ask(Question(picture, PROMPT, NEW))
    rival.stop()
    assert (answer.text, answer.prompt_tokens) == generated(shallow, picture)
    assert answer.new_tokens == NEW


def test_a_picture_that_is_none_is_the_users_error_and_the_rival_goes_on(
    transformers: Rival, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError):
        transformers.ask(Question(tmp_path / "text.png", PROMPT, 1))
    assert transformers.ask(Question(picture, PROMPT, 1)).decode_rate is None
    transformers.stop()
    transformers.stop()
    with pytest.raises(BackendError, match="is not running"):
        transformers.ask(Question(picture, PROMPT, 1))


@pytest.mark.skipif(importlib.util.find_spec("openvino_genai") is not None, reason="it is installed here")
def test_an_absent_rival_says_how_to_make_its_environment(tmp_path: Path) -> None:
    rival = make("openvino-genai", tmp_path, RivalSettings(model=tmp_path))
    with pytest.raises(MissingDependencyError, match=r"openvino-genai is absent.*openvino_genai") as caught:
        rival.start()
    assert sys.executable in caught.value.found
    assert "pip install openvino-genai" in caught.value.mend
    assert "FOVEATE_OPENVINO_GENAI_PYTHON" in caught.value.mend


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    settings = RivalSettings(python=tmp_path / "bin/python")
    with pytest.raises(MissingDependencyError, match="cannot be started"):
        make("transformers", tmp_path, settings).start()


def test_a_model_that_is_not_made_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = make("openvino-genai", tmp_path, RivalSettings())
    with pytest.raises(MissingDependencyError) as caught:
        rival.start()
    assert f"optimum-cli export openvino -m {tmp_path}" in caught.value.mend
    monkeypatch.setenv("FOVEATE_OPENVINO_GENAI_MODEL", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="nowhere"):
        rival.start()


def test_unknown_rivals() -> None:
    assert NAMES == ("foveate", "onnxruntime-genai", "openvino-genai", "transformers")
    with pytest.raises(UsageError, match="one-more"):
        make("one-more", Path(), RivalSettings())


def test_what_engines_print_is_not_taken_for_answers(tmp_path: Path, picture: Path) -> None:
    rival = toy(tmp_path)
    started = rival.start()
    assert started.first is None
    assert started.versions["nobody-has-this"] == "missing"
    assert rival.ask(Question(picture, "hello", 2)).text == "hello RGB"
    rival.stop()


def test_errors_and_death_of_an_engine(tmp_path: Path, picture: Path) -> None:
    rival = toy(tmp_path)
    rival.start()
    with pytest.raises(BackendError, match="no such thing"):
        rival.ask(Question(picture, "fail", 1))
    assert rival.ask(Question(picture, "hello", 1)).text == "hello RGB"
    with pytest.raises(BackendError, match="exit code 3"):
        rival.ask(Question(picture, "die", 1))
    rival.stop()


def test_a_part_that_the_engine_timed_itself_comes_out_of_the_prefill() -> None:
    clock = Clock()
    clock.mark("prefill")
    clock.mark("decode")
    split = clock.split(0, {"vision": 0.25})
    assert split["preprocess"] is None
    assert split["vision"] == 0.25
    prefill, ttft = split["prefill"], split["ttft"]
    assert prefill is not None
    assert prefill + 0.25 == ttft


def test_engines_say_how_they_are_made() -> None:
    for name in NAMES:
        spec = importlib.util.find_spec(f"foveate.tools.bench.rivals.{name.replace('-', '_')}")
        assert spec is not None
        assert spec.origin is not None
        file: ModuleType = load(spec.origin)
        assert "pip install" in file.SETUP
        assert file.DISTRIBUTIONS
        assert not file.MODEL or "{checkpoint}" in file.MODEL
