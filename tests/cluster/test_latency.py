"""What rounds and drafts take, learned from simulated ones: with noise, outliers and changes of speed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.router.latency import DraftTimeModel, RoundLoad, RoundTimeModel

PADDED = (*range(8, 65, 8), 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)


@dataclass(frozen=True)
class Truth:
    """What rounds of a simulated target take, in seconds."""

    base: float
    per_row: float
    per_sequence: float
    per_context_token: float
    per_context_row: float
    row_sizes: tuple[int, ...] = ()
    of_nodes: float = 0.0

    def seconds(self, load: RoundLoad) -> float:
        rows = next((size for size in self.row_sizes if size >= load.num_rows), load.num_rows)
        return (
            self.base
            + self.per_row * rows
            + self.per_sequence * load.num_sequences
            + self.per_context_token * load.context_tokens
            + self.per_context_row * load.context_rows
            + self.of_nodes * load.has_nodes
        )

    def seed(self, factor: float = 1.0, largest: int = 64) -> tuple[tuple[int, int], ...]:
        sizes = [size for size in self.row_sizes or (1, 2, 4, 8, 16, 32, 64) if size <= largest]
        loads = [RoundLoad(size, -(-size // 16), 0, 0) for size in sizes]
        return tuple((load.num_rows, round(factor * 1e6 * self.seconds(load))) for load in loads)


SMALL_CPU = Truth(8e-3, 2e-4, 2e-4, 3e-6, 4e-7, of_nodes=1e-3)
LARGE_GPU = Truth(7e-3, 2e-5, 2e-5, 4.5e-8, 2e-9, PADDED)
TRUTHS = {"cpu": SMALL_CPU, "gpu": LARGE_GPU}


def random_load(rng: np.random.Generator) -> RoundLoad:
    count = int(rng.integers(1, 33))
    contexts, rows = rng.integers(20, 800, count), rng.integers(1, 17, count)
    return RoundLoad(int(rows.sum()), count, int(contexts.sum()), int((contexts * rows).sum()), bool((rows > 1).any()))


def learn(
    model: RoundTimeModel, truth: Truth, rng: np.random.Generator, num_rounds: int = 300, speed: float = 1.0
) -> None:
    """Rounds with 5 % noise, of which 3 % take ten times as long."""
    for _ in range(num_rounds):
        load = random_load(rng)
        seconds = speed * truth.seconds(load) * np.exp(0.05 * rng.standard_normal())
        model.observe(load, seconds * (10.0 if rng.random() < 0.03 else 1.0))


def errors(model: RoundTimeModel, truth: Truth, speed: float = 1.0) -> np.ndarray:
    """Relative, of other rounds than were learned from."""
    loads = [random_load(np.random.default_rng([7, index])) for index in range(200)]
    return np.abs([model.seconds(load) / (speed * truth.seconds(load)) - 1.0 for load in loads])


def model_of(truth: Truth, factor: float | None = 1.0) -> RoundTimeModel:
    """`factor`: by which the seed is wrong; None: there is no seed."""
    return RoundTimeModel(truth.row_sizes, () if factor is None else truth.seed(factor))


@pytest.mark.parametrize("rng_seed", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.0, 0.5, 5.0, None])
@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())
def test_rounds_are_predicted_after_some(truth: Truth, factor: float | None, rng_seed: int) -> None:
    model, rng = model_of(truth, factor), np.random.default_rng(rng_seed)
    learn(model, truth, rng, 100)
    assert errors(model, truth).mean() < 0.05
    learn(model, truth, rng, 300)
    assert errors(model, truth).mean() < 0.03
    assert errors(model, truth).max() < 0.2


def test_a_seed_is_believed_before_anything_was_observed() -> None:
    model = RoundTimeModel((), ((1, 10_000), (8, 17_000), (64, 73_000)))
    for rows, seconds in ((1, 10e-3), (4, 13e-3), (8, 17e-3), (36, 45e-3), (64, 73e-3), (128, 137e-3), (512, 521e-3)):
        assert model.seconds(RoundLoad(rows, 0, 0, 0)) == pytest.approx(seconds)


def test_a_seed_that_falls_is_flat() -> None:
    model = RoundTimeModel((), ((1, 10_000), (2, 9_000), (4, 9_500)))
    assert model.table(4, RoundLoad(4, 0, 0, 0), 0.0)[1:5].tolist() == pytest.approx([10e-3] * 4)


def test_what_is_never_run_moves_with_what_is() -> None:
    model = model_of(SMALL_CPU)
    before = {rows: model.seconds(RoundLoad(rows, 1, 0, 0)) for rows in (1, 8, 64, 256)}
    for _ in range(40):
        model.observe(RoundLoad(8, 1, 0, 0), 2.0 * before[8])
    ratios = [model.seconds(RoundLoad(rows, 1, 0, 0)) / before[rows] for rows in before]
    assert ratios[1] == pytest.approx(2.0, rel=0.03)
    assert ratios == pytest.approx([2.0] * 4, rel=0.2)


def test_what_was_learned_is_kept_while_other_sizes_run() -> None:
    """Rounds of 64 rows are twice as slow as the seed says, those of 4 are not."""
    model = model_of(SMALL_CPU)
    small, large = RoundLoad(4, 1, 0, 0), RoundLoad(64, 1, 0, 0)
    times = {small: model.seconds(small), large: 2.0 * model.seconds(large)}
    for _ in range(60):
        for load, seconds in times.items():
            model.observe(load, seconds)
    for _ in range(1000):
        model.observe(small, times[small])
    assert [model.seconds(load) for load in times] == pytest.approx(list(times.values()), rel=0.05)


@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())
def test_an_outlier_moves_nothing(truth: Truth) -> None:
    model, rng = model_of(truth), np.random.default_rng(0)
    learn(model, truth, rng)
    load = random_load(rng)
    before, ignored = model.seconds(load), model.as_dict()["num_ignored"]
    model.observe(load, 10.0 * truth.seconds(load))
    assert model.seconds(load) == before
    assert model.as_dict()["num_ignored"] == ignored + 1


@pytest.mark.parametrize("first_seconds", [10.0, 0.1])
def test_an_outlier_in_the_first_round_moves_nothing(first_seconds: float) -> None:
    model, load = model_of(SMALL_CPU), RoundLoad(16, 1, 0, 0)
    before = model.seconds(load)
    model.observe(load, first_seconds * before)
    assert model.seconds(load) == before


@pytest.mark.parametrize("rng_seed", [0, 1, 2])
@pytest.mark.parametrize("speed", [2.0, 0.5, 1.3])
@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())
def test_a_lasting_change_of_speed_is_followed(truth: Truth, speed: float, rng_seed: int) -> None:
    model, rng = model_of(truth), np.random.default_rng(rng_seed)
    learn(model, truth, rng, 300)
    learn(model, truth, rng, 40, speed)
    assert errors(model, truth, speed).mean() < 0.06


def test_further_rows_are_not_charged_with_what_sequences_cost() -> None:
    """On this target reading a context is eight times as dear as a row's attention to it. Trees grow and shrink."""
    model, rng = model_of(SMALL_CPU), np.random.default_rng(3)
    learn(model, SMALL_CPU, rng, 400)
    roots = RoundLoad(16, 16, 16 * 400, 16 * 400)
    table = model.table(256, roots, 400.0)
    truth = [
        SMALL_CPU.seconds(replace(roots, num_rows=rows, context_rows=400 * rows, has_nodes=rows > 16))
        for rows in range(16, 257)
    ]
    assert table[16:].tolist() == pytest.approx(truth, rel=0.06)
    assert table[128] - table[32] == pytest.approx(truth[112] - truth[16], rel=0.25)


