"""`foveate bench`: what it measures is all there and adds up; unlike runs and bad options are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result as Done

from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import BackendError, InputError, UsageError
from foveate.runtime.manifest import Manifest
from foveate.tools import flops
from foveate.tools.bench import budgets, compare, statistics, table
from foveate.tools.bench.asking import Answer, Asked
from foveate.tools.bench.child import Child, dumped, revived
from foveate.tools.bench.device_roofline import stages_of
from foveate.tools.bench.schema import Case, Result, Rival
from foveate.tools.bench.trace import Traced, split, trace

Foveate = Callable[..., Done]
NEW, CLIENTS = 4, 2


@pytest.fixture(scope="module")
def result(foveate: Foveate, bundle: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two cases, alone and with two requests at once, through the command and its processes."""
    out = tmp_path_factory.mktemp("bench")
    done = foveate(
        *("bench", f"tiny={bundle}", "--image", image, "--rounds", 2, "--warm-up", 1, "--new-tokens", NEW),
        *("--budget", "all", "--budget", "encoder=0.5,decoder@2=0.5"),
        *("--concurrency", CLIENTS, "--requests", 1, "--out", out),
    )
    assert done.exit_code == 0, done.stderr
    for title in ("Time to the first token", "Where it goes", "Requests at once", "Memory", "Cache"):
        assert title in done.stdout
    assert "speed-up" not in done.stdout
    assert {path.name for path in out.iterdir()} == {"bench.json", "first-token.png", "concurrency.png"}
    return out / "bench.json"


