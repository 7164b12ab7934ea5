"""The benchmark of the router alone at a small size, and that what it measures is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.router.instant import InstantDrafter, InstantTarget, Load
from benchmarks.router.measure import in_process
from benchmarks.router.messages import message_costs
from dflash_core.contracts import DraftBlock, DraftTree, RoundRequest, SamplingParams, SequenceKey, TreeRows
from tests.bench.benchmark_runs import ROOT, error_of

KEY = SequenceKey("a", 1)


@pytest.mark.cluster
def test_router(tmp_path: Path) -> None:
    found, picture = tmp_path / "found.json", tmp_path / "found.png"
    arguments = (
        "--sequences",
        "2",
        "--tree-budget",
        "5",
        "--rounds",
        "3",
        "--json",
        str(found),
        "--plot",
        str(picture),
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.router", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    report = json.loads(found.read_text(encoding="utf-8"))
    assert report["settings"]["event_loop"] == "uvloop", "Ray brings it, and gives it to its workers"
    results = report["results"]
    assert [result["transport"] for result in results] == ["in process", "gRPC"]
    for result in results:
        assert result["rounds"] >= 3
        assert 0 < result["nodes_per_tree"] <= 5
        assert result["process_ms"] > 0
    assert results[1]["messages"]["num_bytes"] > 2 * 15 * 64 * 8


async def test_every_sequence_decodes_in_every_round() -> None:
    cost = await in_process(Load(num_sequences=3, tree_budget=4), num_rounds=5)
    assert cost.rounds >= 5
    assert 0 < cost.nodes_per_tree <= 4


def test_the_target_takes_the_spine() -> None:
    tree = DraftTree(np.asarray([7, 1, 2, 3, 4], np.int32), np.asarray([0, 1, 2, 1, 2], np.int32))
    (outcome,) = InstantTarget(Load(1, 4)).run_round(RoundRequest(1, trees=(TreeRows(KEY, 10, tree),))).result.outcomes
    assert outcome.token_ids.tolist() == [1, 2]
    assert outcome.cached_len == 13


def test_drafts_fall_with_rank_and_differ_within_a_depth() -> None:
    (draft,) = InstantDrafter().draft([DraftBlock(KEY, 1, 9, SamplingParams())])
    assert (np.diff(draft.scores, axis=1) <= 0).all()
    assert (draft.scores <= 0).all()
    assert all(len(set(row)) == len(row) for row in draft.token_ids.tolist())


def test_messages_of_more_sequences_have_more_bytes() -> None:
    few, many = (message_costs(Load(number, 4)) for number in (1, 4))
    assert many.num_bytes > 3 * few.num_bytes
    assert many.total_ms > 0


@pytest.mark.parametrize(
    "arguments", [("--sequences", "0"), ("--tree-budget", "0"), ("--json", "/no/such/folder/f.json")]
)
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...]) -> None:
    assert error_of("router", *arguments).startswith("error: ")