@pytest.mark.parametrize("rng_seed", [0, 1, 2])
@pytest.mark.parametrize("rows", [16, 32])
def test_rounds_without_nodes_are_not_taken_to_be_as_slow_as_those_with_some(rows: int, rng_seed: int) -> None:
    """Only rounds with nodes are run, and they take a millisecond longer than the seed of their rows says: a tenth of
    what a plain round takes."""
    truth, rng = SMALL_CPU, np.random.default_rng(rng_seed)
    told, untold = model_of(truth), model_of(truth)
    for _ in range(200):
        load = RoundLoad(rows + int(rng.integers(-3, 4)), 4, 400, 100 * rows, has_nodes=True)
        seconds = truth.seconds(load) * float(np.exp(0.05 * rng.standard_normal()))
        told.observe(load, seconds)
        untold.observe(replace(load, has_nodes=False), seconds)
    plain = RoundLoad(4, 4, 400, 400)
    error, error_untold = (model.seconds(plain) / truth.seconds(plain) - 1.0 for model in (told, untold))
    assert abs(error) < 0.08
    assert error_untold > error + 0.03


def test_padding_rows_are_free() -> None:
    model = model_of(LARGE_GPU)
    learn(model, LARGE_GPU, np.random.default_rng(0), 100)
    table = model.table(600, RoundLoad(0, 0, 0, 0), 0.0)
    for least, most in zip((0, *PADDED), PADDED, strict=False):
        assert np.ptp(table[least + 1 : most + 1]) == 0.0
    assert table[600] > table[512]
    curve = model.table(512, RoundLoad(4, 4, 400, 400), 100.0)
    assert curve[8] - curve[5] == pytest.approx(3 * 100 * model.as_dict()["seconds_per_context_row"])


def test_one_padded_size_is_enough() -> None:
    model = RoundTimeModel((8,), ((8, 12_000),))
    assert model.table(8, RoundLoad(8, 0, 0, 0), 0.0).tolist() == pytest.approx([12e-3] * 9)


