"""Sampling draws from the set that the options describe, at the rates that the logits say."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.runtime.errors import BackendError
from foveate.runtime.options import GenerateOptions
from foveate.runtime.sampling import Sampler, candidates

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15])).astype(np.float32)


def test_greedy_takes_the_lower_id_on_a_tie() -> None:
    assert Sampler(GenerateOptions()).pick(np.array([1, 3, 2, 3], np.float32)) == 1


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, [1, 3, 4, 2, 0]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [1, 3, 4, 2, 0]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.71}, [1, 3, 4]),
        ({"top_p": 1.0}, [1, 3, 4, 2, 0]),
        ({"top_p": 0.0001}, [1]),
        # After top_k the rest is renormalised: 0.4 / 0.7 = 0.57 of it is the best token.
        ({"top_k": 2, "top_p": 0.5}, [1]),
        ({"top_k": 2, "top_p": 0.6}, [1, 3]),
    ],
)
def test_candidates(options: dict[str, float], ids: list[int]) -> None:
    found, probability = candidates(LOGITS, GenerateOptions(temperature=1.0, **options))  # type: ignore[arg-type]
    assert found.tolist() == ids
    wanted = np.exp(LOGITS[ids].astype(np.float64))
    np.testing.assert_allclose(probability, wanted / wanted.sum(), atol=1e-7)


def test_logits_that_are_no_numbers() -> None:
    with pytest.raises(BackendError, match="NaN"):
        Sampler(GenerateOptions()).pick(np.array([1, np.nan, 2], np.float32))


def test_temperature() -> None:
    _, cold = candidates(LOGITS, GenerateOptions(temperature=0.5))
    wanted = np.sort(np.exp(LOGITS.astype(np.float64)) ** 2)[::-1]
    np.testing.assert_allclose(cold, wanted / wanted.sum(), atol=1e-7)
    extreme = np.array([1e30, -1e30, 0], np.float32)
    assert Sampler(GenerateOptions(temperature=1e-6)).pick(extreme) == 0
    assert Sampler(GenerateOptions(temperature=1e-308)).pick(LOGITS) == 1


def test_rates_and_seeds() -> None:
    def draw(seed: int, times: int) -> list[int]:
        sampler = Sampler(GenerateOptions(temperature=1.0, top_k=3, seed=seed))
        return [sampler.pick(LOGITS) for _ in range(times)]

    assert draw(1, 20) == draw(1, 20) != draw(2, 20)
    rates = np.bincount(draw(0, 4000), minlength=5) / 4000
    np.testing.assert_allclose(rates, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], atol=0.03)
