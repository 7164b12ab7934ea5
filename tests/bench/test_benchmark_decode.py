"""The decode benchmark on a tiny pair: trained once, then taken from its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.decode.pair import LARGE, SMALL, trained
from dflash_core.errors import InvalidSettings
from tests.bench.benchmark_runs import error_of, report_of

SIZES = ("--hidden-size", "32", "--target-steps", "3", "--drafter-steps", "3")
MEASURED = ("--tree-budget", "4", "--concurrency", "2", "--temperature", "0", "--max-tokens", "4")


def test_decode(tmp_path: Path) -> None:
    work = tmp_path / "pair"
    report = report_of("decode", tmp_path, "--work", str(work), *SIZES, *MEASURED)
    assert [result["arm"] for result in report["results"]] == [
        "HF generate", "plain", "chain", "tree 4", "adaptive", "tree 8 raw", "tree 16 raw",
        "published chain", "published tree 8", "published tree 16",
    ]  # fmt: skip
    for result in report["results"]:
        assert result["num_identical"] == result["num_outputs"] == 4, result["arm"]
        assert result["tokens_per_second"] > 0
    pair = report["settings"]["pair"]
    assert pair["num_parameters"] == sum(weight.numel() for weight in _weights(work / "target"))
    assert pair["recipe"]["target"]["steps"] == 3
    assert pair["drafter"]["held_out_acceptance"] >= 1.0

    # What is there is not trained again, and not taken for another recipe's.
    recipe = SMALL.resized(
        hidden_size=32,
        num_layers=SMALL.target.num_layers,
        num_draft_layers=SMALL.drafter.num_layers,
        draft_block_size=SMALL.drafter.draft_block_size,
        target_steps=3,
        drafter_steps=3,
    )
    before = (work / "drafter" / "model.safetensors").stat().st_mtime_ns
    assert trained(recipe, work, torch.device("cpu"))["drafter"] == pair["drafter"]
    assert (work / "drafter" / "model.safetensors").stat().st_mtime_ns == before
    other = replace(recipe, target=replace(recipe.target, seed=7))
    with pytest.raises(InvalidSettings, match=r"target\.seed is 0 there and 7 here"):
        trained(other, work, torch.device("cpu"))


def _weights(folder: Path) -> list[torch.Tensor]:
    return list(load_file(folder / "model.safetensors").values())


def test_the_large_pair_has_about_100m_parameters() -> None:
    assert LARGE.num_parameters == pytest.approx(100e6, rel=0.1)


def test_held_out_files_are_not_trained_on() -> None:
    files = SMALL.files()
    assert (sum(file.is_held_out for file in files), sum(not file.is_held_out for file in files)) == (2, 8)
    prompts = Path("cluster/bench/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    sources = {json.loads(line)["source"] for line in prompts}
    assert sources
    for file in files:
        if not file.is_held_out:
            assert not any(source.startswith(f"{file.name}:") for source in sources)


@pytest.mark.parametrize("arguments", [("--hidden-size", "33"), ("--layers", "1"), ("--json", "/no/such/f.json")])
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert error_of("decode", "--work", str(tmp_path / "pair"), *arguments).startswith("error: ")
    assert not (tmp_path / "pair").exists()
