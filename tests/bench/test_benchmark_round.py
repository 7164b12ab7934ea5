"""The round benchmark at a small size: both arms accept what they must, and the counted work is that of the models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.command import Deadline
from benchmarks.limits import Rates
from benchmarks.random_pair import QWEN3_8B, SMALL, RandomPair
from benchmarks.round.guarded import Guarded
from benchmarks.round.measure import Plan
from benchmarks.round.points import LARGE, Cell, Round
from benchmarks.round.reference import HostTree, compact, random_cache
from benchmarks.round.work import attention_operations, drafter_work, head_weights, layer_weights, target_work
from benchmarks.trees import right_tree, wrong_tree
from dflash_core.trees.structure import end_rows, parents
from dflash_core.trees.walk import accepted_rows
from tests.bench.benchmark_runs import error_of, report_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair() -> RandomPair:
    return RandomPair(SMALL, 256, torch.float32, CPU)


def test_round(tmp_path: Path) -> None:
    report = report_of("round", tmp_path, "--context", "32", "--repeats", "2")
    found = {
        (result["batch"], *_key(result["round"])): result for result in report["results"] if result["context"] == 32
    }
    assert set(found) == {
        (1, 1, 0, False), (1, 8, 0, False), (1, 8, 16, False), (1, 8, 0, True), (1, "drafter"),
        (2, 4, 0, False), (2, 4, 16, False), (2, 4, 0, True), (2, "drafter"),
    }  # fmt: skip
    for key, result in found.items():
        assert result["missing"] == {}
        ours, reference = result["ms"]["ours"], result["ms"]["Hugging Face"]
        assert result["over_hugging_face"] == pytest.approx(reference / ours)
        assert result["over_limit"] == pytest.approx(ours / result["limit"]["larger_ms"])
        assert result["stage_ms"]
        if key[-1] != "drafter":
            accepted = key[1] - 1 if key[-1] else 0
            assert result["num_accepted"] == {"ours": accepted, "Hugging Face": accepted}


def _key(round_: dict[str, object] | str) -> tuple[object, ...]:
    return (round_,) if isinstance(round_, str) else tuple(round_.values())


def test_a_point_for_which_there_was_no_time_says_so() -> None:
    plan = Plan(SMALL, torch.float32, CPU, 3, Rates(1.0, 1.0), Deadline(0.0))
    found = list(plan.findings([Cell(2, 32, (Round(4), Round(1)))]))
    assert [one.round for one in found] == [Round(4), Round(1), None]
    assert all(one.missing == {"ours": "no time", "Hugging Face": "no time"} for one in found)


@pytest.mark.parametrize("arguments", [("--model", "other"), ("--batch", "3"), ("--repeats", "0"), ("--context", "x")])
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...]) -> None:
    assert error_of("round", *arguments).startswith("error: ")


def test_the_grid() -> None:
    cells = LARGE.cells((1, 8), (1024, 4096))
    assert [(cell.batch, cell.context) for cell in cells] == [(1, 1024), (1, 4096), (8, 1024), (8, 4096)]
    assert cells[0].rounds == (Round(1), Round(16), Round(64), Round(256))
    assert cells[3].rounds == (Round(16), Round(16, prefill_rows=512), Round(16, is_accepted=True))


def test_the_target_s_choices_are_known(pair: RandomPair) -> None:
    tied = RandomPair(replace(SMALL, ties_embeddings=True), 256, torch.float32, CPU)
    token_ids = torch.randint(SMALL.vocab_size, (1, 40))
    for subject in (pair, tied):
        with torch.no_grad():
            choices = subject.target(token_ids).logits.argmax(-1)[0].tolist()
        assert choices == [subject.shape.successor(token) for token in token_ids[0].tolist()]


def test_twins_share_their_weights(pair: RandomPair) -> None:
    twins = (pair.target, pair.target_twin()), (pair.drafter, pair.drafter_twin())
    for original, twin in twins:
        theirs = dict(twin.named_parameters())
        for name, weight in original.named_parameters():
            assert weight.data_ptr() == theirs[name].data_ptr()


def test_the_counted_weights_are_those_of_the_models(pair: RandomPair) -> None:
    matrices = [m.weight.numel() for m in pair.target.modules() if isinstance(m, nn.Linear)]
    assert sum(matrices) == SMALL.num_layers * layer_weights(SMALL) + head_weights(SMALL)
    layers = [m.weight.numel() for m in pair.drafter.layers.modules() if isinstance(m, nn.Linear)]
    assert sum(layers) == SMALL.num_draft_layers * layer_weights(SMALL)
    # 15.1 GB of an 8B target's 16.4 are read: all but the embedding.
    read = 2 * (QWEN3_8B.num_layers * layer_weights(QWEN3_8B) + head_weights(QWEN3_8B))
    assert read == pytest.approx(15.1e9, rel=0.01)


def test_the_work_of_a_round() -> None:
    cell, round_ = Cell(3, 100, ()), Round(4, prefill_rows=10)
    weights = SMALL.num_layers * layer_weights(SMALL)
    token = SMALL.num_layers * 2 * SMALL.num_kv_heads * SMALL.head_dim
    fc = 2 * SMALL.hidden_size**2
    committed = 3 + 5 + 10
    work = target_work(SMALL, torch.bfloat16, cell, round_, 100.0, 5.0)
    read = weights + head_weights(SMALL) + fc + 300 * token
    assert work.num_bytes == 2 * (read + committed * (token + SMALL.hidden_size))
    matrices = 2 * (22 * weights + 12 * head_weights(SMALL) + committed * fc)
    assert work.num_operations == matrices + attention_operations(SMALL, SMALL.num_layers, 12 * 101 + 55)
    # A pair of row and key costs two products of head_dim in each head of each layer.
    assert attention_operations(SMALL, 1, 1) == SMALL.num_heads * SMALL.head_dim * 4

    work = drafter_work(SMALL, torch.bfloat16, 3, 100.0, 4)
    weights = SMALL.num_draft_layers * layer_weights(SMALL)
    token = SMALL.num_draft_layers * 2 * SMALL.num_kv_heads * SMALL.head_dim
    assert work.num_bytes == 2 * (weights + head_weights(SMALL) + 3 * 104 * token + 12 * SMALL.hidden_size)


def test_the_reference_walks_as_we_do() -> None:
    rng = np.random.default_rng(0)
    for num_rows in (1, 7, 30):
        tree = wrong_tree(rng, 3, num_rows, 6, 50, lambda token: token)
        host = HostTree(tree)
        for _ in range(20):
            choices = rng.integers(0, 50, num_rows)
            for row in range(num_rows - 1):  # children, now and then
                if rng.random() < 0.5 and tree.depths[row + 1] == tree.depths[row] + 1:
                    choices[row] = tree.token_ids[row + 1]
            accepted = accepted_rows(tree.token_ids, parents(tree.depths), end_rows(tree.depths), choices)
            assert host.walk(choices.tolist()) == np.flatnonzero(accepted).tolist()
    assert HostTree(right_tree(1, 4, lambda token: token + 1)).walk([2, 3, 4, 5]) == [0, 1, 2, 3]


def test_a_compacted_cache_has_the_kept_rows_after_its_prefix(pair: RandomPair) -> None:
    cache = random_cache(pair, 2, 2, 9)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    compact(cache, 5, torch.tensor([[0, 3], [0, 2]]))
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        for sequence, rows in enumerate(([0, 1, 2, 3, 4, 5, 8], [0, 1, 2, 3, 4, 5, 7])):
            assert torch.equal(layer.keys[sequence], keys[sequence][:, rows])
            assert torch.equal(layer.values[sequence], values[sequence][:, rows])


def test_a_reference_that_fails_is_not_called_again(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def use(arm: str) -> str:
        calls.append(arm)
        raise TypeError("changed")

    guarded = Guarded(CPU, lambda: "arm")
    assert guarded.failure is None
    assert guarded.call(use) is None
    assert guarded.call(use) is None
    assert calls == ["arm"]
    assert guarded.failure == "failed: TypeError"
    assert "changed" in capsys.readouterr().err
