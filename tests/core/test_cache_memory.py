"""How many blocks a cache gets from what is free, and what is said of it. A GPU's memory is made up here; what
`mem_get_info` says is taken as it is."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from dflash_core.device_memory import check_weights_fit, free_bytes
from dflash_core.errors import InvalidSettings
from dflash_core.runners.cache_memory import CacheNeeds, size_cache, unique_bytes
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner
from tests.tiny import make_tiny_pair

GIB = 1 << 30
BLOCK_BYTES = 16 * (147456 + 8192)
NEEDS = CacheNeeds(
    owner="target some/8B",
    device=torch.device("cuda"),
    weight_bytes=15 * GIB,
    kv_bytes_per_token=147456,  # an 8B model's in bf16
    feature_bytes_per_token=8192,
    staging_bytes=512 * 147456,
    max_model_len=40960,
    min_tokens=40960,
    default_cpu_bytes=GIB,
)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What is free on every device; a test may change it."""
    free: list[int | None] = [64 * GIB]
    for module in ("dflash_core.runners.cache_memory", "dflash_core.device_memory"):
        monkeypatch.setattr(f"{module}.free_bytes", lambda device: free[0])
    return free


def test_the_fraction_holds_blocks_and_staging_buffer(free: list[int | None]) -> None:
    for fraction in (0.8, 0.5, 1.0):
        memory = size_cache(NEEDS, TargetSettings(memory_fraction=fraction))
        taken = memory.num_blocks * BLOCK_BYTES + NEEDS.staging_bytes
        assert fraction * 64 * GIB - BLOCK_BYTES < taken <= fraction * 64 * GIB
    assert TargetSettings().memory_fraction == 0.8
    assert DrafterSettings().memory_fraction == 0.5


def test_other_settings_override_the_fraction(free: list[int | None]) -> None:
    assert size_cache(NEEDS, TargetSettings(num_blocks=2600, memory_fraction=0.1)).num_blocks == 2600
    size = 3000 * BLOCK_BYTES + 5
    assert size_cache(NEEDS, TargetSettings(kv_cache_bytes=size, memory_fraction=0.1)).num_blocks == 3000
    free[0] = None
    on_cpu = replace(NEEDS, min_tokens=16, device=torch.device("cpu"))
    assert size_cache(on_cpu, TargetSettings()).num_blocks == GIB // BLOCK_BYTES