@pytest.fixture(scope="module")
def traced(bundle: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The parts of the same cases, traced in this process, and an answer of each."""
    asked = Asked(bundle, None, 1, tmp_path_factory.mktemp("trace"))
    answers: dict[str, Answer] = {}

    def ask(budget: str) -> Answer:
        options = budgets.Wish.parse(budget).options(asked.bundle.manifest, NEW)
        answers[budget] = asked.ask(image, "What is this?", options, 0)
        return answers[budget]

    found = trace(asked, ask, ["all", "encoder=0.5,decoder@2=0.5"], 1)
    return {"rows": found, "answers": answers}


# --- what is measured ---------------------------------------------------------------------------------------


def test_every_sample_is_there_and_adds_up(result: Path) -> None:
    found = Result.read(result)
    assert [(case.subject, case.budget) for case in found.cases] == [
        ("tiny", "all"),
        ("tiny", "encoder=0.5,decoder@2=0.5"),
    ]
    for case in found.cases:
        assert [sample.round for sample in case.samples] == [0, 1]
        for sample in case.samples:
            for clock in (sample.wall, sample.cpu):
                parts = sum(clock[part] for part in table.SPLIT)
                assert parts == pytest.approx(clock["ttft"])
                assert clock["ttft"] + clock["decode"] == pytest.approx(clock["total"])
            assert len(sample.token_ids) == NEW
            assert sum(wall for wall, _ in sample.steps) == pytest.approx(sample.wall["decode"], rel=0.05)
            assert set(sample.graphs) == {"vision", "embed", "decoder"}
    assert not found.remarks


def test_settings_and_machine_are_in_the_document(result: Path, image: Path) -> None:
    found = Result.read(result)
    assert found.settings.image == str(image)
    assert (found.settings.new_tokens, found.settings.rounds, found.settings.threads) == (NEW, 2, 1)
    assert len(found.settings.cores) == 1
    assert found.versions["onnxruntime"]
    assert found.machine.cores >= 1
    (subject,) = found.subjects
    assert subject.plan == ("cls-knee at encoder", "text-relevance at decoder@2")
    assert 0 < subject.rss_base < subject.rss_loaded <= subject.rss_peak


def test_a_pruned_request_keeps_a_smaller_cache(result: Path, bundle: Path) -> None:
    full, pruned = Result.read(result).cases
    record = json.loads((bundle / "manifest.json").read_text())["cache"]
    for case in (full, pruned):
        for segment, layers in zip(case.cache, record["groups"], strict=True):
            assert segment.layers == tuple(layers)
            row = 2 * record["num_kv_heads"] * record["head_dim"] * 4  # keys and values of float32
            assert segment.bytes == segment.tokens * len(layers) * row
    text = full.tokens.prompt - full.tokens.visual
    assert [each.tokens for each in full.cache] == [full.tokens.prompt] * 2
    assert [each.tokens for each in pruned.cache] == [
        text + pruned.tokens.kept["encoder"],
        text + pruned.tokens.kept["decoder@2"],
    ]


def test_requests_at_once_are_all_answered(result: Path) -> None:
    found = Result.read(result)
    assert len(found.levels) == 2 * 2  # cases, rounds
    for level in found.levels:
        assert (level.concurrency, level.requests, level.tokens) == (CLIENTS, CLIENTS, CLIENTS * NEW)
        assert len(level.first) == CLIENTS
        assert len(level.between) == CLIENTS * (NEW - 1)
        assert max(level.first) <= level.wall


def test_one_json_document_on_stdout(foveate: Foveate, result: Path) -> None:
    done = foveate("bench", "--compare", result, result, "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert {row["second / first"] for row in document["cases"] if row["second / first"]} == {"1.00"}
    assert document["differences"] == document["alone"] == []


# --- parts --------------------------------------------------------------------------------------------------


def _flops(rows: list[Traced], part: str) -> float:
    return sum(
        sum(row.flops.values()) for row in rows if row.phase == "prefill" and row.part.startswith(part)
    )


def test_the_parts_do_what_the_formulas_say(traced: dict[str, Any], checkpoint: Path) -> None:
    sizes = flops.Sizes.read(json.loads((checkpoint / "config.json").read_text()))
    for budget, rows in traced["rows"].items():
        tokens, cache = traced["answers"][budget].tokens, traced["answers"][budget].cache
        text = tokens.prompt - tokens.kept["encoder"]
        present = [each.tokens - text for each in cache for _ in each.layers]
        formula = flops.prefill(sizes, tokens.kept["encoder"], present, text)
        assert _flops(rows, "vision") == formula.vision
        assert _flops(rows, "embed") == formula.connector
        assert _flops(rows, "segment") + _flops(rows, "head") == formula.decoder
        assert _flops(rows, "select") > 0


def test_whole_graphs_on_a_gpu_are_counted_as_the_trace_counts_their_nodes(
    traced: dict[str, Any], bundle: Path
) -> None:
    """The GPU's roofline has no trace: its formulas and its bytes must be those of one."""
    opened = Bundle.open(bundle)
    for budget, rows in traced["rows"].items():
        answer = traced["answers"][budget]
        case = Case(
            subject="x", budget=budget, tokens=answer.tokens, cache=answer.cache, samples=(answer.sample,) * 3
        )
        stages = {
            (each.phase, each.part): each for each in stages_of(case, opened, lambda _: ("cuda", "fused"))
        }
        assert set(stages) == {("prefill", part) for part in ("vision", "embed", "decoder")} | {
            ("decode", "decoder")
        }
        for part, own in (("vision", ("vision",)), ("embed", ("embed",)), ("decoder", ("segment", "head"))):
            counted = stages["prefill", part].flops["fp32"]
            assert counted == sum(_flops(rows, each) for each in own)
            assert stages["prefill", part].seconds == answer.sample.graphs[part][0]
        read = sum(r.bytes for r in rows if r.phase == "decode" and r.part.startswith(("segment", "head")))
        assert stages["decode", "decoder"].bytes == read


def test_the_memory_of_a_gpu_is_told_where_there_is_one(result: Path) -> None:
    found = Result.read(result)
    columns, rows = table.memory(found)
    assert columns[-1] == "load s"
    subject = found.subjects[0].model_copy(update={"device_peak": 512_000_000})
    rival = Rival.model_construct(name="transformers:sdpa", load=(1.0, 1.0), rss_peak=2_000_000)
    columns, rows = table.memory(found.model_copy(update={"subjects": (subject,), "rivals": (rival,)}))
    assert columns[-1] == "GPU peak MB"
    assert [row[-1] for row in rows] == ["512", "not told"]
    assert {len(row) for row in rows} == {len(columns)}


def test_where_there_is_no_formula_nothing_is_counted_and_it_says_so(
    traced: dict[str, Any], bundle: Path
) -> None:
    opened = Bundle.open(bundle)
    gone = opened.manifest.source.model_copy(update={"path": "nowhere"})
    strange = replace(opened, manifest=opened.manifest.model_copy(update={"source": gone}))
    answer, said = traced["answers"]["all"], list[str]()
    case = Case(subject="x", budget="all", tokens=answer.tokens, cache=answer.cache, samples=(answer.sample,))
    stages = list(stages_of(case, strange, lambda _: ("cuda", "fused"), said.append))
    assert not any(each.flops for each in stages)
    assert len(said) == 1
    assert "not counted" in said[0]


def test_a_step_reads_the_weights_of_its_layers_and_the_cache(
    traced: dict[str, Any], checkpoint: Path
) -> None:
    sizes = flops.Sizes.read(json.loads((checkpoint / "config.json").read_text())).decoder
    linear = sizes.width * (2 * sizes.query + 2 * sizes.key) + 3 * sizes.width * sizes.mlp
    for budget, rows in traced["rows"].items():
        for number, segment in enumerate(traced["answers"][budget].cache):
            (row,) = (r for r in rows if (r.phase, r.part) == ("decode", f"segment {number}"))
            small = row.bytes - segment.bytes - 4 * linear * len(segment.layers)  # norms and constants
            assert 0 < small < 0.05 * row.bytes


def test_every_part_of_both_phases_is_there(traced: dict[str, Any]) -> None:
    for rows in traced["rows"].values():
        found = {phase: [row.part for row in rows if row.phase == phase] for phase in ("prefill", "decode")}
        assert found["prefill"] == ["vision", "select", "embed", "segment 0", "segment 1", "head"]
        assert found["decode"] == found["prefill"][1:]
        assert all(0 < row.products <= row.seconds for row in rows if row.part.startswith("segment"))


def test_the_runs_of_an_answer_are_told_apart() -> None:
    text = [("embed", 0), ("decoder", 0)]  # methods that read the words run them alone, before the picture
    answer = [*text, ("vision", 0), ("embed", 1), ("decoder", 1), ("embed", 2), ("decoder", 2)]
    first, steps = split(answer)
    assert first == answer[:5]
    assert steps == [answer[5:]]
    assert split(answer[:5]) == (answer[:5], [])


def test_ceilings() -> None:
    from foveate.tools.bench.ceilings import measure

    said: list[float] = []
    found = measure(
        1, lambda done, total: said.append(done / total), shapes=((256, 256),), sizes={"memory": 2**20}
    )
    assert set(found.gflops) == {"fp32", "int8", "int8-block", "int4-block"}
    assert all(value > 0 for value in (*found.gflops.values(), *found.gbytes.values()))
    assert said[-1] == 1


# --- comparing ----------------------------------------------------------------------------------------------


def _changed(result: Path, target: Path, **changes: Any) -> Path:
    """A copy with other settings, or other facts of its subject."""
    document = json.loads(result.read_text())
    for name, value in changes.items():
        place = document["settings"] if name in document["settings"] else document["subjects"][0]
        place[name] = value
    target.write_text(json.dumps(document))
    return target


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": "Why?"}, "prompt: "),
        ({"threads": 2}, "threads: 1 and 2"),
        ({"image_sha256": "0"}, "image_sha256"),
        ({"weights_sha256": "0"}, "weights of tiny"),
        ({"rounds": 9, "new_tokens": 99}, "rounds: 2 and 9"),
    ],
)
def test_unlike_runs_are_refused(
    foveate: Foveate, result: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    done = foveate("bench", "--compare", result, _changed(result, tmp_path / "other.json", **changes))
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert named in said
    assert "not comparable" in said
    assert "--allow" in said
    assert done.stdout == ""


def test_a_setting_may_be_allowed_to_differ(result: Path, tmp_path: Path) -> None:
    one = Result.read(result)
    other = Result.read(_changed(result, tmp_path / "other.json", threads=2, precision={"decoder": "int8"}))
    found = compare.compare(one, other, ["threads"])
    assert {each.name for each in found.differences} == {"threads", "precision of tiny"}
    assert len(found.cases) == 2
    assert not found.alone
    with pytest.raises(UsageError, match="does not differ: cores"):
        compare.compare(one, other, ["threads", "cores"])


def test_no_case_in_common(result: Path) -> None:
    one = Result.read(result)
    other = one.model_copy(update={"cases": tuple(c.model_copy(update={"budget": "7"}) for c in one.cases)})
    with pytest.raises(UsageError, match="no case in common"):
        compare.compare(one, other)


def test_something_else_is_no_result(tmp_path: Path, result: Path) -> None:
    for text in ("", "{}", "[1]", result.read_text().replace('"format": 1', '"format": 2')):
        path = tmp_path / "odd.json"
        path.write_text(text)
        with pytest.raises(InputError, match="no result of foveate bench"):
            Result.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        Result.read(tmp_path / "missing.json")


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no bundle to measure"),
        (("b=x", "b=y"), "named twice"),
        (("x", "--rounds", "0"), "--rounds is out of range"),
        (("x", "--new-tokens", "0"), "1 or more"),
        (("x", "--prompt", " "), "the prompt is empty"),
        (("x", "--budget", "half"), "encoder=0.22,decoder@2=0.5"),
        (("x", "--budget", "encoder=0.5,encoder=0.2"), "malformed"),
        (("x", "--budget", "1.5"), "malformed"),
        (("x", "--budget", "all", "--budget", "all"), "given twice"),
        (("x", "--threads", "4096"), "do not fit"),
        (("x", "--cores", "one"), "--cores takes numbers"),
        (("x", "--cores", "4095"), "not there"),
        (("x", "--concurrency", "1,0"), "1,2,4,8,16"),
        (("x", "--concurrency", "many"), "no list of numbers"),
        (("x", "--clock", "sand"), "wall or cpu"),
        (("x", "--against", "llama"), "unknown rival"),
        (("x", "--rival-model", "a=b"), "--against"),
        (("x", "--against", "transformers", "--rival-model", "openvino-genai=b"), "not asked"),
        (("x", "--rival-option", "transformers=device=cuda"), "--against"),
        (("x", "--against", "transformers", "--rival-option", "transformers=cuda"), "malformed"),
        (("x", "--against", "transformers", "--rival-option", "transformers=a=1,a=2"), "each key once"),
        (("x", "--against", "transformers", "--rival-option", "openvino-genai=a=1"), "not asked"),
        (("x", "--allow", "rounds"), "--compare"),
        (("x", "--compare", "a.json", "b.json"), "measures nothing"),
    ],
)
def test_options_are_refused(foveate: Foveate, words: tuple[str, ...], said: str) -> None:
    done = foveate("bench", *words)
    assert done.exit_code == 2, done.stderr
    assert said in " ".join(done.stderr.split())


