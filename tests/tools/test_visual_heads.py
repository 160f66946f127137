"""Which heads look at the image: the paper's votes, and a share of the most active ones."""

from __future__ import annotations

import numpy as np

from foveate.pruning.methods.yopo import Config
from foveate.tools.visual_heads import active, most_active, word

RATIO = np.array(
    [
        [[0.1, 0.1], [0.1, 0.1], [0.5, 0.1], [0.3, 0.9]],
        [[0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.9]],
    ]
)


def test_votes() -> None:
    """Half of the samples is more than 40 %; the first two layers stay whole."""
    assert active(RATIO, 0.2).tolist() == [[True, True], [True, True], [True, False], [True, True]]
    assert active(RATIO, 0.2, votes=0.5).tolist()[2:] == [[False, False], [False, True]]
    assert active(RATIO, 0.2, whole=0).tolist()[:2] == [[False, False], [False, False]]


def test_a_share_of_the_heads() -> None:
    assert most_active(RATIO, 0.5).tolist() == [[True, True], [True, True], [True, False], [False, True]]
    assert most_active(RATIO, 1.0).all()
    assert most_active(RATIO, 0.0).tolist()[2:] == [[False, False], [False, False]]


def test_the_word_is_the_option() -> None:
    chosen = active(RATIO, 0.2, votes=0.5)
    assert word(chosen) == "3+3+0+2"
    assert Config(heads=word(chosen)).groups(4, 2) == ((0, 1), (0, 1), (), (1,))
    assert word(np.ones((3, 2), bool)) == "all"