loads = st.builds(
    lambda rows, sequences, context, nodes: RoundLoad(rows, sequences, sequences * context, rows * context, nodes),
    st.integers(1, 700),
    st.integers(1, 64),
    st.integers(0, 4000),
    st.booleans(),
)
observations = st.lists(st.tuples(loads, st.floats(0.0, 30.0)), max_size=40)
seeds = st.dictionaries(st.integers(1, 600), st.integers(1, 10**7), max_size=8).map(lambda d: tuple(sorted(d.items())))


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([(), (8,), PADDED]), observations, loads, st.floats(0.0, 4000.0))
def test_times_never_fall_with_rows_whatever_was_observed(
    seed: tuple[tuple[int, int], ...],
    row_sizes: tuple[int, ...],
    observed: list[tuple[RoundLoad, float]],
    fixed: RoundLoad,
    context_per_row: float,
) -> None:
    model = RoundTimeModel(row_sizes, seed)
    for load, seconds in observed:
        model.observe(load, seconds)
    table = model.table(600, fixed, context_per_row)
    assert table.shape == (601,)
    assert np.isfinite(table).all()
    assert (table > 0).all()
    assert (np.diff(table) >= -1e-12 * table[:-1]).all()
    for rows in range(0, 601, 97):
        added = max(0, rows - fixed.num_rows) * context_per_row
        has_nodes = fixed.has_nodes or rows > fixed.num_rows
        load = replace(fixed, num_rows=rows, context_rows=fixed.context_rows + added, has_nodes=has_nodes)
        assert table[rows] == pytest.approx(model.seconds(load), rel=1e-9)


def test_rounds_without_rows_tell_nothing() -> None:
    model = model_of(SMALL_CPU)
    model.observe(RoundLoad(0, 0, 0, 0), 5.0)
    assert model.as_dict()["num_observed"] == 0


def test_what_was_learned_can_be_exported() -> None:
    model = model_of(LARGE_GPU)
    learn(model, LARGE_GPU, np.random.default_rng(1))
    told = model.as_dict()
    assert told["rows"] == list(PADDED)
    assert told["seed_us"][0] == list(LARGE_GPU.seed()[0])
    for rows, seconds in zip(told["rows"], told["seconds"], strict=True):
        assert model.seconds(RoundLoad(rows, 0, 0, 0)) == pytest.approx(seconds)
    assert 0.03 < told["noise"] < 0.08
    assert told["num_observed"] == 300
    assert 3 <= told["num_ignored"] <= 30


@pytest.mark.parametrize("seed", [((1, 4_000), (2, 4_300), (4, 5_000), (8, 6_500)), ()])
@pytest.mark.parametrize("rng_seed", [0, 1, 2])
def test_drafts_are_predicted_with_their_spread(seed: tuple[tuple[int, int], ...], rng_seed: int) -> None:
    model, rng = DraftTimeModel(seed), np.random.default_rng(rng_seed)

    def draft(blocks: int) -> float:
        return (3e-3 + 5e-4 * blocks) * float(np.exp(0.2 * rng.standard_normal()))

    for _ in range(500):
        blocks = int(rng.integers(1, 33))
        model.observe(blocks, draft(blocks))
    sizes = rng.integers(1, 33, 2000).tolist()
    expected = [model.seconds(blocks) / (3e-3 + 5e-4 * blocks) for blocks in sizes]
    assert np.mean(expected) == pytest.approx(1.0, abs=0.08)
    for share in (0.5, 0.95):
        within = np.mean([draft(blocks) <= model.quantile(blocks, share) for blocks in sizes])
        # Of the last 256 ratios' p95 alone, 0.05 is 3.7 standard errors.
        assert within == pytest.approx(share, abs=0.15 if share == 0.5 else 0.05)


def test_slow_answers_are_in_the_quantile_and_not_in_the_mean() -> None:
    """One of ten takes three times as long."""
    model = DraftTimeModel(((1, 4_000), (8, 7_500)))
    for index in range(400):
        model.observe(1, 12e-3 if index % 10 == 9 else 4e-3)
    assert model.seconds(1) == pytest.approx(4e-3, rel=0.02)
    assert model.quantile(1, 0.85) == pytest.approx(4e-3, rel=0.02)
    assert model.quantile(1, 0.95) == pytest.approx(12e-3, rel=0.02)
    told = model.as_dict()
    assert (told["ratio_p50"], told["ratio_p95"]) == pytest.approx((1.0, 3.0), rel=0.02)
    assert told["blocks"][:4] == [1, 2, 4, 8]


def test_before_anything_was_observed_a_draft_s_time_is_the_seed_s_with_some_spread() -> None:
    model = DraftTimeModel(((1, 4_000), (8, 11_000)))
    assert model.seconds(4) == pytest.approx(7e-3)
    assert 7e-3 < model.quantile(4, 0.95) < 14e-3
    assert model.quantile(4, 0.05) < 7e-3


def test_quantiles_forget_what_stood_in_for_observations() -> None:
    model = DraftTimeModel(((1, 4_000),))
    for _ in range(300):
        model.observe(1, 4e-3)
    assert model.quantile(1, 0.99) == pytest.approx(model.quantile(1, 0.01)) == pytest.approx(4e-3)
