"""What `foveate bench` says about cases whose figures are not what they seem."""

from __future__ import annotations

import pytest

from foveate.tools.bench.run import oddities
from foveate.tools.bench.schema import Case, Sample, Tokens


def case(*answers: tuple[int, ...], kept: int = 5) -> Case:
    """Of ten visual tokens, with an answer in each round."""
    samples = [
        Sample(round=number, wall={}, cpu={}, graphs={}, steps=(), token_ids=answer)
        for number, answer in enumerate(answers)
    ]
    tokens = Tokens(visual=10, kept={"encoder": kept}, prompt=20, layer_average=0.5)
    return Case(subject="tiny", budget="own", tokens=tokens, cache=(), samples=tuple(samples))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (case((1, 2, 3), (1, 2, 3)), []),
        (case((1, 2), (1, 2)), ["2 tokens instead of 3"]),  # the model had no room for more
        (case((1, 2, 3), (1, 2)), ["not answer the same", "2 or 3 tokens instead of 3"]),
        (case((1, 2, 3), (1, 2, 4)), ["not answer the same"]),
        (case((1, 2, 3), kept=10), ["pruned nothing"]),
    ],
)
def test_oddities(found: Case, said: list[str]) -> None:
    texts = oddities([found], new_tokens=3)
    assert len(texts) == len(said)
    assert all(part in text for part, text in zip(said, texts, strict=True))
