"""What choosing tokens in Triton must do; collected like `attention_cases.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from dflash_core.contracts import SamplingParams
from dflash_core.sampling import noise
from dflash_core.sampling.device.borders import KEYS_HELD, find_borders
from dflash_core.sampling.device.choose import choose_tokens_op
from dflash_core.sampling.device.kernels.borders import BORDER
from dflash_core.sampling.device.kernels.keys import id_of, pack, token_of, value_of
from dflash_core.sampling.device.kernels.noise import gumbel_like, gumbel_of_id, words_of_groups
from dflash_core.sampling.device.noise import noise_of_ids
from dflash_core.sampling.rows import SamplingRows
from tests.core import sampling_oracle as oracle
from tests.core.sampling_oracle import lies_on_top_p_border, random_logits, random_rows

SAMPLING_DEVICE = torch.device("cuda" if isinstance(pack, triton.JITFunction) else "cpu")
VOCAB = 4200  # 17 tiles in two parts, the last of each cut off


def arguments(row_list: Sequence[tuple[SamplingParams, int]]) -> tuple[Tensor, ...]:
    """The operators' row arguments."""
    rows = SamplingRows.of(row_list, SAMPLING_DEVICE)
    return rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seeds, rows.positions


def choose(logits: np.ndarray | Tensor, row_list: Sequence[tuple[SamplingParams, int]], vocab: int) -> list[int]:
    logits = torch.as_tensor(logits).to(SAMPLING_DEVICE)
    chosen = choose_tokens_op(logits, *arguments(row_list), vocab)
    assert chosen.dtype == torch.int64
    return chosen.tolist()


def check_choices(logits: np.ndarray, row_list: Sequence[tuple[SamplingParams, int]], vocab: int, chosen: list[int]):
    """Every choice is the oracle's; returns how many rows differ by rounding, which nothing but rounding may excuse."""
    num_excused = 0
    for row, (params, position) in enumerate(row_list):
        scores = oracle.scores(logits[row, :vocab], params, position)
        token = chosen[row]
        if token == scores.argmax():
            continue
        assert 0 <= token < vocab
        assert not params.is_greedy
        margin = scores.max() - scores[token]
        assert margin <= 8 * np.spacing(np.abs(scores.max())) or lies_on_top_p_border(logits[row, :vocab], params)
        num_excused += 1
    return num_excused


