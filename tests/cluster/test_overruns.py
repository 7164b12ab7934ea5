"""How many times longer than thought rounds take, without drafts and with."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.router.overruns import Overruns

NOISE = 0.2


def observe(overruns: Overruns, has_drafts: bool, *factors: float) -> None:
    for factor in factors:
        overruns.observe(has_drafts, factor, NOISE)


def test_a_factor_is_a_mean_of_times_and_outliers_count_little() -> None:
    overruns = Overruns()
    observe(overruns, False, *(0.8, 1.2) * 100)
    assert overruns.factors[0] == pytest.approx(1.0, abs=0.03)
    observe(overruns, False, 50.0)
    assert overruns.factors[0] < 1.2, "a pause"


def test_what_slows_down_one_kind_slows_down_the_other() -> None:
    overruns = Overruns()
    for _ in range(50):
        observe(overruns, False, 1.0)
        observe(overruns, True, 1.1)
    observe(overruns, True, *[1.65] * 50)
    assert overruns.factors == pytest.approx([1.5, 1.65], rel=0.05)


def test_a_few_rounds_tell_of_their_own_kind() -> None:
    overruns = Overruns()
    observe(overruns, True, *[1.0] * 200)
    observe(overruns, False, *[0.7] * 4)
    plain, drafted = overruns.factors
    assert plain < 0.9
    assert 1.0 - drafted < 0.8 * (1.0 - plain)


def test_short_trials_come_to_the_truth_through_noise() -> None:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        overruns = Overruns()
        for _ in range(20):
            observe(overruns, True, *1.1 * (1.0 + NOISE * rng.standard_normal(100)))
            observe(overruns, False, *0.8 * (1.0 + NOISE * rng.standard_normal(4)))
        found.append(overruns.factors[0] / overruns.factors[1])
    assert np.mean(found) == pytest.approx(0.8 / 1.1, rel=0.03)
    assert np.std(found) < 0.1


def test_no_swing_of_one_kind_makes_the_other_take_no_time() -> None:
    overruns = Overruns()
    for _ in range(5):
        observe(overruns, True, *[0.5] * 5)
        observe(overruns, False, *[2.0] * 20)
        observe(overruns, False, *[0.5] * 40)
        assert min(overruns.factors) >= 0.5


def test_after_ever_so_long_a_round_is_no_more_than_a_round() -> None:
    overruns = Overruns()
    observe(overruns, True, *[1.0] * 20_000)
    observe(overruns, False, 0.6)
    assert overruns.factors[0] > 0.85


def test_without_noise_a_round_is_believed() -> None:
    overruns = Overruns()
    overruns.observe(True, 1.2, 0.0)
    assert overruns.factors[1] == pytest.approx(1.2, abs=0.01)
