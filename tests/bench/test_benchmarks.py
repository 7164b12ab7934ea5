"""The benchmarks of parts run at small sizes on a CPU, and their arms agree."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.attention.inputs import Inputs, Size
from benchmarks.attention.measure import Finding, not_measured
from benchmarks.limits import Limit, Rates, Work
from benchmarks.timing import TooSlow, median_ms
from benchmarks.trees import right_tree, wrong_tree
from cluster.bench.machine import describe_machine
from dflash_core.attention.split_kv.work_list import HeadShape
from dflash_core.trees.structure import check_tree, parents
from tests.bench.benchmark_runs import error_of, report_of

CPU = torch.device("cpu")


def test_attention(tmp_path: Path) -> None:
    report = report_of("attention", tmp_path, "--context", "64")
    assert len(report["results"]) == 4
    assert report["settings"]["rates"]["matrix_operations_per_second"] > 0
    for result in report["results"]:
        assert result["error"] < 1e-6
        assert set(result["ms"]) == {"ours", "sdpa", "flex"}
        assert result["missing"] == {}
        assert result["of_limit"] == pytest.approx(result["limit"]["larger_ms"] / result["ms"]["ours"])
        others = min(result["ms"]["sdpa"], result["ms"]["flex"])
        assert result["best_baseline_over_ours"] == pytest.approx(others / result["ms"]["ours"])
        assert result["prepare_ms"] > 0
        assert result["listing_ms"] is None  # no GPU, no kernel


def test_a_point_for_which_there_was_no_time_says_so(tmp_path: Path) -> None:
    report = report_of("attention", tmp_path, "--time-limit-s", "0", "--batch", "1", "--nodes", "1", "--arm", "ours")
    assert [result["missing"] for result in report["results"]] == [{"ours": "no time"}] * 2


@pytest.mark.parametrize("arguments", [("--no-such-flag",), ("--batch", "0"), ("--json", "/no/such/folder/found.json")])
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...]) -> None:
    assert error_of("attention", *arguments).startswith("error: ")


def test_arms_of_a_later_pass_join_what_was_found() -> None:
    size = Size(1, 64, 4)
    nothing = not_measured(size, "no time")
    first = nothing.with_more(Finding(size, Limit(1.0, 2.0), {"ours": 4.0}, {"sdpa": "no memory"}, error=0.5))
    assert first.missing == {"sdpa": "no memory", "flex": "no time"}
    assert (first.of_limit, first.best_baseline) == (0.5, None)
    second = first.with_more(Finding(size, Limit(1.0, 2.0), {"flex": 6.0}))
    assert second.missing == {"sdpa": "no memory"}
    assert (second.of_limit, second.best_baseline, second.error) == (0.5, 1.5, 0.5)


def test_the_work_of_attention_is_what_a_loop_counts() -> None:
    heads, size = HeadShape(6, 2, 32, torch.float32), Size(3, 50, 7)
    inputs = Inputs(size, heads, CPU)
    batch = inputs.new_batch()
    pairs = sum(
        int(first <= row < end)
        for row in range(batch.num_rows)
        for first, end in zip(batch.first_row, batch.end_row, strict=True)
    )
    pairs += batch.num_rows * size.context
    keys = size.batch * (size.context + size.nodes)
    work = inputs.work
    assert work.num_operations == pairs * heads.num_heads * heads.head_dim * 2 * 2  # two products, each · and +
    assert work.num_bytes == 4 * heads.head_dim * (2 * keys * heads.num_kv_heads + 2 * batch.num_rows * heads.num_heads)


def test_limits() -> None:
    work = Work(2e9, 3e12) + Work(1e9, 0.0)
    limit = work.limit(Rates(copy_bytes_per_second=1e12, matrix_operations_per_second=5e14))
    assert limit == Limit(pytest.approx(3.0), pytest.approx(6.0))
    assert (limit.larger_ms, limit.sum_ms) == (pytest.approx(6.0), pytest.approx(9.0))


def test_what_takes_too_long_is_not_repeated() -> None:
    calls = []
    with pytest.raises(TooSlow):
        median_ms(lambda: calls.append(time.sleep(0.002)), CPU, longest_ms=1.0)
    assert len(calls) == 2


def test_trees_that_are_never_and_always_accepted() -> None:
    def successor(token: int) -> int:
        return (token + 1) % 40

    for seed in range(20):
        tree = wrong_tree(np.random.default_rng(seed), 7, 30, 5, 40, successor)
        check_tree(tree, 40, 30, 5)
        for row, parent in enumerate(parents(tree.depths).tolist()[1:], start=1):
            assert tree.token_ids[row] != successor(int(tree.token_ids[parent]))
    path = right_tree(38, 4, successor)
    check_tree(path, 40, 4, 3)
    assert path.token_ids.tolist() == [38, 39, 0, 1]


def test_a_copy_without_its_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no git
    monkeypatch.setenv("DFLASH_COMMIT", "abc")
    assert describe_machine()["commit"] == "abc"
    monkeypatch.delenv("DFLASH_COMMIT")
    assert describe_machine()["commit"] is None