@triton.jit
def _noise_kernel(seeds, positions, words, row_noise, noise_of_ids, vocab: tl.constexpr):
    row = tl.program_id(0)
    seed = tl.load(seeds + row)
    position = tl.load(positions + row)
    groups = tl.arange(0, vocab // 4)
    ids = groups[:, None] * 4 + tl.arange(0, 4)[None, :]
    w0, w1, w2, w3 = words_of_groups(seed, position, groups)
    tl.store(words + row * vocab + groups * 4, w0)
    tl.store(words + row * vocab + groups * 4 + 1, w1)
    tl.store(words + row * vocab + groups * 4 + 2, w2)
    tl.store(words + row * vocab + groups * 4 + 3, w3)
    tl.store(row_noise + row * vocab + ids, gumbel_like(ids, seed, position, groups))
    for i in range(7):
        tl.store(noise_of_ids + row * 7 + i, gumbel_of_id(seed, position, tl.full([], i * 5, tl.int32)))


def test_noise_in_triton_is_the_reference() -> None:
    """Words bit for bit, and with them `u`; the logarithms up to their last bit."""
    seeds = [0, 1, 2**31, 2**32, 2**63, 2**64 - 1, 0x0123456789ABCDEF]
    positions = [0, 7, 4096, 2**31 - 1, 2**32 - 1, 5, 1]
    vocab = 256
    on_device = {"device": SAMPLING_DEVICE}
    words = torch.empty(len(seeds), vocab, dtype=torch.uint32, **on_device)
    row_noise = torch.empty(len(seeds), vocab, dtype=torch.float32, **on_device)
    noise_of_ids = torch.empty(len(seeds), 7, dtype=torch.float32, **on_device)
    bits = torch.from_numpy(np.array(seeds, dtype=np.uint64).view(np.int64)).to(**on_device)
    _noise_kernel[(len(seeds),)](bits, torch.tensor(positions, **on_device), words, row_noise, noise_of_ids, vocab)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        expected_words = noise.philox_4x32_10(
            np.array([[group, position, 0, 0] for group in range(vocab // 4)], dtype=np.uint32),
            np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32),
        )
        assert words[row].cpu().numpy().tobytes() == expected_words.tobytes()
        expected = noise.gumbel(seed, position, np.arange(vocab))
        np.testing.assert_allclose(row_noise[row].cpu().numpy(), expected, rtol=4e-7, atol=4e-7)
        np.testing.assert_allclose(noise_of_ids[row].cpu().numpy(), expected[:35:5], rtol=4e-7, atol=4e-7)


@triton.jit
def _key_kernel(values, keys, unpacked_values, ids, tokens, num_values: tl.constexpr):
    lanes = tl.arange(0, num_values)
    packed = pack(tl.load(values + lanes), lanes)
    tl.store(keys + lanes, packed)
    tl.store(unpacked_values + lanes, value_of(packed))
    tl.store(ids + lanes, id_of(packed))
    tl.store(tokens + lanes, token_of(packed))


def test_keys_rise_with_the_value_and_fall_with_the_id() -> None:
    negative_nan = np.array([0xFFC00001], dtype=np.uint32).view(np.float32)[0]
    inf = np.inf
    numbers = [np.nan, inf, 3e38, 1.5, 1.0, 1e-40, 0.0, -0.0, -1e-40, -1.0, -3e38, -inf, negative_nan, 1.0, -1.0, 0.0]
    values = torch.tensor(np.array(numbers, dtype=np.float32), device=SAMPLING_DEVICE)
    keys, tokens = torch.empty_like(values, dtype=torch.int64), torch.empty_like(values, dtype=torch.int64)
    unpacked, ids = torch.empty_like(values), torch.empty_like(values, dtype=torch.int32)
    _key_kernel[(1,)](values, keys, unpacked, ids, tokens, len(numbers))
    order = keys.argsort(descending=True).tolist()
    assert order == [0, 12, 1, 2, 3, 4, 13, 5, 6, 7, 15, 8, 9, 14, 10, 11]
    assert ids.tolist() == list(range(16))
    np.testing.assert_array_equal(unpacked.cpu().numpy(), np.array(numbers, dtype=np.float32))
    assert tokens.tolist() == [-1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1, -1, 13, 14, 15]


@pytest.mark.parametrize(
    ("seed", "vocab", "dtype", "spread", "num_levels"),
    [
        (1, VOCAB, torch.bfloat16, 1.0, None),
        (2, VOCAB, torch.float16, 4.0, 8),
        (3, 300, torch.float32, 0.1, None),
        (4, 256, torch.bfloat16, 100.0, None),
        (5, 3, torch.float32, 1.0, 1),
        (6, 1, torch.float32, 1.0, None),
    ],
)
def test_choices_are_the_oracles(seed: int, vocab: int, dtype: torch.dtype, spread: float, num_levels: int | None):
    num_rows = 5
    logits = torch.from_numpy(random_logits(seed, num_rows, vocab + 3, spread, num_levels)).to(dtype)
    logits[:, vocab:] = 1e4  # padding must never win
    row_list = random_rows(seed, num_rows)
    chosen = choose(logits, row_list, vocab)
    assert check_choices(logits.float().numpy(), row_list, vocab, chosen) <= 1


@pytest.mark.parametrize(("seed", "spread", "num_levels"), [(0, 3.0, None), (1, 0.5, 4), (2, 30.0, None)])
def test_borders_keep_what_the_oracle_keeps(seed: int, spread: float, num_levels: int | None) -> None:
    """The set itself, of which a choice shows one id."""
    vocab, num_rows = 800, 6
    logits = random_logits(seed, num_rows, vocab, spread, num_levels)
    row_list = [
        (replace(params, temperature=params.temperature or 1.0), 0) for params, _ in random_rows(seed, num_rows)
    ]
    row_arguments = arguments(row_list)[:4]
    on_device = torch.from_numpy(logits).to(SAMPLING_DEVICE)
    borders = find_borders(on_device, *row_arguments, vocab, truncated_only=True).state[:, BORDER.value].tolist()
    for row, (params, _) in enumerate(row_list):
        if params.top_k == 0 and params.top_p == 1.0:
            continue
        scaled = logits[row] / np.float32(params.temperature) + np.float32(0.0)
        bits = scaled.view(np.int32)
        keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) | (0x7FFFFFFF - np.arange(vocab))
        expected = np.isfinite(oracle.processed(logits[row], replace(params, min_p=0.0)))
        if not np.array_equal(keys >= borders[row], expected):
            assert lies_on_top_p_border(logits[row], params)


def test_equal_values_at_a_border_keep_the_lowest_ids() -> None:
    """Among more equal values than are held in registers."""
    vocab = KEYS_HELD + 100
    logits = np.zeros((4, vocab), np.float32)
    logits[3, 2000:2010] = 1.0
    row_list = [
        (SamplingParams(temperature=1.0, top_k=1, seed=0), 1),
        (SamplingParams(temperature=1.0, top_k=2, seed=1), 1),
        (SamplingParams(temperature=1.0, top_p=0.7, seed=2), 1),
        (SamplingParams(temperature=1.0, top_p=2.5 / vocab, seed=3), 1),
    ]
    chosen = choose(logits, row_list, vocab)
    assert check_choices(logits, row_list, vocab, chosen) == 0
    assert chosen[0] == 0
    assert chosen[1] in (0, 1)
    assert 2000 <= chosen[3] < 2003


def test_values_that_only_division_makes_equal_are_ties() -> None:
    """Two logits of one quotient, the larger at the higher id, in one tile and in two: top-k keeps the lower id."""
    temperature = np.float32(3.0)
    candidates = np.float32(1.5) + np.arange(8, dtype=np.float32) * np.float32(2.0**-23)
    quotients = candidates / temperature
    first = int(np.flatnonzero(quotients[1:] == quotients[:-1])[0])
    lower, larger = candidates[first : first + 2]
    assert lower < larger
    logits = np.zeros((4, 600), np.float32)
    logits[:, 20] = lower
    logits[:2, 50] = logits[2:, 550] = larger
    row_list = [(SamplingParams(temperature=float(temperature), top_k=k, seed=1), 5) for k in (1, 2, 1, 2)]
    chosen = choose(logits, row_list, 600)
    assert chosen[0] == chosen[2] == 20
    assert check_choices(logits, row_list, 600, chosen) == 0


def test_the_border_lies_far_below_the_best() -> None:
    """Beyond the reach of the search's distances, and where top-p wants all but the last id's mass."""
    logits = np.full((3, 700), -500.0, np.float32)
    logits[:, 650] = 10.0
    logits[:, 3] = -300.0
    logits[1, :] = np.log(np.arange(700, 0, -1)) * 20
    row_list = [
        (SamplingParams(temperature=1.0, top_k=5, seed=3), 9),
        (SamplingParams(temperature=9.0, top_p=0.9999999, seed=3), 9),
        (SamplingParams(temperature=80.0, top_k=3, top_p=0.95, min_p=0.001, seed=4), 9),
    ]
    assert check_choices(logits, row_list, 700, choose(logits, row_list, 700)) == 0


def test_an_id_far_below_the_best_wins_by_its_noise() -> None:
    logits = np.zeros((4, VOCAB), np.float32)
    logits[:, 1000] = 6.0
    row_list = [(SamplingParams(temperature=1.0, seed=seed), 2) for seed in range(4)]
    chosen = choose(logits, row_list, VOCAB)
    assert check_choices(logits, row_list, VOCAB, chosen) == 0
    assert chosen.count(1000) < 4


def test_rows_without_a_choice_are_marked() -> None:
    logits = torch.zeros(8, 300)
    logits[0:2] = torch.nan
    logits[2:4, 270] = torch.nan
    logits[4:6] = -torch.inf
    logits[6:, 299] = torch.nan  # padding
    row_list = [(SamplingParams(temperature=t, top_p=p, seed=3), 1) for t, p in [(0.0, 1.0), (1.0, 0.9)] * 4]
    chosen = choose(logits, row_list, 299)
    assert chosen[:6] == [-1] * 6
    assert min(chosen[6:]) >= 0


def test_banned_ids_are_never_chosen() -> None:
    logits = np.full((5, 300), -np.inf, np.float32)
    logits[:, [3, 288]] = 0.0
    row_list = [(SamplingParams(temperature=2.0, top_k=10 if s % 4 == 0 else 0, seed=s), 1) for s in range(5)]
    assert set(choose(logits, row_list, 300)) == {3, 288}


def test_a_row_does_not_depend_on_its_batch_or_its_place_in_memory() -> None:
    logits = torch.from_numpy(random_logits(9, 6, 300, 2.0, None))
    row_list = [
        (SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=seed), 100 + seed)
        for seed, (t, k, p, m) in enumerate(
            [
                (0.0, 0, 1.0, 0.0),
                (1.0, 0, 1.0, 0.0),
                (0.7, 20, 0.8, 0.0),
                (1.2, 0, 0.9, 0.0),
                (1.0, 0, 1.0, 0.1),
                (1.0, 9, 1.0, 0.0),
            ]
        )
    ]
    together = choose(logits, row_list, 290)
    assert together == [choose(logits[i : i + 1], row_list[i : i + 1], 290)[0] for i in range(6)]
    wide = torch.full((3, 700), 9.0)
    wide[:, 37:337] = logits[:3]
    assert together[:3] == choose(wide[:, 37:337], row_list[:3], 290)
    assert together[1:3] == choose(logits[1:3].T.contiguous().T, row_list[1:3], 290)
    assert choose(logits[:0], [], 290) == []


def test_choosing_tells_compilers_the_truth() -> None:
    logits = torch.zeros(3, 40, device=SAMPLING_DEVICE)
    row_arguments = arguments([(SamplingParams(temperature=1.0, seed=s), s) for s in range(3)])
    torch.library.opcheck(choose_tokens_op, (logits, *row_arguments, 37), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("first_id", "num_ids"), [(0, 5), (66, 1500), (4096, 1024)])
def test_noise_of_a_part_of_the_vocabulary(first_id: int, num_ids: int) -> None:
    seeds, positions = [3, 2**64 - 5], [7, 2**20]
    rows = SamplingRows.of(
        [(SamplingParams(temperature=1.0, seed=seed), at) for seed, at in zip(seeds, positions, strict=True)],
        SAMPLING_DEVICE,
    )
    found = noise_of_ids(rows.seeds, rows.positions, first_id, num_ids).cpu().numpy()
    ids = np.arange(first_id, first_id + num_ids)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        np.testing.assert_allclose(found[row], noise.gumbel(seed, position, ids), rtol=2e-6, atol=2e-6)
