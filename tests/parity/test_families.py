"""What other families ask of the reference, tried on LLaVA: windows, DeepStack, several position axes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveate.tools.parity
from foveate.tools.parity.drive import surviving_rows
from foveate.tools.parity.families import Encoded, ItemTrace
from foveate.tools.parity.families.base import TextOracle, tapped
from foveate.tools.parity.prompts import CASES, Front, Turn
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.reference_parts import Cut, TurnTrace

PLAN = (
    Cut("encoder", None, "cls-knee", {"min_keep": 3}),
    Cut("decoder", 1, "text-relevance", {"ratio": 0.6}),
)


def judges() -> list[Path]:
    """Every file that the reference is made of."""
    folder = Path(foveate.tools.parity.__path__[0])
    names = ("reference", "reference_parts", "oracles", "choose", "prompts", "tolerances")
    return [*(folder / f"{name}.py" for name in names), *sorted((folder / "families").glob("*.py"))]


@pytest.fixture
def turn(front: Front) -> Turn:
    return front.prompt(next(case for case in CASES if case.name == "two images")).turn


def test_things_come_in_the_order_of_the_text() -> None:
    encoded = Encoded("", (), (), (), (), {}, kinds=("video", "image", "video", "image"))
    assert encoded.in_order(["i0", "i1", "v0", "v1"]) == ["v0", "i0", "v1", "i1"]


def test_hooks_are_gone_after_an_error(oracle: TextOracle) -> None:
    module = oracle.text.norm
    with tapped({"norm": module}) as taps:
        module(torch.zeros(1, module.weight.shape[0]))
    assert len(taps["norm"]) == 1

    def fail() -> None:
        with tapped({"norm": module}):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not module._forward_hooks


def test_relevance_is_not_cut_by_a_window(oracle: TextOracle, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(12, oracle.text.config.hidden_size, generator=torch.Generator().manual_seed(1))
    places, text = torch.arange(12)[:, None], torch.full((12,), -1)
    whole = oracle.layer(0, hidden, places, text)
    full = oracle.sees(0, places, text, window=False)

    def narrow(index: int, positions: Any, block: Any, *, window: bool) -> torch.Tensor:
        return full & (places - places.T < 4) if window else full

    monkeypatch.setattr(oracle, "sees", narrow)
    windowed = oracle.layer(0, hidden, places, text)
    assert torch.equal(windowed[0][:4], whole[0][:4])
    assert not torch.allclose(windowed[0][4:], whole[0][4:], atol=1e-3)
    assert torch.equal(windowed[1], whole[1])


class Deep(Reference):
    """Adds two levels of DeepStack rows to every image."""

    def items(self, turn: Turn) -> list[ItemTrace]:
        made = []
        for number, trace in enumerate(super().items(turn)):
            noise = torch.Generator().manual_seed(number)
            made.append(replace(trace, deepstack=torch.randn(2, *trace.projected.shape, generator=noise)))
        return made


@torch.no_grad()
def test_deepstack_rows_follow_their_tokens(oracle: TextOracle, turn: Turn) -> None:
    """After layer 0 and, past a cut, after layer 1: the rows of the visual tokens that are still there."""
    reference = Deep(oracle)
    trace = reference.prefill([turn], PLAN)
    rows = deepstack_rows(reference, turn)
    first = trace.hidden[0] + torch.stack([rows(0, row) for row in trace.rows[0]])
    after = [trace.rows[0].index(row) for row in trace.rows[1]]
    places, block = trace.positions[after], trace.block[after]
    second, *_ = oracle.layer(1, first[after], places, block)
    assert torch.allclose(second, trace.hidden[1], atol=1e-5)
    third, *_ = oracle.layer(2, second + torch.stack([rows(1, row) for row in trace.rows[1]]), places, block)
    assert torch.allclose(third, trace.hidden[2], atol=1e-5)
    assert not torch.allclose(trace.logits, Reference(oracle).prefill([turn], PLAN).logits, atol=1e-2)


def deepstack_rows(reference: Deep, turn: Turn) -> Any:
    """(level, row of the unpruned prompt) -> what is added there."""
    made = {}
    for number, trace in enumerate(reference.items(turn)):
        assert trace.deepstack is not None
        own = [row for row, item in enumerate(turn.item) if item == number]
        made |= {row: trace.deepstack[:, j] for j, row in enumerate(own)}
    zero = torch.zeros(2, reference.oracle.text.config.hidden_size)
    return lambda level, row: made.get(row, zero)[level]


def test_positions_of_several_axes_stay_as_they_are(turn: Turn, oracle: TextOracle) -> None:
    """Behind the images transformers goes on from the largest position, whatever was dropped."""
    places = np.stack([turn.positions[:, 0] // step for step in (3, 2, 1)], axis=1)
    told = replace(turn, positions=places)
    seen: dict[str, torch.Tensor] = {}

    class Three(Reference):
        def _run(self, chunks: Any, *rest: Any) -> TurnTrace:
            seen["positions"] = chunks[-1].positions
            chunks[-1].positions = chunks[-1].positions[:, 2:]
            return super()._run(chunks, *rest)

    trace = Three(oracle).prefill([told], PLAN, {}, "original")
    assert seen["positions"].tolist() == places[list(trace.rows[0])].tolist()
    assert trace.next_position == places.max() + 1


def test_the_drivers_surviving_rows(turn: Turn) -> None:
    kept: Mapping[int, list[int]] = {0: [1, 4], 1: [0]}
    rows = surviving_rows(turn, [kept[0], kept[1]])
    shown = [row for row in rows if turn.item[row] >= 0]
    first, second = turn.item.index(0), turn.item.index(1)
    assert shown == [first + 1, first + 4, second]
    assert len(rows) == turn.item.count(-1) + 3


@pytest.mark.parametrize("path", judges(), ids=lambda path: path.stem)
def test_the_reference_shares_no_code_with_what_it_judges(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"^\s*(?:from|import) foveate\.(?:export|pruning|runtime)\b.*", text, re.MULTILINE)
