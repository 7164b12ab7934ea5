"""`python -m benchmarks.traces OUT.npz`: records a pair's drafts and tokens, for judging trees and for simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.command import console, run
from benchmarks.traces.record import record
from benchmarks.traces.trace import Trace
from cluster.bench.prompts import default_prompts, read_prompts
from cluster.engine import DEFAULT_DRAFTER, DEFAULT_TARGET
from cluster.loading import load_tokenizer
from dflash_core.contracts import DraftRanking, SamplingParams
from dflash_core.errors import InvalidRequest
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner
from dflash_core.sampling.noise import output_seed


def main(
    out: Annotated[Path, typer.Argument(help="The file to write (npz).")],
    target: Annotated[str, typer.Option(help="The target's checkpoint.")] = DEFAULT_TARGET,
    drafter: Annotated[str, typer.Option(help="The drafter's checkpoint.")] = DEFAULT_DRAFTER,
    prompts: Annotated[Path | None, typer.Option(help="JSONL with prompts; default: those of `dflash bench`.")] = None,
    max_prompts: Annotated[int, typer.Option(min=1, help="Prompts to record.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an output.")] = 128,
    temperature: Annotated[list[float] | None, typer.Option(min=0.0, help="May be repeated; default: 0 and 1.")] = None,
    top_k: Annotated[int, typer.Option(min=0, help="0: off.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="1: off.")] = 1.0,
    num_candidates: Annotated[int, typer.Option(min=1, help="Candidates recorded per depth.")] = 32,
    shared_noise: Annotated[bool, typer.Option(help="Rank with the target's noise.")] = True,
    truncation_penalty: Annotated[float, typer.Option(min=0.0, help="c of the ranking formula.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the outputs.")] = 0,
) -> None:
    if not out.absolute().parent.is_dir():
        raise InvalidRequest(f"cannot write {out}: its folder does not exist")
    ranking = DraftRanking(uses_noise=shared_noise, truncation_penalty=truncation_penalty)
    settings = DrafterSettings.model_validate({"num_candidates": num_candidates})
    tokenizer = load_tokenizer(target)
    target_runner = TargetRunner.load(target, drafter, TargetSettings.model_validate({"prefix_caching": False}))
    drafter_runner = DrafterRunner.load(drafter, target, settings)
    chosen = (default_prompts() if prompts is None else read_prompts(prompts))[:max_prompts]
    token_ids = [np.asarray(tokenizer.encode(prompt.prompt).ids, np.int32) for prompt in chosen]
    sequences = []
    for value in dict.fromkeys(temperature) if temperature else (0.0, 1.0):
        sampling = [
            SamplingParams(temperature=value, top_k=top_k, top_p=top_p, seed=output_seed(seed, index, 0))
            for index in range(len(chosen))
        ]
        sequences += list(record(target_runner, drafter_runner, token_ids, sampling, ranking, max_tokens))
        console().print(f"temperature {value:g}: {len(chosen)} sequences")
    Trace(target, drafter, tuple(sequences)).save(out)


if __name__ == "__main__":
    run(main)
