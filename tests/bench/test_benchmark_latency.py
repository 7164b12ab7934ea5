"""The latency benchmark at a small size, with the embedded pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.benchmark_runs import error_of, report_of

SIZES = ("--concurrency", "1", "--concurrency", "2", "--tree-budget", "0", "--tree-budget", "3")


def test_latency(tmp_path: Path) -> None:
    report = report_of("latency", tmp_path, *SIZES, "--max-tokens", "3", "--repeats", "1", "--time-limit-s", "1000")
    rounds, drafts = report["results"]
    assert (rounds["steps"], drafts["steps"]) == ("rounds", "drafts")
    for result in (rounds, drafts):
        assert result["median_error"] >= 0
        assert result["model"]["num_observed"] == len(result["observed"])
        assert result["model"]["seed_us"]
        assert result["model"]["seconds"] == sorted(result["model"]["seconds"])
    assert {one["concurrency"] for one in rounds["observed"]} == {1, 2}
    for one in rounds["observed"]:
        load = one["load"]
        assert load["num_rows"] >= load["num_sequences"] >= 1
        assert one["seconds"] > 0 < one["expected"]
    assert {one["num_blocks"] for one in drafts["observed"]} <= {1, 2}
    assert report["settings"]["points"] == [[0, 1], [0, 2], [3, 1], [3, 2]]


@pytest.mark.parametrize("arguments", [("--concurrency", "0"), ("--json", "/no/such/folder/found.json")])
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...]) -> None:
    assert error_of("latency", *arguments).startswith("error: ")
