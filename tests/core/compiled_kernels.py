"""The Triton kernels as the runners launch them, compiled for a GPU that need not be there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dflash_core.attention.split_kv.kernels.attention import attention_kernel
from dflash_core.attention.split_kv.tiles import Tiles

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Compiled:
    """What ptxas says about a kernel."""

    shared_bytes: int
    registers: int  # per thread
    spilled_bytes: int  # per thread, stores and loads
    ptx: str
    copies_in_flight: list[int]  # how many asynchronous copies each wait leaves running


def compile_kernel(
    kernel: triton.JITFunction,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    folder: Path,
    num_warps: int = 4,
    num_stages: int = 3,
    fp_fusion: bool = True,
) -> Compiled:
    """`types` of arguments that are not int32; pointers, strides and widths are taken to be multiples of 16."""
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        if signature[name].startswith("*") or name.endswith(("_stride", "_width")):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=dict(constants), attrs=attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": fp_fusion}
    built = triton.compile(source, target=TARGET, options=options)
    ptx = folder / "kernel.ptx"
    ptx.write_text(built.asm["ptx"], encoding="utf-8")
    command = [knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", str(ptx), "-o", str(folder / "kernel.cubin")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert spills is not None, report
    assert registers is not None, report
    spilled = int(spills[1]) + int(spills[2])
    waits = [int(num) for num in re.findall(r"async_wait[^{]*\{num = (\d+)", built.asm["ttgir"])]
    return Compiled(built.metadata.shared, int(registers[1]), spilled, built.asm["ptx"], waits)


def compile_attention(
    dtype: torch.dtype, head_dim: int, tiles: Tiles, folder: Path, *, is_special: bool = False
) -> Compiled:
    """The attention kernel; `is_special` ones have a window, a softcap, an odd group, and rows that see later rows."""
    tensors = dict.fromkeys(("query", "key", "value", "kv_pages", "output"), POINTERS[dtype])
    metadata = ("cu_rows", "prefix_lens", "block_tables", "positions", "first_rows", "end_rows")
    lists = ("items", "row_splits", "header")
    types = {
        **tensors,
        **dict.fromkeys(metadata + lists, "*i32"),
        **dict.fromkeys(("partial_outputs", "partial_lses"), "*fp32"),
        **dict.fromkeys(("scale", "softcap"), "fp32"),
    }
    constants = {
        "GROUP_SIZE": 7 if is_special else 4,
        "HEAD_DIM": head_dim,
        "PADDED_DIM": triton.next_power_of_2(head_dim),
        "KV_BLOCK_SIZE": 16,
        "TILE_ROWS": tiles.rows,
        "TILE_KEYS": tiles.keys,
        "IS_CAUSAL": not is_special,
        "HAS_WINDOW": is_special,
        "HAS_SOFTCAP": is_special,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "UPCAST": False,
    }
    return compile_kernel(attention_kernel, types, constants, folder, tiles.num_warps, tiles.num_stages)
