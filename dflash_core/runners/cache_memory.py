"""How many blocks a cache gets, and what start-up says of it: what went where and how many tokens fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dflash_core.device_memory import free_bytes
from dflash_core.errors import InvalidSettings
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.units import bytes_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheNeeds:
    """What a runner's cache is made of."""

    owner: str  # for messages: "target Qwen/Qwen3-8B"
    device: torch.device
    weight_bytes: int
    kv_bytes_per_token: int
    feature_bytes_per_token: int  # 0: no features are kept
    staging_bytes: int  # beside the blocks, whatever their number
    max_model_len: int  # tokens of the longest sequence
    min_tokens: int  # with fewer the runner is of no use
    default_cpu_bytes: int  # of blocks, where nothing is set and there is no GPU to ask

    @property
    def bytes_per_token(self) -> int:
        return self.kv_bytes_per_token + self.feature_bytes_per_token


@dataclass(frozen=True, slots=True)
class CacheMemory:
    """A cache of `num_blocks`, and why so many."""

    needs: CacheNeeds
    num_blocks: int
    kv_block_size: int
    free_bytes: int | None  # on the GPU, beside the weights; None: on a CPU
    reason: str

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.kv_block_size

    def log(self) -> None:
        for line in self.lines():
            logger.info("%s", line)

    def lines(self) -> list[str]:
        """A title and a line for each use of the memory."""
        needs, tokens = self.needs, self.num_tokens
        uses = [("weights", needs.weight_bytes), ("KV pages", tokens * needs.kv_bytes_per_token)]
        if needs.feature_bytes_per_token:
            uses.append(("features", tokens * needs.feature_bytes_per_token))
        if needs.staging_bytes:
            uses.append(("staging buffer", needs.staging_bytes))
        if self.free_bytes is not None:
            uses.insert(1, ("free beside them", self.free_bytes))
        return [
            f"memory of {needs.owner} on {needs.device}:",
            *(f"  {name:<16} {bytes_text(num_bytes):>10}" for name, num_bytes in uses),
            f"  {self.num_blocks:,} blocks × {self.kv_block_size} = {tokens:,} tokens, by {self.reason}: "
            f"{tokens / needs.max_model_len:.1f} sequences of {needs.max_model_len:,} tokens",
        ]


def size_cache(needs: CacheNeeds, settings: TargetSettings | DrafterSettings) -> CacheMemory:
    """Blocks by `num_blocks`, else by `kv_cache_bytes`, else by `memory_fraction` of what is free on the GPU beside the
    weights, from which the staging buffer goes first.

    Raises `InvalidSettings`, in one line with the numbers, where `min_tokens` do not fit or what is set is not free.
    """
    free = free_bytes(needs.device)
    block_bytes = needs.bytes_per_token * settings.kv_block_size
    least_blocks = -(-needs.min_tokens // settings.kv_block_size)
    remedy = f"set kv_cache_bytes to at least {least_blocks * block_bytes}"
    if settings.num_blocks is not None:
        num_blocks, reason = settings.num_blocks, f"num_blocks {settings.num_blocks}"
        remedy = f"set num_blocks to at least {least_blocks}"
    elif settings.kv_cache_bytes is not None:
        num_blocks, reason = settings.kv_cache_bytes // block_bytes, f"kv_cache_bytes {settings.kv_cache_bytes}"
    elif free is not None:
        available = int(free * settings.memory_fraction) - needs.staging_bytes
        num_blocks, reason = max(0, available) // block_bytes, f"memory_fraction {settings.memory_fraction:g}"
        remedy = f"free memory on {needs.device} or raise memory_fraction"
    else:
        num_blocks, reason = needs.default_cpu_bytes // block_bytes, "the default on a CPU"
    memory = CacheMemory(needs, num_blocks, settings.kv_block_size, free, reason)
    if num_blocks < least_blocks:
        raise InvalidSettings(f"{_holds(memory)}, but {_least(memory, least_blocks * block_bytes, remedy)}")
    taken = num_blocks * block_bytes + needs.staging_bytes
    if free is not None and taken > free:
        lower = f"lower {reason.split()[0]}, or free memory on {needs.device}"
        raise InvalidSettings(f"{_holds(memory)}, which take {bytes_text(taken)}: {lower}")
    return memory


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them; a tensor that occurs twice counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def _holds(memory: CacheMemory) -> str:
    """Whose cache, why it is so large, and what was free for it."""
    needs = memory.needs
    free = ""
    if memory.free_bytes is not None:
        free = f" of {bytes_text(memory.free_bytes)} free on {needs.device}"
        free += f" beside {bytes_text(needs.weight_bytes)} of weights"
    return f"{needs.owner}: by {memory.reason}{free}, the cache holds {memory.num_tokens} tokens"


def _least(memory: CacheMemory, num_bytes: int, remedy: str) -> str:
    """What must fit, and what to set."""
    needs = memory.needs
    if needs.min_tokens < needs.max_model_len:
        return f"its least, {needs.min_tokens} tokens, needs {bytes_text(num_bytes)}: {remedy}"
    least = f"one sequence of max_model_len {needs.max_model_len} needs {bytes_text(num_bytes)}: {remedy}"
    return f"{least}, or set max_model_len to {memory.num_tokens} or less" if memory.num_tokens > 1 else least