def test_a_site_or_place_that_is_not_there_is_found_before_anything_runs(
    foveate: Foveate, bundle: Path, image: Path
) -> None:
    done = foveate("bench", bundle, "--out", image)
    assert done.exit_code == 2
    assert "nothing was measured yet" in " ".join(done.stderr.split())
    done = foveate("bench", bundle, "--budget", "decoder@3=0.5")
    assert done.exit_code == 2
    assert "decoder@3" in done.stderr
    done = foveate("bench", bundle, "--layout", "segmented")
    assert done.exit_code == 2
    assert "no layout 'segmented'" in " ".join(done.stderr.split())


def test_an_unpruned_bundle_has_one_case(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    pruned = Manifest.model_validate(manifest)
    wishes = budgets.parse(["own", "0.5"])
    assert [wish.word for wish in budgets.wishes_for(pruned, wishes)] == ["own", "0.5"]
    unpruned = pruned.model_copy(update={"pruning": ()})
    assert [wish.word for wish in budgets.wishes_for(unpruned, wishes)] == ["all"]


# --- processes and figures ----------------------------------------------------------------------------------


def test_a_process_that_dies_is_an_error_that_says_why() -> None:
    code = "import sys; sys.stdin.readline(); sys.exit('no room')"
    with (
        Child("one", [sys.executable, "-c", code]) as child,
        pytest.raises(BackendError, match="ended at") as caught,
    ):
        child.call("open")
    assert "no room" in caught.value.found
    with (
        Child("one", [sys.executable, "-c", "print('hello')"]) as child,
        pytest.raises(BackendError, match="turn"),
    ):
        child.call("open")


def test_errors_travel_whole() -> None:
    error = UsageError("a", found="b", wanted="c", mend="d")
    there = revived(json.loads(json.dumps(dumped(error))))
    assert type(there) is UsageError
    assert str(there) == str(error)


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).random(23).tolist()
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        assert statistics.percentile(values, share) == pytest.approx(np.quantile(values, share))
    assert np.isnan(statistics.percentile([], 0.5))
    assert str(statistics.paired([1, 4, 3], [2, 2, 2])) == "1.50 [0.50-2.00]"
    assert statistics.paired([], []) is None
