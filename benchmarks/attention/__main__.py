"""`python -m benchmarks.attention --json found.json --plot found.png`; small sizes where there is no GPU.

What is timed is the attention of one layer alone: on a GPU as a CUDA graph, with a cold L2 cache. What the layers of a
round share, our work list, is timed by itself: as the host sees it made from new metadata, and its kernel alone. Dense
SDPA and FlexAttention get contiguous keys and values of equal lengths and their masks made beforehand, and SDPA its
queries grouped: in their favour.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from enum import StrEnum
from itertools import product
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from benchmarks.attention.inputs import ARMS, FLEX, KV_BLOCK_SIZE, Size
from benchmarks.attention.measure import measure, not_measured
from benchmarks.attention.report import plot, table
from benchmarks.command import Deadline, JsonPath, PlotPath, Record, TimeLimit, console, picked, run
from benchmarks.limits import Rates
from dflash_core.attention.split_kv.work_list import HeadShape

LARGE = {"batch": (1, 8, 32), "context": (1 << 10, 8 << 10, 32 << 10, 128 << 10), "nodes": (1, 16, 64, 256)}
SMALL = {"batch": (1, 2), "context": (64, 256), "nodes": (1, 16)}

Batches = Annotated[list[int] | None, typer.Option("--batch", min=1, help="Sequences; may be repeated.")]
Contexts = Annotated[list[int] | None, typer.Option("--context", min=1, help="Tokens in pages; may be repeated.")]
Nodes = Annotated[list[int] | None, typer.Option("--nodes", min=1, help="Rows of a tree; may be repeated.")]
Arm = StrEnum("Arm", {name.upper(): name for name in ARMS})  # type: ignore[misc]
Arms = Annotated[list[Arm] | None, typer.Option("--arm", help="What is compared; may be repeated; default: all.")]


def main(
    batch: Batches = None,
    context: Contexts = None,
    nodes: Nodes = None,
    arm: Arms = None,
    time_limit_s: TimeLimit = None,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """Tree attention of one layer: ours, dense SDPA, FlexAttention, and the time that its bytes and operations take.

    By default batches 1, 8, 32 with contexts 1K to 128K and 1 to 256 nodes on a GPU, small sizes where there is none.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    torch.set_num_threads(1)  # the smallest sizes would else measure how threads are woken
    heads = HeadShape(32, 8, 128, torch.bfloat16) if on_gpu else HeadShape(6, 2, 32, torch.float32)
    default = LARGE if on_gpu else SMALL
    grid = product(
        picked(batch, default["batch"]), picked(context, default["context"]), picked(nodes, default["nodes"])
    )
    arms = tuple(dict.fromkeys(arm or ARMS))
    # Said of the sizes of a machine without a GPU, where flex is there to be compared, not to be fast.
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    settings = {**asdict(heads), "dtype": str(heads.dtype), "kv_block_size": KV_BLOCK_SIZE}
    record = Record(json_path, plot_path, settings)
    deadline = Deadline(time_limit_s)
    rates = Rates.measure(device, heads.dtype)
    settings["rates"] = asdict(rates)
    findings = [not_measured(Size(*one), "no time", arms) for one in grid]
    # FlexAttention is compiled anew for each size: it comes when all sizes have the others.
    passes = [part for part in ([arm for arm in arms if arm != FLEX], [arm for arm in arms if arm == FLEX]) if part]
    with Progress() as progress:
        task = progress.add_task("attention", total=len(passes) * len(findings))
        for part in passes:
            for index, found in enumerate(findings):
                if not deadline.is_over:
                    findings[index] = found.with_more(measure(found.size, heads, device, rates, part))
                    record.put(one.as_dict() for one in findings)
                progress.advance(task)
    record.put(one.as_dict() for one in findings)
    console().print(table(findings))
    print(rates)
    if plot_path is not None:
        plot(findings, plot_path)


if __name__ == "__main__":
    run(main)
