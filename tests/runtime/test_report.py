"""Reports count what the decoder saw, and refuse a pruned run that pruned nothing."""

from __future__ import annotations

import make
import numpy as np
import pytest

from foveate.runtime.arrays import ints
from foveate.runtime.chunk import PreparedPrompt, VisualTokens, arrange, collate
from foveate.runtime.decoder import Selection, present_rows
from foveate.runtime.errors import NothingPrunedError
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.report import Timings, report_rows, require_pruning

ORDER = (ints([1, 2, 4, 0, 3, 5]), ints([0, 3, 1, 2, 4, 5]))
IMAGE = make.item(6)


def prompt(count: tuple[int, int] = (3, 2)) -> PreparedPrompt:
    """Rows: one image, no image, one image; the tiny manifest has 3 layers, cut after the first."""
    visual = VisualTokens(np.zeros((sum(count), 6), np.float32), np.arange(sum(count)), ORDER, ints(count))

    def row(ids: list[int], kept: list[int] | None) -> object:
        user = np.array([token == 30 for token in ids])
        keep = [] if kept is None else [ints(kept)]
        return arrange(ints(ids), user, [IMAGE] * len(keep), keep, visual_ids=[9])

    kept = [visual.kept(i).tolist() for i in range(2)]
    rows = [row([1, 9, 30, 40], kept[0]), row([1, 40], None), row([9, 30, 30, 40], kept[1])]
    return collate(rows, [[IMAGE], [], [IMAGE]], visual, Timings())  # type: ignore[arg-type]


def test_report_of_each_row() -> None:
    #         row 0: BOS v1 v2 v4 q end      row 1: BOS end      row 2: v0 v3 q q end
    selection = Selection(
        order=ints([[0, 2, 4, 5, 1, 3], [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 0, 5]]), count=ints([4, 2, 4])
    )
    first, second, third = report_rows(make.manifest(), prompt(), [selection])
    assert [(s.site, s.total, s.kept, s.kept_index) for s in first.sites] == [
        ("encoder", 6, 3, ((1, 2, 4),)),
        ("decoder@1", 3, 1, ((2,),)),
    ]
    assert (first.sites[1].text_total, first.sites[1].text_kept) == (3, 3)
    assert (first.visual_tokens, first.kept) == (6, 1)
    assert first.layer_average == pytest.approx((3 + 1 + 1) / (3 * 6))
    assert (second.images, second.visual_tokens, second.layer_average) == (0, 0, 1.0)
    assert second.sites[0].kept_index == ()
    assert third.sites[0].kept_index == ((0, 3),)
    assert third.sites[1].kept_index == ((3,),)
    assert third.positions == (0, 1, 2, 3, 4)
    assert first.boxes[0][:2] == ((0.0, 0.0, 0.16667, 1.0), (0.16667, 0.0, 0.33333, 1.0))
    assert (first.frames, second.boxes) == (((0,) * 6,), ())


def test_present_rows_follow_all_cuts() -> None:
    first = Selection(order=ints([[0, 2, 3, 1]]), count=ints([3]))
    second = Selection(order=ints([[0, 2, 1]]), count=ints([2]))
    assert present_rows(ints([4]), 4, [first, second]).tolist() == [[True, False, False, True]]
    assert present_rows(ints([2]), 3, []).tolist() == [[True, True, False]]


ALL_KEPT = Selection(order=ints([np.arange(9)] * 3), count=ints([9, 2, 9]))


@pytest.mark.parametrize(
    ("keep", "good"),
    [
        ({}, False),
        ({"encoder": Budget(ratio=1.0)}, False),  # the decoder's rule was to prune, and did not
        ({"decoder@1": Budget(ratio=1.0)}, False),
        ({"encoder": Budget(ratio=1.0), "decoder@1": Budget(ratio=1.0)}, True),
        ({"encoder": Budget(tokens=6), "decoder@1": Budget(tokens=6)}, True),
        ({"encoder": Budget(tokens=5), "decoder@1": Budget(tokens=6)}, False),
        ({"encoder": Budget(ratio=0.99), "decoder@1": Budget(tokens=600)}, False),
    ],
)
def test_nothing_pruned(keep: dict[str, Budget], good: bool) -> None:
    reports = report_rows(make.manifest(), prompt((6, 6)), [ALL_KEPT])
    assert [report.kept for report in reports] == [6, 0, 6]
    require_pruning(make.manifest(), reports, GenerateOptions(keep=keep, allow_unpruned=True))
    require_pruning(make.manifest(), reports[1:2], GenerateOptions(keep=keep))  # no image, nothing to prune
    if good:
        require_pruning(make.manifest(), reports, GenerateOptions(keep=keep))
        return
    with pytest.raises(NothingPrunedError, match=r"all 6 visual.*cls-knee at encoder.*--allow-unpruned"):
        require_pruning(make.manifest(), reports, GenerateOptions(keep=keep))


def test_one_site_is_enough() -> None:
    kept = Selection(order=ALL_KEPT.order, count=ints([8, 2, 7]))
    reports = report_rows(make.manifest(), prompt((5, 5)), [kept])
    assert reports[0].kept == 5
    require_pruning(make.manifest(), reports, GenerateOptions())


def test_timings() -> None:
    timings = Timings(preprocess=1, vision=2, embed=3, prefill=4).plus(decode=0.5, steps=4)
    assert timings.ttft == 10
    assert timings.tokens_per_second == 8
    assert Timings().tokens_per_second == 0
    assert timings.to_dict()["ttft"] == 10
