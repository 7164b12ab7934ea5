"""How many KV blocks a target gets."""

from __future__ import annotations

import torch

from dflash_core.cache.pools import KvShape
from dflash_core.errors import InvalidSettings
from dflash_core.runners.settings import TargetSettings

DEFAULT_CPU_BYTES = 256 << 20
FREE_MEMORY_SHARE = 0.8  # on cuda, of what is free once the weights are there; the rest is for activations


def num_kv_blocks(
    settings: TargetSettings, shape: KvShape, hidden_size: int, max_model_len: int, device: torch.device
) -> int:
    """`num_blocks` if it is set, else as many as the memory holds, features included (`hidden_size` 0: none).

    Raises `InvalidSettings` where not even one sequence of `max_model_len` tokens fits.
    """
    block_bytes = (shape.bytes_per_token + hidden_size * shape.dtype.itemsize) * settings.kv_block_size
    needed = -(-max_model_len // settings.kv_block_size)
    if settings.num_blocks is not None:
        if settings.num_blocks < needed:
            raise InvalidSettings(
                f"num_blocks {settings.num_blocks} holds {settings.num_blocks * settings.kv_block_size} tokens, fewer "
                f"than one sequence of max_model_len {max_model_len}: set num_blocks to at least {needed}, or lower "
                "max_model_len"
            )
        return settings.num_blocks
    available = settings.kv_cache_bytes or _default_bytes(device)
    if available < needed * block_bytes:
        raise InvalidSettings(
            f"{available} bytes of KV cache hold {available // block_bytes * settings.kv_block_size} tokens, fewer "
            f"than one sequence of max_model_len {max_model_len}: set kv_cache_bytes to at least "
            f"{needed * block_bytes}, or lower max_model_len"
        )
    return available // block_bytes


def _default_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return DEFAULT_CPU_BYTES
    return int(torch.cuda.mem_get_info(device)[0] * FREE_MEMORY_SHARE)
