"""From samples to rows: rates, paired ratios, acceptance, comparison of outputs, cost."""

from __future__ import annotations

import pytest
from rich.console import Console

from cluster.bench.arms import ADAPTIVE, HUGGING_FACE, PLAIN, Arm, ArmKind, Cell, References, arms_at
from cluster.bench.report import as_json, means_table, result_table, savings_line, stage_table, sweep_table
from cluster.bench.samples import Decoded, Sample
from cluster.bench.summary import Row, summarise
from cluster.bench.sweep import sweep_of
from cluster.requests import Strategy
from cluster.router import RouterSettings
from dflash_core.errors import InvalidRequest

CELL = Cell(temperature=0.0, concurrency=1)
TREE = Arm(ArmKind.TREE, 8)


def _sample(arm: Arm, repeat: int, group: int, seconds: float, output: tuple[int, ...] = (1, 2, 3, 4)) -> Sample:
    drafted = arm == TREE
    decoded = Decoded(
        seconds,
        len(output),
        (output,),
        verified_trees=2 if drafted else 3,
        accepted_tokens=1 if drafted else 0,
        tree_nodes=16 if drafted else 0,
        rounds=3,
        stage_us={"round.verify": 3_000},
    )
    return Sample(CELL, arm, repeat, group, decoded)


@pytest.fixture
def rows() -> list[Row]:
    samples = []
    for repeat in range(3):
        noise = 10.0 if repeat == 1 else 1.0  # one repeat meets a burst of noise, in both arms
        for group, seconds in enumerate((2.0, 4.0)):
            samples.append(_sample(PLAIN, repeat, group, seconds * noise))
            output = (1, 2, 3, 5) if (repeat, group) == (2, 1) else (1, 2, 3, 4)
            samples.append(_sample(TREE, repeat, group, seconds / 2 * noise, output))
    return summarise(samples)


def test_a_burst_of_noise_leaves_no_mark(rows: list[Row]) -> None:
    plain, tree = rows
    assert plain.tokens_per_second == pytest.approx(8 / 6.0)
    assert tree.tokens_per_second == pytest.approx(8 / 3.0)


def test_ratios_are_those_of_pairs(rows: list[Row]) -> None:
    plain, tree = rows
    assert plain.over_plain is not None
    assert tree.over_plain is not None
    assert plain.over_plain.speed_up == 1.0
    assert tree.over_plain.speed_up == pytest.approx(2.0)
    assert tree.over_plain.lower_quartile == tree.over_plain.upper_quartile == pytest.approx(2.0)
    assert tree.over_hugging_face is None


def test_acceptance_counts_rounds_after_the_prefill(rows: list[Row]) -> None:
    plain, tree = rows
    assert plain.acceptance_length == 1.0
    assert tree.acceptance_length == pytest.approx(1.5)
    assert tree.nodes_per_round == pytest.approx(8.0)
    assert tree.stage_ms == {"round.verify": pytest.approx(1.0)}


def test_outputs_are_compared_with_plain_decoding(rows: list[Row]) -> None:
    plain, tree = rows
    assert (plain.num_identical, plain.num_outputs) == (6, 6)
    assert (tree.num_identical, tree.num_outputs) == (5, 6)


def test_cost_of_a_million_tokens(rows: list[Row]) -> None:
    plain, _ = rows
    # 8 tokens in 6 s: a million take 750,000 s, or 208 1/3 hours.
    assert plain.cost_per_million(price_per_hour=3.0) == pytest.approx(625.0)
    line = savings_line(CELL, rows, 3.0)
    assert line is not None
    assert "625.00 without speculation, 312.50 with tree 8" in line
    assert savings_line(CELL, rows[:1], 3.0) is None


def test_tables_name_every_arm(rows: list[Row]) -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(result_table(CELL, rows, price_per_hour=3.0))
        console.print(stage_table(CELL, rows))
    text = capture.get()
    for expected in ("plain", "tree 8", "2.00–2.00", "5/6", "625.00", "round.verify"):
        assert expected in text


def test_json_holds_rows_and_samples(rows: list[Row]) -> None:
    samples = [_sample(PLAIN, 0, 0, 2.0)]
    found = as_json({"cores": 2}, {"repeats": 1}, rows, samples, None)
    assert [entry["arm"] for entry in found["results"]] == ["plain", "tree 8"]
    assert found["results"][0]["samples"][0]["seconds"] == 2.0
    assert found["results"][0]["temperature"] == 0.0


def test_arms_of_a_temperature() -> None:
    def names(temperature: float, references: References) -> list[str]:
        arms = arms_at(temperature, (8, 32), chain_depth=7, references=references)
        assert len(set(arms)) == len(arms)
        assert [arm.name for arm in arms if arm.is_fixed] == ours[:-1]
        return [arm.name for arm in arms]

    ours = ["plain", "chain", "tree 8", "tree 32", "adaptive"]
    raw = ["tree 8 raw", "tree 16 raw"]
    published = ["published chain", "published tree 8", "published tree 16"]
    assert names(0.0, References.ALL) == ["HF generate", *ours, *raw, *published]
    assert names(1.0, References.ALL) == [*ours, *raw, *published]
    for temperature in (0.0, 1.0):
        assert names(temperature, References.PUBLISHED) == [*ours, *published]
        assert names(temperature, References.NONE) == ours
    found = arms_at(1.0, (8,), chain_depth=7, references=References.ALL)
    assert [arm.name for arm in found if arm.is_published] == ["plain", *published]
    with pytest.raises(InvalidRequest, match="at least 1, got 0"):
        arms_at(0.0, (0,), chain_depth=7, references=References.ALL)


