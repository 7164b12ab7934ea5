"""The Triton kernels on a GPU: the cases of the interpreter, and what only a GPU can do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dflash_core.attention import RaggedBatch
from dflash_core.attention.split_kv.attention import attend
from dflash_core.attention.split_kv.device_batch import BatchSize, DeviceBatch, batch_arrays, fill_batch
from dflash_core.attention.split_kv.work_list import GridSize, HeadShape, make_work_list, work_list_of
from dflash_core.contracts import DEFAULT_RANKING, SamplingParams
from dflash_core.sampling.arrays import SAMPLING_ARRAYS
from dflash_core.sampling.candidates import rank_candidates
from dflash_core.sampling.choose import choose_tokens
from dflash_core.sampling.device.choose import choose_tokens_op
from dflash_core.sampling.device.rank import rank_candidates_op
from dflash_core.sampling.rows import RankingRows, SamplingRows
from dflash_core.staged_arrays import StagedArrays
from tests.core.attention_cases import *  # noqa: F403
from tests.core.attention_cases import BF16, MAX_ERROR, Case, batch_of, check, inputs_of, relative_error
from tests.core.attention_oracle import dense_oracle
from tests.core.commit_cases import *  # noqa: F403
from tests.core.compile_cases import *  # noqa: F403
from tests.core.margin_cases import *  # noqa: F403
from tests.core.ranking_cases import *  # noqa: F403
from tests.core.ranking_cases import check_ranking, ranking_arguments
from tests.core.runner_cases import *  # noqa: F403
from tests.core.sampling_cases import *  # noqa: F403
from tests.core.sampling_cases import check_choices
from tests.core.sampling_oracle import random_logits, random_rankings, random_rows
from tests.core.store_cases import *  # noqa: F403
from tests.core.walk_cases import *  # noqa: F403

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _forget_compilations() -> None:
    """All models compile one function: together they would be more variants of it than torch allows."""
    torch.compiler.reset()


LARGE = [
    Case(128, BF16, 16, 32, 8, "t", num_sequences=2, max_rows=256, max_prefix_len=4000),
    Case(128, BF16, 32, 32, 8, "ct", num_sequences=4, max_rows=64, max_prefix_len=4000, sliding_window=512),
    Case(128, BF16, 64, 32, 8, "b", num_sequences=8, max_rows=16, max_prefix_len=2000),
    Case(64, torch.float16, 16, 64, 4, "t", num_sequences=8, max_rows=16, max_prefix_len=2000, softcap=30.0),
    Case(256, BF16, 16, 16, 8, "t", num_sequences=2, max_rows=64, max_prefix_len=2000, softcap=50.0),
    Case(128, torch.float32, 16, 32, 8, "t", num_sequences=2, max_rows=64, max_prefix_len=2000),
]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_batches(case: Case, device: torch.device) -> None:
    rng = np.random.default_rng(case.max_rows)
    check(case, batch_of(case, rng), rng, device)


def test_a_captured_graph_serves_other_batches(device: torch.device) -> None:
    rng = np.random.default_rng(12)
    case = Case(128, BF16, 16, 32, 8, "t", num_sequences=4, max_rows=16, max_prefix_len=3000)
    heads = HeadShape(32, 8, 128, BF16)
    size = BatchSize(num_rows=64, num_sequences=6, max_blocks=200)
    staged = StagedArrays(batch_arrays(size), device)
    on_device = DeviceBatch.view(staged, size)
    grid = GridSize.of(heads, 64, 6, 16, True, device)
    static = padded_inputs(case, batch_of(case, rng), rng, device)

    def layers() -> list[Tensor]:
        work = make_work_list(on_device, heads, grid)
        return [attend(*static, work, scale=0.1, sliding_window=window) for window in (None, 300)]

    fill_batch(staged, batch_of(case, rng), size)
    staged.send()
    layers()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = layers()
    for _ in range(3):
        batch = batch_of(case, rng)
        for tensor, fresh in zip(static, padded_inputs(case, batch, rng, device), strict=True):
            tensor.copy_(fresh)
        fill_batch(staged, batch, size)
        staged.send(batch.num_sequences)
        graph.replay()
        torch.cuda.synchronize()
        real = [x[: batch.num_rows] for x in static[:3]]
        for output, window in zip(outputs, (None, 300), strict=True):
            expected = dense_oracle(*real, static[3], batch, 0.1, window, None)
            assert relative_error(output[: batch.num_rows], expected) < MAX_ERROR[BF16]


def test_inductor_compiles_a_layer_whole(device: torch.device) -> None:
    rng = np.random.default_rng(13)
    case = Case(64, BF16, 16, 8, 2, "t")
    batch = batch_of(case, rng)
    inputs = inputs_of(case, batch, rng, device)
    work = work_list_of(batch, HeadShape(8, 2, 64, BF16), device)

    def layer(query: Tensor, key: Tensor, value: Tensor, pages: Tensor) -> Tensor:
        return attend(query * 2, key, value, pages, work, scale=0.3) + 1

    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), layer(*inputs), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize(("spread", "num_levels"), [(3.0, None), (0.1, None), (2.0, 4)])
def test_a_large_vocabulary_is_chosen_from_as_on_the_cpu(
    dtype: torch.dtype, spread: float, num_levels: int | None, device: torch.device
) -> None:
    logits = torch.from_numpy(random_logits(3, 64, 152_064, spread, num_levels)).to(dtype)
    row_list = random_rows(4, 64)
    chosen = choose_tokens(logits.to(device), SamplingRows.of(row_list, device), 151_936).tolist()
    differing = [
        i for i, token in enumerate(choose_tokens(logits, SamplingRows.of(row_list), 151_936)) if chosen[i] != token
    ]
    assert len(differing) <= 2
    rows, tokens = logits[differing].float().numpy(), [chosen[i] for i in differing]
    check_choices(rows, [row_list[i] for i in differing], 151_936, tokens)


def test_a_large_vocabulary_is_ranked(device: torch.device) -> None:
    logits = torch.from_numpy(random_logits(5, 60, 152_064, 3.0, None)).bfloat16()
    row_list, rankings = random_rows(6, 60), random_rankings(7, 60)
    rows = SamplingRows.of(row_list, device)
    ids, scores = rank_candidates(logits.to(device), rows, RankingRows.of(rankings, rows), 151_936, 64, 0.8)
    values = logits[:, :151_936].float().numpy()
    assert check_ranking(values, row_list, ids.cpu().numpy(), scores.cpu().numpy(), rankings, 0.8) <= 2


def test_a_captured_graph_samples_for_other_rows(device: torch.device) -> None:
    """Greedy rows while it is captured, every kind of row when it is replayed."""
    vocab, num_rows = 30_000, 32
    static = torch.zeros(num_rows, vocab, device=device)
    row_arguments = ranking_arguments([(SamplingParams(), 0)] * num_rows, DEFAULT_RANKING)
    num_sampling = len(SAMPLING_ARRAYS)

    def sample() -> tuple[Tensor, Tensor, Tensor]:
        tokens = choose_tokens_op(static, *row_arguments[:num_sampling], vocab)
        return (tokens, *rank_candidates_op(static, *row_arguments, vocab, 64, 1.0))

    sample()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, ids, scores = sample()
    for seed in range(3):
        logits, row_list = random_logits(seed, num_rows, vocab, 3.0, None), random_rows(seed, num_rows)
        rankings = random_rankings(seed, num_rows)
        static.copy_(torch.from_numpy(logits))
        for tensor, fresh in zip(row_arguments, ranking_arguments(row_list, rankings), strict=True):
            tensor.copy_(fresh)
        graph.replay()
        assert check_choices(logits, row_list, vocab, tokens.tolist()) <= 1
        assert check_ranking(logits, row_list, ids.cpu().numpy(), scores.cpu().numpy(), rankings) <= 1


def padded_inputs(case: Case, batch: RaggedBatch, rng: np.random.Generator, device: torch.device) -> list[Tensor]:
    query, key, value, pages = inputs_of(case, batch, rng, device)
    rows = [torch.cat([x, x.new_zeros(64 - len(x), *x.shape[1:])]) for x in (query, key, value)]
    return [*rows, pages]
