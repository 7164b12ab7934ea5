"""The noise: known answers of Philox, one definition in three forms, and what its key depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dflash_core.errors import InvalidRequest
from dflash_core.sampling import noise
from dflash_core.sampling.kernels_math import CHUNK, NOISE_BOUNDS, gumbel_chunk, gumbel_of, gumbel_row, sum_of_exp

SEEDS = [0, 1, 2**31, 2**32, 2**63, 2**64 - 1, 0x0123456789ABCDEF]
POSITIONS = [0, 1, 7, 4096, 2**31 - 1]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers_of_random123(counter: str, key: str, words: str) -> None:
    def parse(text: str) -> np.ndarray:
        return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)

    assert noise.philox_4x32_10(parse(counter), parse(key)).tolist() == parse(words).tolist()


def test_numba_noise_is_the_reference_up_to_the_last_operations() -> None:
    for seed, position in [(seed, position) for seed in SEEDS for position in POSITIONS]:
        reference = noise.gumbel(seed, position, np.arange(1001))
        assert reference.dtype == np.float32
        # The inner logarithm's last bit moves the outer one by about 1e-7 absolutely.
        np.testing.assert_allclose(gumbel_row(np.uint64(seed), position, 1001), reference, rtol=4e-7, atol=4e-7)


def test_noise_of_some_ids_is_that_of_all() -> None:
    ids = np.array([[150_000, 3], [7, 4095]])
    assert np.array_equal(noise.gumbel(5, 9, ids), noise.gumbel(5, 9, np.arange(150_001))[ids])


def test_every_part_of_the_key_counts() -> None:
    base = noise.uniform(3, 10, np.arange(64))
    for other in (
        noise.uniform(4, 10, np.arange(64)),
        noise.uniform(3 + 2**32, 10, np.arange(64)),
        noise.uniform(3, 11, np.arange(64)),
        noise.uniform(3, 10, np.arange(64, 128)),
    ):
        assert not np.any(base == other)


def test_uniforms_are_inside_the_open_interval_and_exact() -> None:
    least = (np.float32(0) + np.float32(0.5)) * np.float32(2.0**-23)
    most = (np.float32(2**23 - 1) + np.float32(0.5)) * np.float32(2.0**-23)
    assert (float(least), float(most)) == (2.0**-24, 1 - 2.0**-24)
    assert np.isfinite(-np.log(-np.log(np.array([least, most])))).all()


def test_noise_is_gumbel() -> None:
    """Kolmogorov-Smirnov against the distribution function exp(−exp(−x))."""
    values = np.sort(np.concatenate([noise.gumbel(seed, 1, np.arange(1000)) for seed in range(50)]).astype(np.float64))
    steps = np.arange(len(values) + 1) / len(values)
    cdf = np.exp(-np.exp(-values))
    assert max(np.abs(cdf - steps[:-1]).max(), np.abs(cdf - steps[1:]).max()) < 2.0 / np.sqrt(len(values))


def test_bounds_of_the_fast_path_hold_at_the_end_of_every_bin() -> None:
    tops = np.concatenate([(np.arange(255) << 15) + 0x7FFF, (255 << 15) + (np.arange(256) << 7) + 0x7F])
    uniforms = (tops.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    bounds = np.concatenate([NOISE_BOUNDS[:255], NOISE_BOUNDS[256:]])
    assert np.all(-np.log(-np.log(uniforms)) < bounds)
    assert np.all(torch.from_numpy(uniforms).log().neg().log().neg().numpy() < bounds)
    assert CHUNK % 4 == 0


def test_output_seed_is_pinned() -> None:
    """A change of these numbers changes every seeded output: it would break clients that count on their seeds."""
    assert noise.output_seed(0, 0, 0) == 4813556992067617751
    assert noise.output_seed(42, 1, 2) == 3246084757125045420
    seeds = {noise.output_seed(s, p, c) for s in range(8) for p in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert noise.output_seed(-1, 0, 0) == noise.output_seed(2**64 - 1, 0, 0)
    with pytest.raises(InvalidRequest, match=str(2**64)):
        noise.output_seed(2**64, 0, 0)


def test_vector_noise_of_the_ranking_is_that_of_the_choice() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, size=(200, CHUNK), dtype=np.uint32)
    words[0, :4] = [0, 511, 2**32 - 1, 2**31]
    noises, scratch = np.empty(CHUNK, np.float32), (np.empty(CHUNK, np.int32), np.empty(CHUNK, np.float32))
    for chunk in words:
        gumbel_chunk(chunk, noises, *scratch)
        np.testing.assert_allclose(noises, [gumbel_of(word) for word in chunk], rtol=4e-7, atol=4e-7)


def test_vector_sum_of_exponentials() -> None:
    values = -np.random.default_rng(0).exponential(8, size=5 * CHUNK).astype(np.float32)
    values[:4] = [0.0, -0.5, -np.inf, -1e30]
    exact = np.exp(values.astype(np.float64)).sum()
    assert abs(sum_of_exp(values, np.float32(0)) / exact - 1) < 3e-7
