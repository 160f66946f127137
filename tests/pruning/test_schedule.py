"""Schedules as files: a round trip, words for the exporter, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.pruning.plan import parse_plan
from foveate.pruning.schedule import CutSchedule, load_schedule, read_schedule, write_schedule
from foveate.runtime.errors import UsageError

FOUND = CutSchedule(
    "layer-rank",
    ((2, {"share": 0.5, "query": "last"}), (4, {"share": 0.0625}), (9, {"share": 0.0})),
    32,
    {"search": {"name": 'a "quoted" name', "budget": 0.25, "kinds": ["a", "b"], "exact": True}},
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "schedule.toml"
    write_schedule(path, FOUND)
    assert load_schedule(path) == FOUND
    assert [each.name for each in path.parent.iterdir()] == ["schedule.toml"]


def test_words_for_the_exporter(tmp_path: Path) -> None:
    write_schedule(tmp_path / "s.toml", FOUND)
    words = read_schedule(tmp_path / "s.toml")
    assert words[:2] == ["layer-rank@2:share=0.5,query=last", "layer-rank@4:share=0.0625"]
    assert [cut.params["share"] for cut in parse_plan(words, 32).cuts] == [0.5, 0.0625, 0.0]
    assert CutSchedule("exit", ((3, {}),)).words() == ["exit@3"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method = ", "is not TOML"),
        ("", "is no schedule"),
        ('method = "layer-rank"\ncut = []', "is no schedule"),
        ('method = "layer-rank"\n[[cut]]\nshare = 0.5', "without a layer"),
        ('method = "layer-rank"\n[[cut]]\nlayer = 0', "without a layer"),
        ('method = "layer-rank"\nnum_layers = "x"\n[[cut]]\nlayer = 1', "number of layers"),
        ('method = "layer-rank"\n[[cut]]\nlayer = 4\n[[cut]]\nlayer = 2', "do not rise"),
        ('method = "layer-rank"\nnum_layers = 4\n[[cut]]\nlayer = 4', "behind the last layer"),
        (
            'method = "layer-rank"\n[[cut]]\nlayer = 1\nshare = 0.2\n[[cut]]\nlayer = 2\nshare = 0.3',
            "return",
        ),
        ('method = "layer-rank"\n[[cut]]\nlayer = 1\nshare = 1.5', "cannot use share"),
        ('method = "layer-rank"\n[[cut]]\nlayer = 1\nno = 1', "has no option"),
        ('method = "no-such"\n[[cut]]\nlayer = 1', "no-such"),
    ],
)
def test_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        read_schedule(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_schedule(tmp_path / "none.toml")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_schedule(tmp_path / "file" / "s.toml", FOUND)
