"""The benchmark of tree scores at a small size, and its replay against plain decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.scores.replay import Scores, num_accepted, replay
from benchmarks.simulate.playback import EMBEDDED_TRACES
from benchmarks.traces.trace import SequenceTrace, Trace
from dflash_core.contracts import DraftTree, SamplingParams
from dflash_core.trees.acceptance import AcceptanceModel
from tests.bench.benchmark_runs import error_of, report_of


def test_scores(tmp_path: Path) -> None:
    report = report_of("scores", tmp_path, "--num-nodes", "8", "--num-calls", "1")
    judged = [result for result in report["results"] if "scores" in result]
    assert {(result["temperature"], result["scores"]) for result in judged} == {
        (temperature, scores)
        for temperature in (0.0, 1.0)
        for scores in ("raw", "calibrated", "matched", "matched, warm")
    }
    assert all(result["acceptance_length"] > 1 for result in judged)
    assert {result["depth"] for result in report["results"] if "depth" in result} == {7, 15}


@pytest.mark.parametrize("arguments", [("--num-nodes", "0"), ("--trace", "/no/such/file.npz")])
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...]) -> None:
    assert error_of("scores", *arguments).startswith("error: ")


@pytest.mark.parametrize("scores", list(Scores))
def test_every_recorded_token_is_decoded_once(scores: Scores) -> None:
    traces = Trace.load(EMBEDDED_TRACES).sequences[:5]
    found = replay(traces, 8, scores, 2, AcceptanceModel())
    assert found.num_tokens == sum(len(trace.token_ids) - 1 for trace in traces)
    assert len(traces) <= found.num_rounds < found.num_tokens


def test_the_accepted_path_is_that_of_the_recorded_tokens() -> None:
    none = np.zeros((4, 0, 0), np.int32)
    trace = SequenceTrace(
        SamplingParams(temperature=0.0), np.zeros(1, np.int32), np.array([9, 1, 2, 3], np.int32), none, none
    )
    tree = DraftTree(np.array([9, 5, 2, 1, 7, 2, 4, 3], np.int32), np.array([0, 1, 2, 1, 2, 2, 3, 1], np.int32))
    assert num_accepted(tree, trace, 0) == 2
    assert num_accepted(tree, trace, 1) == 0


def test_a_trace_is_read_as_it_was_saved(tmp_path: Path) -> None:
    trace = Trace.load(EMBEDDED_TRACES)
    trace.save(tmp_path / "again.npz")
    again = Trace.load(tmp_path / "again.npz")
    for one, other in zip(trace.sequences, again.sequences, strict=True):
        assert one.sampling == other.sampling
        for name in ("prompt_ids", "token_ids", "candidate_ids", "scores"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
