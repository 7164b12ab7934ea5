"""The prefill benchmark at a small size, and how its gaps are counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from benchmarks.prefill.arrivals import Arrivals, Gaps, gaps_ms
from benchmarks.prefill.measure import Load
from cluster.requests import TokenEvent
from dflash_core.errors import Unavailable
from tests.bench.benchmark_runs import error_of, report_of


def test_prefill(tmp_path: Path) -> None:
    sizes = ("--model", "small", "--prompt-tokens", "96", "--streams", "2", "--stream-tokens", "8", "--repeats", "1")
    report = report_of("prefill", tmp_path, *sizes, "--chunk", "16", "--chunk", "96")
    assert [result["prefill_chunk_tokens"] for result in report["results"]] == [16, 96]
    for result, num_chunks in zip(report["results"], (6, 1), strict=True):
        assert len(result["first_token_ms"]) == 1
        # Each chunk is a round, which gives each stream a token: the prompt's own first one comes with the last chunk.
        # The round that was running when the prompt came counts too, and that of its announcement.
        assert 2 * num_chunks <= result["gaps_during_ms"]["count"] <= 2 * (num_chunks + 2)
        for phase in ("before", "during"):
            gaps = result[f"gaps_{phase}_ms"]
            assert 0 < gaps["p50"] <= gaps["p99"] <= gaps["max"]
    assert report["settings"]["model"]["name"] == "small"


def test_gaps_that_overlap_a_time_are_counted() -> None:
    times = [0.0, 1.0, 2.5, 3.0, 7.0, 8.0]
    assert gaps_ms(times, 1.5, 3.5) == [1500.0, 500.0, 4000.0]
    assert gaps_ms(times, 3.0, 7.0) == [4000.0]
    assert gaps_ms([], 0.0, 1.0) == []


def test_statistics_of_gaps() -> None:
    gaps = Gaps.of(float(gap) for gap in range(101))
    assert gaps == Gaps(101, 50.0, 99.0, 100.0)


def test_a_stream_can_write_long_enough() -> None:
    load = Load(num_streams=3, stream_tokens=10, prompt_tokens=100, tree_budget=7)
    assert load.max_tree_rows == 24
    assert load.output_tokens(smallest_chunk=30) >= 28 + 4


async def test_waiting_for_events_ends_with_a_sequence_s_error() -> None:
    arrivals = Arrivals()
    tokens = np.ones(1, np.int32)
    waiting = asyncio.create_task(arrivals.until(lambda: len(arrivals.times["a"]) == 2))
    await asyncio.sleep(0)
    arrivals.put([TokenEvent("a", tokens)])
    await asyncio.sleep(0)
    assert not waiting.done()
    arrivals.put([TokenEvent("a", tokens)])
    await waiting
    waiting = asyncio.create_task(arrivals.until(lambda: len(arrivals.times["a"]) == 3))
    await asyncio.sleep(0)
    arrivals.put([TokenEvent("b", tokens[:0], error=Unavailable("gone"))])
    with pytest.raises(Unavailable):
        await waiting


@pytest.mark.parametrize("arguments", [("--chunk", "0"), ("--model", "huge"), ("--plot", "/no/such/folder/found.png")])
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...]) -> None:
    assert error_of("prefill", *arguments).startswith("error: ")