def test_what_went_where_is_logged(free: list[int | None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dflash_core")
    memory = size_cache(NEEDS, TargetSettings())
    memory.log()
    assert caplog.messages == memory.lines()
    assert memory.lines() == [
        "memory of target some/8B on cuda:",
        "  weights            15.0 GiB",
        "  free beside them   64.0 GiB",
        "  KV pages           48.4 GiB",
        "  features           2.69 GiB",
        "  staging buffer     72.0 MiB",
        "  22,044 blocks × 16 = 352,704 tokens, by memory_fraction 0.8: 8.6 sequences of 40,960 tokens",
    ]
    free[0] = None
    on_cpu = replace(NEEDS, feature_bytes_per_token=0, staging_bytes=0, min_tokens=16, device=torch.device("cpu"))
    assert [line.split("  ")[1] for line in size_cache(on_cpu, DrafterSettings()).lines()[1:-1]] == [
        "weights",
        "KV pages",
    ]


@pytest.mark.parametrize(
    ("settings", "free_gib", "message"),
    [
        (
            {},
            7,
            "by memory_fraction 0.8 of 7.00 GiB free on cuda beside 15.0 GiB of weights, the cache holds 38144 tokens, "
            "but one sequence of max_model_len 40960 needs 5.94 GiB: free memory on cuda or raise memory_fraction, or "
            "set max_model_len to 38144 or less",
        ),
        (
            {},
            0,
            "by memory_fraction 0.8 of 0 bytes free on cuda beside 15.0 GiB of weights, the cache holds 0 tokens, but "
            "one sequence of max_model_len 40960 needs 5.94 GiB: free memory on cuda or raise memory_fraction",
        ),
        (
            {"kv_cache_bytes": BLOCK_BYTES},
            None,
            f"by kv_cache_bytes {BLOCK_BYTES}, the cache holds 16 tokens, but one sequence of max_model_len 40960 "
            f"needs 5.94 GiB: set kv_cache_bytes to at least {2560 * BLOCK_BYTES}, or set max_model_len to 16 or less",
        ),
        (
            {"num_blocks": 2559},
            64,
            "by num_blocks 2559 of 64.0 GiB free on cuda beside 15.0 GiB of weights, the cache holds 40944 tokens, but "
            "one sequence of max_model_len 40960 needs 5.94 GiB: set num_blocks to at least 2560, or set max_model_len "
            "to 40944 or less",
        ),
        (
            {"kv_cache_bytes": 30000 * BLOCK_BYTES},
            64,
            f"by kv_cache_bytes {30000 * BLOCK_BYTES} of 64.0 GiB free on cuda beside 15.0 GiB of weights, the cache "
            "holds 480000 tokens, which take 69.7 GiB: lower kv_cache_bytes, or free memory on cuda",
        ),
    ],
    ids=["fraction", "nothing free", "bytes", "blocks", "more than is free"],
)
def test_too_little_is_one_line_with_the_numbers(
    free: list[int | None], settings: dict[str, int], free_gib: int | None, message: str
) -> None:
    free[0] = None if free_gib is None else free_gib * GIB
    with pytest.raises(InvalidSettings) as caught:
        size_cache(NEEDS, TargetSettings.model_validate(settings))
    assert caught.value.message == f"target some/8B: {message}"


def test_a_drafter_needs_one_block(free: list[int | None]) -> None:
    needs = replace(NEEDS, owner="drafter d", staging_bytes=0, min_tokens=16)
    free[0] = 2 * BLOCK_BYTES
    assert size_cache(needs, DrafterSettings()).num_blocks == 1
    free[0] -= 1
    with pytest.raises(InvalidSettings, match="holds 0 tokens, but its least, 16 tokens, needs 2.38 MiB: free memory"):
        size_cache(needs, DrafterSettings())


@pytest.mark.parametrize("kind", [TargetSettings, DrafterSettings])
def test_two_sizes_are_refused_by_name(kind: type[TargetSettings | DrafterSettings]) -> None:
    with pytest.raises(ValidationError, match="num_blocks 7 and kv_cache_bytes 99 both set the cache's size"):
        kind(num_blocks=7, kv_cache_bytes=99)
    for fraction in (0, 1.01):
        with pytest.raises(ValidationError, match="memory_fraction"):
            kind(memory_fraction=fraction)


def test_runners_count_their_weights_and_say_what_they_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With all tensors in bf16, so that none is replaced by a larger one for the CPU."""
    caplog.set_level(logging.INFO, "dflash_core.runners")
    pair = make_tiny_pair(tmp_path)
    target = TargetRunner.load(str(pair.target), str(pair.drafter), TargetSettings(dtype="bfloat16", device="cpu"))
    drafter = DrafterRunner.load(str(pair.drafter), str(pair.target), DrafterSettings(dtype="bfloat16", device="cpu"))
    assert caplog.messages == target.memory.lines() + drafter.memory.lines()
    assert caplog.messages[0] == f"memory of target {pair.target} on cpu:"
    needs = target.memory.needs
    assert (needs.kv_bytes_per_token, needs.feature_bytes_per_token, needs.staging_bytes) == (192, 64, 512 * 192)
    assert target.info.num_blocks * 16 == target.memory.num_tokens
    assert target.memory.num_tokens * (192 + 64) == 256 << 20
    of_drafter = sum(parameter.nbytes for parameter in drafter._model.parameters()) + 2 * 300 * 32 * 2
    assert 0 <= drafter.memory.needs.weight_bytes - of_drafter < 100  # what is more are the rotary frequencies
    assert drafter.memory.num_tokens * drafter.memory.needs.kv_bytes_per_token == 64 << 20


def test_what_occurs_twice_counts_once() -> None:
    embedding, head = torch.zeros(4, 2), torch.zeros(3)
    assert unique_bytes([embedding, head, embedding]) == 44


def test_weights_that_do_not_fit_are_refused_before_they_are_read(free: list[int | None]) -> None:
    check_weights_fit("target t", 64 * GIB, torch.device("cuda"))
    with pytest.raises(InvalidSettings, match=r"target t has 65\.0 GiB of weights, but 64\.0 GiB are free on cuda"):
        check_weights_fit("target t", 65 * GIB, torch.device("cuda"))
    free[0] = None
    check_weights_fit("target t", 65 * GIB, torch.device("cpu"))


def test_nobody_asks_a_cpu_what_is_free() -> None:
    assert free_bytes(torch.device("cpu")) is None


@pytest.mark.gpu
def test_a_gpu_says_what_is_free() -> None:
    device = torch.device("cuda")
    before = free_bytes(device)
    held = torch.empty(GIB, dtype=torch.uint8, device=device)
    during = free_bytes(device)
    del held  # torch keeps the memory, which counts as free all the same
    after = free_bytes(device)
    assert before is not None
    assert during is not None
    assert after is not None
    assert before - during >= GIB
    assert after - during >= GIB
