"""Every Triton kernel compiles for sm_90 without a GPU, into its shared memory and (nearly) without spilling.

The interpreter notices no error of layout, tile size or shared memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton

from dflash_core.attention.split_kv.kernels.combine import combine_kernel
from dflash_core.attention.split_kv.kernels.work_list import work_list_kernel
from dflash_core.attention.split_kv.tiles import CHUNK_UNIT, tiles_of
from dflash_core.cache.kernels.commit import commit_kernel
from dflash_core.cache.kernels.store import scatter_kernel, store_kernel
from dflash_core.sampling.device.borders import KEYS_HELD, TILE, TILES_TOGETHER
from dflash_core.sampling.device.kernels.borders import border_kernel
from dflash_core.sampling.device.kernels.choose import choose_kernel
from dflash_core.sampling.device.kernels.noise_rows import noise_kernel
from dflash_core.sampling.device.kernels.rank import rank_rows_kernel, rank_tiles_kernel
from dflash_core.sampling.device.kernels.tiles import tile_best_kernel
from dflash_core.sampling.device.noise import TILE as NOISE_TILE
from dflash_core.sampling.device.rank import MOST_CANDIDATES, PART, tile_size
from dflash_core.trees.kernels.walk import walk_kernel
from tests.core.compiled_kernels import POINTERS, compile_attention, compile_kernel

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHARED_BYTES = 227 * 1024  # of one program on sm_90
PROCESSOR_SHARED_BYTES = 228 * 1024  # of all programs of a multiprocessor, each with 1 KiB of the system's
PROCESSOR_REGISTERS = 64 * 1024
FEW_BYTES = 64  # that ptxas spills by its own choice, for room for another program


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "rows", "is_special"),
    [
        (BF16, 128, 16, False),
        (BF16, 128, 64, False),
        (BF16, 128, 128, False),
        (BF16, 128, 128, True),
        (BF16, 64, 32, True),
        (BF16, 96, 64, True),
        (BF16, 256, 16, True),
        (BF16, 256, 64, False),
        (FP16, 64, 128, False),
        (FP32, 32, 32, True),
        (FP32, 256, 32, False),
    ],
)
def test_attention(dtype: torch.dtype, head_dim: int, rows: int, is_special: bool, tmp_path: Path) -> None:
    tiles = tiles_of(rows, head_dim, dtype)
    built = compile_attention(dtype, head_dim, tiles, tmp_path, is_special=is_special)
    assert built.shared_bytes <= SHARED_BYTES
    assert built.spilled_bytes <= FEW_BYTES
    if not is_special:
        assert tiles.programs_per_sm * (built.shared_bytes + 1024) <= PROCESSOR_SHARED_BYTES
        assert tiles.programs_per_sm * built.registers * 32 * tiles.num_warps <= PROCESSOR_REGISTERS
    if tiles.num_stages > 2:
        # The first loop, over whole tiles of the prefix: the next tile's keys and values arrive during the products.
        assert built.copies_in_flight[0] == 2 * (tiles.num_stages - 2)
    uses_matrix_units = "wgmma.mma_async" in built.ptx or "mma.sync" in built.ptx
    assert uses_matrix_units == (dtype != FP32), "fp32 must be exact, the others fast"


def test_work_list(tmp_path: Path) -> None:
    types = dict.fromkeys(("cu_rows", "prefix_lens", "items", "row_splits", "header"), "*i32")
    constants = {
        "NUM_KV_HEADS": 8,
        "GROUP_SIZE": 4,
        "TILE_ROWS": 64,
        "CHUNK_UNIT": CHUNK_UNIT,
        "PADDED_SEQUENCES": 1024,
        "SEQUENCES": 16,
        "CANDIDATES": 128,
        "ITEMS": 128,
    }
    assert compile_kernel(work_list_kernel, types, constants, tmp_path).spilled_bytes == 0


def test_combine(tmp_path: Path) -> None:
    types = {"partial_outputs": "*fp32", "partial_lses": "*fp32", "row_splits": "*i32", "output": "*bf16"}
    constants = {"HEAD_DIM": 128, "PADDED_DIM": 128, "HEADS": 8}
    assert compile_kernel(combine_kernel, types, constants, tmp_path).spilled_bytes == 0


def test_commit(tmp_path: Path) -> None:
    types = {"staging": "*i16", "pages": "*i16", "tree_rows": "*i64", "slots": "*i64"}
    constants = {"TOKEN_WORDS": 1024, "WORDS": 1024}
    assert compile_kernel(commit_kernel, types, constants, tmp_path).spilled_bytes == 0


def test_store(tmp_path: Path) -> None:
    types = {
        **dict.fromkeys(("key", "value", "pages", "staging"), "*i16"),
        **dict.fromkeys(("page_slots", "staged_rows"), "*i32"),
    }
    constants = {"HEAD_DIM": 128, "PADDED_DIM": 128, "PADDED_HEADS": 8}
    assert compile_kernel(store_kernel, types, constants, tmp_path).spilled_bytes == 0


def test_scatter(tmp_path: Path) -> None:
    types = {"rows": "*i16", "slots": "*i32", "destination": "*i16"}
    assert compile_kernel(scatter_kernel, types, {"WIDTH": 4096, "WORDS": 1024}, tmp_path).spilled_bytes == 0


@pytest.mark.parametrize(("rows", "num_warps"), [(32, 4), (1024, 4), (2048, 16)])
def test_walk(rows: int, num_warps: int, tmp_path: Path) -> None:
    names = [name for name in walk_kernel.arg_names if name.islower() and name not in ("choices", "num_rows")]
    types = {**dict.fromkeys(names, "*i32"), "choices": "*i64"}
    built = compile_kernel(walk_kernel, types, {"TREE_ROWS": rows, "OTHER_ROWS": 512}, tmp_path, num_warps)
    assert built.shared_bytes <= SHARED_BYTES
    assert built.spilled_bytes == 0


SAMPLING_TYPES = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "tile_sums", "part_best", "part_sums", "scores"), "*fp32"),
    **dict.fromkeys(("noise_scale", "truncation_penalty"), "*fp32"),
    "sharpness": "fp32",
    **dict.fromkeys(("top_k", "listed_tiles", "ids"), "*i32"),
    **dict.fromkeys(("seeds", "positions", "tile_best", "listed_keys", "state", "tokens"), "*i64"),
}


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_choosing_tokens(dtype: torch.dtype, tmp_path: Path) -> None:
    """As launched for 151,936 ids."""
    types = {**SAMPLING_TYPES, "logits": POINTERS[dtype]}
    sizes = {"TILE": TILE, "TILES_TOGETHER": TILES_TOGETHER}
    best = compile_kernel(
        tile_best_kernel, types, {**sizes, "TRUNCATED_ONLY": False}, tmp_path, num_warps=8, fp_fusion=False
    )
    assert best.spilled_bytes == 0
    assert "ld.global.v4.b32" in best.ptx, "logits are read one by one"
    border = compile_kernel(
        border_kernel,
        types,
        {**sizes, "TILES": 1024, "KEYS_HELD": KEYS_HELD},
        tmp_path,
        num_warps=16,
        fp_fusion=False,
    )
    assert border.spilled_bytes <= FEW_BYTES
    assert border.shared_bytes <= SHARED_BYTES
    assert compile_kernel(choose_kernel, types, sizes, tmp_path, num_warps=2, fp_fusion=False).spilled_bytes == 0


def test_noise_of_ids(tmp_path: Path) -> None:
    types = {"seeds": "*i64", "positions": "*i64", "noise": "*fp32"}
    compiled = compile_kernel(noise_kernel, types, {"TILE": NOISE_TILE}, tmp_path, fp_fusion=False)
    assert compiled.spilled_bytes == 0


@pytest.mark.parametrize("num_candidates", [64, MOST_CANDIDATES])
def test_ranking_candidates(num_candidates: int, tmp_path: Path) -> None:
    """As launched for 151,936 ids."""
    types = {**SAMPLING_TYPES, "logits": POINTERS[BF16]}
    tile = tile_size(num_candidates)
    sizes = {"TILE": tile, "TILES_TOGETHER": PART // tile}
    scored = compile_kernel(rank_tiles_kernel, types, sizes, tmp_path, num_warps=8, fp_fusion=False)
    assert scored.spilled_bytes == 0
    ranked = compile_kernel(
        rank_rows_kernel,
        types,
        {
            "TILE": tile,
            "TILES": triton.next_power_of_2(triton.cdiv(151_936, tile)),
            "PARTS": triton.next_power_of_2(triton.cdiv(151_936, PART)),
            "NUM_CANDIDATES": num_candidates,
            "CANDIDATES": num_candidates,
        },
        tmp_path,
        num_warps=16,
        fp_fusion=False,
    )
    assert ranked.spilled_bytes <= FEW_BYTES
    assert ranked.shared_bytes <= SHARED_BYTES
