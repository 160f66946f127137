"""The figures of a full size: by hand from a made-up result; and the whole road at toy size, on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foveate.tools import flops
from foveate.tools.bench import checkpoints
from foveate.tools.bench.checkpoints import CHECKPOINTS
from foveate.tools.bench.schema import Case, Result, Rival, Sample, Segment, Subject, Tokens
from foveate.tools.gpu_check.jobs import bundles, speed
from foveate.tools.gpu_check.records import Job, Row
from foveate.tools.large_shapes import SHAPES

TEXT, VISION = 14, 576


def case(budget: str, kept: tuple[int, int], prefill: float, ttft: float, step: float) -> Case:
    """One round; layers 0-1 read the first number of visual tokens, the others the second."""
    wall = dict.fromkeys(("preprocess", "vision", "embed", "host", "total"), 0.0)
    wall |= {"prefill": prefill, "ttft": ttft, "decode": 10 * step}
    token = 2 * 2 * 4096 * 2  # key and value, float16
    segments = ((0, 1), kept[0]), (tuple(range(2, 32)), kept[1])
    return Case(
        subject="foveate",
        budget=budget,
        tokens=Tokens(visual=VISION, kept={"encoder": kept[0]}, prompt=kept[0] + TEXT, layer_average=1.0),
        cache=tuple(
            Segment(layers=layers, tokens=n + TEXT, bytes=token * len(layers) * (n + TEXT) // 2)
            for layers, n in segments
        ),
        samples=(
            Sample(round=0, wall=wall, cpu=wall, graphs={}, steps=((step, step),) * 10, token_ids=(1,)),
        ),
    )


def rival(name: str, ttft: float) -> Rival:
    """A contestant that tells its first token alone."""
    wall = ({"ttft": ttft, "prefill": None, "vision": None, "decode": None},)
    return Rival.model_construct(name=name, wall=wall, cpu=wall, new_tokens=11, device_peak=None)


def made_up() -> Result:
    """All tokens, and 22 % and half: the issue's two cases, beside two rivals."""
    cases = (
        case("all", (576, 576), prefill=0.020, ttft=0.040, step=0.004),
        case(speed.PRUNED, (127, 64), prefill=0.003, ttft=0.015, step=0.004),
    )
    subject = Subject.model_construct(name="foveate", device_peak=15_000_000_000)
    rivals = (rival("transformers:sdpa", 0.080), rival("transformers:compiled", 0.050))
    return Result.model_construct(subjects=(subject,), cases=cases, rivals=rivals, levels=())


def test_the_figures_are_what_one_counts_by_hand() -> None:
    sizes = flops.Sizes.read(filled(SHAPES["llava-1.5-7b"]))
    ceiling = {"gflops": {"fp16": 800_000.0}, "gbytes": {"memory": 4000.0}}
    found = speed.achieved(made_up(), sizes, ceiling)
    # 6.48e9 weights in 32 layers and the head of 0.131e9, two operations a token, and attention.
    linear, head = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 4096 * 32064
    work = 2 * 590 * linear + 32 * 4 * 590**2 * 4096 + 2 * head
    assert found["all: prefill TFLOP/s"] == pytest.approx(1e-12 * work / 0.020)
    assert found["all: prefill over fp16 ceiling"] == pytest.approx(1e-12 * work / 0.020 / 800)
    held = 2 * (linear + head) + 32 * 590 * 2 * 4096 * 2
    assert found["all: decode TB/s"] == pytest.approx(1e-12 * held / 0.004)
    assert found["aim: all decode over read ceiling >= 0.8"] == pytest.approx(1e-12 * held / 0.004 / 4)
    assert found["all: decode tokens/s"] == pytest.approx(250)
    pruned = 2 * (2 * 141 + 30 * 78) * linear / 32 + 4 * 4096 * (2 * 141**2 + 30 * 78**2) + 2 * head
    assert found["aim: prefill ratio over FLOPs ratio <= 1.05"] == pytest.approx(0.15 / (pruned / work))
    assert found["aim: first token of all over the best transformers' <= 0.8"] == pytest.approx(0.8)
    name = f"aim: first token of {speed.PRUNED} over the best transformers' <= 0.3"
    assert found[name] == pytest.approx(0.3)
    assert not any("ceiling" in each for each in speed.achieved(made_up(), sizes, {}))


def filled(config: Any) -> dict[str, Any]:
    """What the configuration leaves to transformers' defaults."""
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32}
    return {**config, "text_config": {**text, **heads, **config["text_config"]}}


def test_contestants_stand_in_one_table() -> None:
    table = speed._first_tokens(made_up())
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert [row[0] for row in table["rows"]] == ["foveate", "foveate", *speed.RIVALS]
    assert table["rows"][0][-1] == "15.0"
    assert table["rows"][-1][2:] == ["?", "?", "50.00", "?", "?"]


@pytest.mark.slow
def test_the_whole_road_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words that the 7B rows give to the commands, with everything on the CPU."""
    full = CHECKPOINTS[speed.CHECKPOINT]
    narrow = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = {
        **full.config,
        "text_config": {**full.config["text_config"], **narrow, "num_key_value_heads": 2},
        "vision_config": {**full.config["vision_config"], **narrow},
    }
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", {speed.CHECKPOINT: replace(full, config=config)})
    monkeypatch.setattr(
        speed, "RIVALS", {"transformers:sdpa": "device=cpu", "transformers:compiled": "cache=static"}
    )
    for name, value in (("ROUNDS", "1"), ("NEW_TOKENS", "4"), ("LEVELS", "1,2")):
        monkeypatch.setattr(speed, name, value)
    said: list[str] = []
    job = Job(tmp_path, Row("toy", "", "", 1), said.append)
    speed.checkpoint(job)
    bundles.export(job, "toy", "onnxruntime", "fp32", speed.CHECKPOINT)
    found = speed.first_token(job, "toy", "onnxruntime")
    assert found["remark"].startswith("transformers did not compile")
    assert len(found["table"]["rows"]) == 4
    assert found["all: decode tokens/s"] > 0
    found = speed.concurrency(job, "toy", "onnxruntime")
    assert [row[0] for row in found["table"]["rows"]] == [1, 1, 2, 2]
    assert (
        json.loads((tmp_path / "bench" / "toy" / "bench.json").read_text())["settings"]["backend"]
        == "onnxruntime"
    )