def test_settings_of_an_arm() -> None:
    assert ADAPTIVE.router_settings == RouterSettings()
    assert PLAIN.router_settings.strategy is Strategy.NONE
    raw = Arm(ArmKind.TREE, 8, learns_acceptance=False).router_settings
    assert (raw.tree_budget, raw.learns_acceptance) == (8, False)
    assert Arm(ArmKind.CHAIN, 7).router_settings.strategy is Strategy.CHAIN
    with pytest.raises(ValueError, match="has no router"):
        _ = HUGGING_FACE.router_settings


def _rates(cell: Cell, rates: dict[Arm, float]) -> list[Sample]:
    return [Sample(cell, arm, 0, 0, Decoded(12.0 / rate, 12, ((1,) * 12,))) for arm, rate in rates.items()]


def test_adaptive_is_compared_with_the_best_of_each_cell_and_the_best_single_setting() -> None:
    raw = Arm(ArmKind.TREE, 8, learns_acceptance=False)
    one, many = Cell(0.0, 1), Cell(0.0, 32)
    only_here = Arm(ArmKind.TREE, 64)
    samples = _rates(one, {PLAIN: 10.0, TREE: 40.0, raw: 50.0, ADAPTIVE: 38.0, only_here: 20.0})
    samples += _rates(many, {PLAIN: 100.0, TREE: 50.0, ADAPTIVE: 110.0})
    rows = summarise(samples)
    sweep = sweep_of(rows, samples)
    assert sweep is not None
    assert [entry.best.arm for entry in sweep.cells] == [TREE, PLAIN]
    assert [entry.over_best for entry in sweep.cells] == [pytest.approx(0.95), pytest.approx(1.1)]
    assert [entry.over_plain for entry in sweep.cells] == [pytest.approx(3.8), pytest.approx(1.1)]
    means = {mean.arm: mean for mean in sweep.means}
    assert set(means) == {PLAIN, TREE}
    assert means[PLAIN].geometric == pytest.approx((3.8 * 1.1) ** 0.5)
    assert (means[TREE].geometric, means[TREE].least, means[TREE].most) == (
        pytest.approx((0.95 * 2.2) ** 0.5), pytest.approx(0.95), pytest.approx(2.2),
    )  # fmt: skip
    assert sweep.best_single is means[TREE]
    assert sweep.best_published is means[PLAIN]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(sweep_table(sweep))
        console.print(means_table(sweep))
    for expected in ("tree 8", "0.950", "1.100", "3.80", "1.446", "2.045"):
        assert expected in capture.get()
    found = as_json({}, {}, rows, samples, None)["sweep"]
    assert found["best_single_fixed"] == "tree 8"
    assert found["cells"][1]["best_fixed"] == "plain"
    assert sweep_of([row for row in rows if row.arm is not ADAPTIVE], samples) is None


def test_ratios_of_a_sweep_are_medians_over_repeats_in_each_of_which_the_machine_was_the_same() -> None:
    """Adaptive is 1.2 times as fast in two of three repeats; its median rate is 0.8 of plain decoding's."""
    samples = []
    for repeat, (plain_s, adaptive_s) in enumerate(((1.0, 1.0 / 1.2), (3.0, 3.0 / 1.2), (2.0, 4.0))):
        samples += [
            _sample(arm, repeat, group, seconds)
            for arm, seconds in ((PLAIN, plain_s), (ADAPTIVE, adaptive_s))
            for group in range(2)
        ]
    rows = summarise(samples)
    assert rows[1].tokens_per_second / rows[0].tokens_per_second == pytest.approx(0.8)
    sweep = sweep_of(rows, samples)
    assert sweep is not None
    assert sweep.cells[0].over_best == sweep.cells[0].over_plain == pytest.approx(1.2)


def test_the_luckiest_of_several_that_are_as_good_is_not_what_adaptive_is_measured_by() -> None:
    """Two settings are as fast as the adaptive arm; in each repeat one of them is lucky."""
    other = Arm(ArmKind.TREE, 16)
    samples = []
    for repeat, (plain_s, tree_s, other_s) in enumerate(((1.0, 0.8, 1.0), (1.0, 1.0, 0.8), (1.0, 0.9, 1.0))):
        for arm, seconds in ((PLAIN, plain_s + 1.0), (TREE, tree_s), (other, other_s), (ADAPTIVE, 1.0)):
            samples.append(_sample(arm, repeat, 0, seconds))
    sweep = sweep_of(summarise(samples), samples)
    assert sweep is not None
    assert sweep.cells[0].best.arm == TREE  # by all repeats: 0.9 of adaptive's time
    # Of the last two TREE takes 0.95 and the other 0.9; of the outer ones 0.85 and 1; of the first two both 0.9.
    assert sweep.cells[0].over_best == pytest.approx(1.0)
