"""`python -m benchmarks.prefill --json found.json --plot found.png`; a small model where there is no GPU.

The router of the cluster over in-process transports, a target and a drafter with random weights on one thread. Streams
decode with draft trees (nothing of which is accepted: a token a round); then a long prompt arrives, and is prefilled in
chunks of at most `prefill_chunk_tokens` a round, beside the streams' trees. Chunk sizes take turns.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from benchmarks.command import Deadline, JsonPath, PlotPath, Record, TimeLimit, console, picked, run
from benchmarks.device import free_memory
from benchmarks.prefill.measure import Finding, Load, Stage
from benchmarks.prefill.report import plot, table
from benchmarks.random_pair import MEDIUM, QWEN3_8B, SHAPES, PairShape
from dflash_core.errors import Unavailable

Model = StrEnum("Model", {name: name for name in SHAPES})  # type: ignore[misc]
Chunks = Annotated[
    list[int] | None,
    typer.Option("--chunk", min=1, help="prefill_chunk_tokens; may be repeated; the whole prompt is always added."),
]


def main(
    model: Annotated[Model | None, typer.Option(help="Whose sizes; default: qwen3-8b, or medium on a CPU.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=2, help="Default: 32768, or 4096 on a CPU.")] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="That decode; default: 8, or 4 on a CPU.")] = None,
    stream_tokens: Annotated[
        int | None, typer.Option(min=1, help="Their prompts; default 1024, or 64 on a CPU.")
    ] = None,
    tree_budget: Annotated[int, typer.Option(min=0, help="Nodes of a stream's tree, without the root.")] = 15,
    chunk: Chunks = None,
    repeats: Annotated[int, typer.Option(min=1, help="Long prompts under each chunk size.")] = 3,
    time_limit_s: TimeLimit = None,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """When a long prompt's first token comes, and how long decoding streams wait for theirs before and meanwhile.

    By default in chunks of 256 to 4096 tokens on a GPU, 64 to 1024 on a CPU, and as a whole.
    """
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    load = Load(
        num_streams=streams or (8 if on_gpu else 4),
        stream_tokens=stream_tokens or (1024 if on_gpu else 64),
        prompt_tokens=prompt_tokens or (32768 if on_gpu else 4096),
        tree_budget=tree_budget,
    )
    chunks = picked(chunk, (256, 512, 1024, 2048, 4096) if on_gpu else (64, 128, 256, 512, 1024))
    sizes = [size for size in sorted(chunks) if size < load.prompt_tokens]
    name = model or (QWEN3_8B.name if on_gpu else MEDIUM.name)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    settings = {"model": asdict(SHAPES[name]), "dtype": str(dtype), "repeats": repeats, **asdict(load)}
    record = Record(json_path, plot_path, settings)
    deadline = Deadline(time_limit_s)
    findings: list[Finding] = []
    # The whole prompt in a round wants a target of its own, made for rounds so large.
    for group in filter(None, (sizes, [load.prompt_tokens])):
        found = _measure(SHAPES[name], load, group, dtype, torch.device("cuda" if on_gpu else "cpu"), repeats, deadline)
        record.add(*(one.as_dict() for one in found))
        findings += found
    console().print(table(findings, load.prompt_tokens))
    if plot_path is not None:
        plot(findings, load.prompt_tokens, plot_path)


def _measure(
    shape: PairShape,
    load: Load,
    chunks: list[int],
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    deadline: Deadline,
) -> list[Finding]:
    if deadline.is_over:
        return [Finding(size, missing="no time") for size in chunks]
    free_memory(device)
    try:
        with Stage(shape, load, chunks, dtype, device) as stage:
            return asyncio.run(_passages(stage, chunks, repeats, deadline))
    except torch.OutOfMemoryError:
        return [Finding(size, missing="no memory") for size in chunks]
    except Unavailable as error:  # rounds failed again and again; the router has logged why
        return [Finding(size, missing=f"failed: {error.message}") for size in chunks]


async def _passages(stage: Stage, chunks: list[int], repeats: int, deadline: Deadline) -> list[Finding]:
    findings = [Finding(size) for size in chunks]
    with Progress(transient=True) as progress:
        task = progress.add_task("prompts", total=len(findings) * (repeats + 1))
        for repeat in range(-1, repeats):  # the first one is not counted: compilation, caches, page faults
            for found in findings:
                if repeat > 0 and deadline.is_over:
                    return findings
                passage = await stage.passage(found.chunk_tokens)
                if repeat >= 0:
                    found.passages.append(passage)
                progress.advance(task)
    return findings


if __name__ == "__main__":
    run(main)
