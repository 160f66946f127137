"""Knee rules: equal to the loop-written oracle, and to what is known about each rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.pruning.knee import KNEES, knee_count
from foveate.pruning.spec import KneeConfig
from foveate.tools.parity import counts

RULES: list[dict[str, Any]] = [
    *({"knee": name} for name in KNEES),
    {"knee": "derivative", "smooth": 1, "skip": 0},
    {"knee": "derivative", "smooth": 1, "skip": 0, "difference": 2},
    {"knee": "derivative", "smooth": 5, "skip": 1, "difference": 2},
    {"knee": "derivative", "smooth": 9, "skip": 4},
    {"knee": "recursive", "knee_scale": 0.7},
    {"knee": "chord", "knee_scale": 2.5},
]


def count(row: list[float], **options: Any) -> int:
    curve = torch.tensor([sorted(row, reverse=True)], dtype=torch.float32)
    return int(knee_count(curve, torch.tensor([len(row)]), KneeConfig.from_dict(options)))


@pytest.mark.parametrize("options", RULES, ids=str)
@settings(max_examples=120, deadline=None)
@given(
    row=st.one_of(
        st.lists(st.integers(0, 12).map(lambda x: x / 10), min_size=1, max_size=40),
        st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=40),
        st.lists(st.integers(0, 2**20).map(lambda x: (x / 2**20) ** 6), min_size=1, max_size=40),
    )
)
def test_equal_to_the_oracle(options: dict[str, Any], row: list[float]) -> None:
    curve = np.sort(np.asarray(row, dtype=np.float32))[::-1]
    got = count([float(x) for x in curve], **options)
    assert got == counts.knee_count([float(x) for x in curve], options)
    assert 1 <= got <= len(row) or options["knee"] == "cumulative"


@pytest.mark.parametrize("options", RULES, ids=str)
def test_flat_curves_keep_everything(options: dict[str, Any]) -> None:
    for row in ([0.3], [0.3] * 9, [0.0] * 5, [-2.0] * 4, [1.0, 1.0, 1.0 - 6e-8]):
        assert count(row, **options) == len(row)


@pytest.mark.parametrize("options", RULES, ids=str)
def test_padding_and_neighbours_do_not_matter(options: dict[str, Any]) -> None:
    draw = np.random.default_rng(2)
    rows = [np.sort(draw.lognormal(size=m))[::-1].astype(np.float32) for m in (1, 4, 9, 30)]
    alone = [count(row.tolist(), **options) for row in rows]
    padded = np.full((4, 33), -7.0, np.float32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    size = torch.tensor([len(row) for row in rows])
    assert knee_count(torch.from_numpy(padded), size, KneeConfig.from_dict(options)).tolist() == alone
    assert knee_count(torch.zeros(1, 5), torch.tensor([0]), KneeConfig.from_dict(options)).tolist() == [0]


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize(("factor", "offset"), [(1e-4, 0.0), (512.0, 0.0), (1.0, 64.0)])
def test_rules_ignore_scale_and_offset(options: dict[str, Any], factor: float, offset: float) -> None:
    draw = np.random.default_rng(6)
    for m in (2, 5, 17, 40):
        row = draw.integers(0, 64, m).astype(float)
        assert count((row * factor + offset).tolist(), **options) == count(row.tolist(), **options)


@pytest.mark.parametrize(
    ("options", "levels", "wanted"),
    [
        ({"knee": "derivative", "smooth": 5, "skip": 2}, [(0.10013956, 3), (0.1, 3)], 3),
        ({"knee": "derivative", "smooth": 9, "skip": 4}, [(7.3043404, 1), (7.3, 6)], 7),
        ({"knee": "cumulative"}, [(7.4694543, 1), (7.356485, 1), (7.3, 2)], 1),
        ({"knee": "iqr"}, [(7.3766617, 2), (7.3383307, 4), (7.3, 2)], 2),
    ],
)
def test_a_low_curve_on_a_high_base(
    options: dict[str, Any], levels: list[tuple[float, int]], wanted: int
) -> None:
    """Float32 sums over such scores lose what the rule is about; each of these rows went wrong once."""
    row = [float(np.float32(value)) for value, times in levels for _ in range(times)]
    assert count(row, **options) == counts.knee_count(row, options) == wanted


@pytest.mark.parametrize(
    ("options", "row", "wanted"),
    [
        ({"knee": "chord"}, [9, 3, 1, 0, 0, 0, 0], 3),
        ({"knee": "chord"}, [4, 3, 2, 1, 0], 5),  # straight: no knee
        ({"knee": "chord"}, [4, 4, 4, 4, 0], 5),  # bulging: no knee
        ({"knee": "chord"}, [3, 1, 0, 0], 2),  # tie between the second and the third: the first
        ({"knee": "chord"}, [1, 0], 2),
        ({"knee": "recursive"}, [100, 99, 10, 9, 1, 1, 1, 1, 1, 1], 5),
        ({"knee": "recursive"}, [9, 1, 1, 1, 1], 2),  # the tail is flat: nothing to add
        ({"knee": "cumulative"}, [5, 4, 3, 2, 1], 2),  # 3 is the mean, not above it
        ({"knee": "cumulative"}, [0.3, 0.2, 0.1], 1),  # and rounding does not lift 0.2 above it
        ({"knee": "cumulative"}, [8, 0, 0, 0], 1),
        ({"knee": "iqr"}, [100, 90, 4, 3, 3, 2, 2, 1, 1], 2),
        ({"knee": "iqr"}, [5, 4, 3, 2, 1], 1),  # no outlier: one token all the same
        ({"knee": "derivative", "smooth": 1, "skip": 0}, [9, 8, 3, 2, 1], 2),
        ({"knee": "derivative", "smooth": 1, "skip": 2}, [9, 8, 3, 2, 0], 4),
        ({"knee": "derivative", "smooth": 1, "skip": 9}, [9, 8, 3, 2, 0], 5),  # nothing is a candidate
        ({"knee": "derivative", "smooth": 1, "skip": 0, "difference": 2}, [9, 8, 3, 2, 1], 3),
        ({"knee": "chord", "knee_scale": 1.5}, [9, 3, 1, 0, 0, 0, 0], 5),  # 4.5 rounds up
        ({"knee": "chord", "knee_scale": 9}, [9, 3, 1, 0, 0, 0, 0], 7),
        ({"knee": "chord", "knee_scale": 0.5}, [4, 3, 2, 1, 0], 5),  # no knee, nothing to scale
    ],
)
def test_known_counts(options: dict[str, Any], row: list[float], wanted: int) -> None:
    assert count(row, **options) == wanted
    assert counts.knee_count(sorted(map(float, row), reverse=True), options) == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=2, max_size=40))
def test_cumulative_is_the_knee_of_the_cumulative_curve(row: list[int]) -> None:
    """Both readings agree: max of cumsum(s)/sum(s) - x, and the number of scores above the mean."""
    curve = sorted(row, reverse=True)
    if curve[0] == curve[-1]:
        return
    total, lead, best = sum(curve), [], 0
    for i in range(len(curve)):
        lead.append(sum(curve[: i + 1]) * len(curve) - total * (i + 1))  # whole numbers: no rounding
    best = lead.index(max(lead)) + 1
    assert count([float(x) for x in curve], knee="cumulative") == best


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 3))
def test_smoothing_leaves_a_straight_curve_straight(m: int, half: int, skip: int) -> None:
    """No artefact at the edges: on a straight line nothing stands out, whatever the window."""
    row = [float(m - i) for i in range(m)]
    for difference in (1, 2):
        options = {"smooth": 2 * half + 1, "skip": skip, "difference": difference}
        assert count(row, knee="derivative", **options) == m


@pytest.mark.parametrize("smooth", [1, 3, 15])
def test_smoothing_keeps_steps_and_bends_in_their_place(smooth: int) -> None:
    """A box window would move both to its own edge: it spreads them evenly, and the first tie wins."""
    options = {"knee": "derivative", "smooth": smooth, "skip": smooth // 2}
    step = [2.0 - 0.001 * i for i in range(30)] + [1.0 - 0.001 * i for i in range(60)]
    assert count(step, **options) == 30
    bend = [100.0 - 2 * i for i in range(31)] + [40.0 - 0.01 * i for i in range(1, 60)]
    assert count(bend, **options, difference=2) == 31


# Mean kept count of N = 576 sorted draws, from the study that the choice of the default rests on.
STUDY = {
    "chord": {"0.5": 68, "1.0": 56, "1.5": 42, "exponential": 83},
    "recursive": {"0.5": 176, "1.0": 203, "1.5": 172, "exponential": 260},
    "cumulative": {"0.5": 232, "1.0": 178, "1.5": 131, "exponential": 213},
    "iqr": {"0.5": 22, "1.0": 45, "1.5": 63, "exponential": 28},
}


@pytest.mark.parametrize("knee", STUDY)
def test_the_study_of_heavy_tails_is_reproduced(knee: str) -> None:
    """Standard error of these means is 1 to 2 tokens, of both studies; 6 % is about three of them."""
    draw = np.random.default_rng(0)
    for law, wanted in STUDY[knee].items():
        shape = (200, 576)
        rows = draw.exponential(size=shape) if law == "exponential" else draw.lognormal(0, float(law), shape)
        curve = torch.from_numpy(-np.sort(-rows, axis=1)).float()
        kept = knee_count(curve, torch.full((200,), 576), KneeConfig(knee=knee)).float().mean().item()
        assert math.isclose(kept, wanted, rel_tol=0.06), law
