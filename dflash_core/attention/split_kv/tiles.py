"""Tile sizes of the attention kernel: a static table, so that no run pays for tuning and equal inputs run alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CHUNK_UNIT = 64
"""Keys; splits of a prefix begin at multiples of it, and every `Tiles.keys` divides it."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """One program's tile of scores, `[rows, keys]`, and how the compiler is to build it.

    A row is one query head of one in-flight row: `group_size` of them share each in-flight row's KV head.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


def tile_rows(max_rows: int, group_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Rows of the tile for sequences of at most `max_rows` in-flight rows: as large as they fill, for keys are read
    once per tile."""
    packed = max_rows * group_size
    largest = _largest_tile(head_dim, dtype)
    return next((rows for rows in (16, 32, 64, 128) if packed <= rows or rows == largest), largest)


def tiles_of(rows: int, head_dim: int, dtype: torch.dtype) -> Tiles:
    """The table; `rows` as `tile_rows` gives them. Compiled for sm_90, none of it spills more than a few registers."""
    if dtype == torch.float32:
        return _tiles_fp32(rows, head_dim)
    if head_dim > 128:
        return Tiles(rows, 32, 8 if rows > 32 else 4, 2, 1)
    if rows == 128:
        return Tiles(rows, 64, 8, 3, 1)
    return Tiles(rows, 64, 4, 3, 2)


def _tiles_fp32(rows: int, head_dim: int) -> Tiles:
    # Exact fp32 products run on the scalar units and keep their operands in registers: small tiles, many warps.
    return Tiles(rows, 32 if head_dim <= 128 else 16, 8 if rows > 16 or head_dim > 64 else 4, 2, 1)


def _largest_tile(head_dim: int, dtype: torch.dtype) -> int:
    if dtype == torch.float32:
        return 32
    return 64 if head_dim > 128 else 128
