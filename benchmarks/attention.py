"""Tree attention of one layer: our function, dense SDPA, FlexAttention, and the time to copy its keys and values.

`python -m benchmarks.attention --json found.json --plot found.png`; small sizes where there is no GPU.
Dense SDPA and FlexAttention get contiguous keys and values of equal lengths, made beforehand: in their favour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import copy_bytes_per_second, median_ms
from cluster.bench.machine import describe_machine
from dflash_core.attention import RaggedBatch, RowGroup, ragged_attention
from dflash_core.attention.split_kv.work_list import HeadShape
from dflash_core.trees.structure import end_rows

ARMS = ("ours", "sdpa", "flex", "copy")
KV_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Size:
    batch: int
    context: int  # tokens in pages, of each sequence
    nodes: int  # rows of each tree, with the root


@dataclass(frozen=True, slots=True)
class Finding:
    """`ms` by arm, None where the arm ran out of memory; `error`: ours against SDPA, relative Euclidean norm."""

    size: Size
    ms: dict[str, float | None]
    error: float | None


class Inputs:
    """One size's tensors: paged for ours, dense for the others."""

    def __init__(self, size: Size, heads: HeadShape, device: torch.device) -> None:
        rng = np.random.default_rng(0)
        num_rows, blocks = size.batch * size.nodes, -(-size.context // KV_BLOCK_SIZE)
        tables = rng.permutation(size.batch * blocks).astype(np.int32).reshape(size.batch, blocks)
        depths = _random_depths(rng, size.nodes)
        group = [RowGroup.tree(depths, end_rows(depths), size.context, table) for table in tables]
        self.size, self.heads, self.device = size, heads, device
        self.batch = RaggedBatch.pack(group, KV_BLOCK_SIZE, device)
        self.scale = heads.head_dim**-0.5
        options: dict[str, Any] = {"dtype": heads.dtype, "device": device}
        kv = (heads.num_kv_heads, heads.head_dim)
        self.query = torch.randn(num_rows, heads.num_heads, heads.head_dim, **options)
        self.key, self.value = (torch.randn(num_rows, *kv, **options) for _ in range(2))
        self.pages = torch.randn(2, size.batch * blocks, KV_BLOCK_SIZE, *kv, **options)
        first, end = (torch.from_numpy(array).to(device) for array in (np.arange(size.nodes), end_rows(depths)))
        rows = torch.arange(size.nodes, device=device)
        self.tree_mask = (first[None] <= rows[:, None]) & (rows[:, None] < end[None])  # [nodes, nodes]
        self.tables = torch.from_numpy(tables.astype(np.int64)).to(device)

    def ours(self) -> Tensor:
        return ragged_attention(self.query, self.key, self.value, self.pages, self.batch, scale=self.scale)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[batch, heads, nodes, dim]`, keys and values `[batch, kv heads, context + nodes, dim]`."""
        size = self.size
        both = []
        for pages, own in zip(self.pages, (self.key, self.value), strict=True):
            prefix = pages[self.tables].flatten(1, 2)[:, : size.context]
            both.append(torch.cat([prefix, own.view(size.batch, size.nodes, *own.shape[1:])], 1).transpose(1, 2))
        query = self.query.view(size.batch, size.nodes, *self.query.shape[1:]).transpose(1, 2)
        return query.contiguous(), both[0].contiguous(), both[1].contiguous()

    def sdpa(self) -> Callable[[], Tensor]:
        query, key, value = self.dense()
        prefix = self.tree_mask.new_ones(self.size.nodes, self.size.context)
        mask = torch.cat([prefix, self.tree_mask], 1)[None, None]
        return lambda: scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=self.scale, enable_gqa=self.heads.num_heads != key.shape[1]
        )

    def flex(self) -> Callable[[], Tensor]:
        query, key, value = self.dense()
        context, tree_mask = self.size.context, self.tree_mask

        def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return (column < context) | tree_mask[row, (column - context).clamp(min=0)]

        blocks = create_block_mask(visible, None, None, self.size.nodes, context + self.size.nodes, device=self.device)
        # Without a GPU it runs uncompiled: compiling wants a C++ compiler, and only says that the arm works.
        run = torch.compile(flex_attention) if self.device.type == "cuda" else flex_attention
        return lambda: run(query, key, value, block_mask=blocks, scale=self.scale, enable_gqa=True)


def _random_depths(rng: np.random.Generator, num_nodes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """A tree in preorder: each node one deeper than the last, or back up to any depth above 0."""
    depths = np.zeros(num_nodes, np.int32)
    for node in range(1, num_nodes):
        deepest = depths[node - 1] + 1
        depths[node] = deepest if rng.random() < 0.6 else rng.integers(1, deepest + 1)
    return depths


def measure(size: Size, heads: HeadShape, device: torch.device, copy_rate: float) -> Finding:
    """All arms on the same inputs, one after another."""
    ms: dict[str, float | None] = {}
    outputs: dict[str, Tensor] = {}
    inputs = Inputs(size, heads, device)
    for arm in ("ours", "sdpa", "flex"):
        try:
            run = inputs.ours if arm == "ours" else getattr(inputs, arm)()
            outputs[arm] = run()
            ms[arm] = median_ms(run, device)
        except torch.OutOfMemoryError:
            ms[arm] = None
    kv_bytes = 2 * size.batch * (size.context + size.nodes) * heads.num_kv_heads * heads.head_dim * heads.dtype.itemsize
    ms["copy"] = kv_bytes / copy_rate * 1e3
    error = None
    if "sdpa" in outputs:
        expected = outputs["sdpa"].transpose(1, 2).flatten(0, 1).float()
        error = float((outputs["ours"].float() - expected).norm() / expected.norm())
    return Finding(size, ms, error)


def sizes(device: torch.device) -> Iterator[Size]:
    if device.type == "cuda":
        yield from (
            Size(*size) for size in product((1, 8, 32), (1 << 10, 8 << 10, 32 << 10, 128 << 10), (1, 16, 64, 256))
        )
    else:
        yield from (Size(*size) for size in product((1, 2), (64, 256), (1, 16)))


def table(findings: list[Finding]) -> Table:
    shown = Table(title="Milliseconds of one layer's attention")
    for name in ("batch", "context", "nodes", *ARMS, "× sdpa", "of copy rate", "error"):
        shown.add_column(name, justify="right")
    for found in findings:
        ours, sdpa, copy = found.ms["ours"], found.ms["sdpa"], found.ms["copy"]
        shown.add_row(
            *map(str, asdict(found.size).values()),
            *("no memory" if found.ms[arm] is None else f"{found.ms[arm]:.3f}" for arm in ARMS),
            f"{sdpa / ours:.2f}" if ours and sdpa else "",
            f"{copy / ours:.0%}" if ours and copy else "",
            "" if found.error is None else f"{found.error:.1e}",
        )
    return shown


def plot(findings: list[Finding], path: Path) -> None:
    import matplotlib.pyplot as plt

    batches = sorted({found.size.batch for found in findings})
    figure, axes = plt.subplots(1, len(batches), figsize=(6 * len(batches), 4), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        mine = [found for found in findings if found.size.batch == batch]
        labels = [f"{found.size.context}/{found.size.nodes}" for found in mine]
        for arm in ARMS:
            axis.plot(labels, [found.ms[arm] for found in mine], marker="o", markersize=3, label=arm)
        axis.set(title=f"batch {batch}", yscale="log", xlabel="context / nodes", ylabel="ms")
        axis.tick_params(axis="x", rotation=90)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all findings here.")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Write a picture (PNG) here.")] = None,
) -> None:
    """Measures tree attention at the sizes of a large GPU, or at small ones where there is none."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    torch.set_num_threads(1)  # the smallest sizes would else measure how threads are woken
    heads = HeadShape(32, 8, 128, torch.bfloat16) if on_gpu else HeadShape(6, 2, 32, torch.float32)
    rate = copy_bytes_per_second(device)
    findings = [measure(size, heads, device, rate) for size in track(list(sizes(device)), description="attention")]
    Console(width=None if on_gpu else 120).print(table(findings))
    print(f"memory is copied at {rate / 1e9:.0f} GB/s, read and written bytes together")
    if json_path is not None:
        report = {
            "machine": describe_machine(),
            "settings": {**asdict(heads), "dtype": str(heads.dtype), "kv_block_size": KV_BLOCK_SIZE},
            "copy_bytes_per_second": rate,
            "results": [asdict(found) for found in findings],
        }
        json_path.write_text(json.dumps(report, indent=1) + "\n")
    if plot_path is not None:
        plot(findings, plot_path)


if __name__ == "__main__":
    typer.run(main)
