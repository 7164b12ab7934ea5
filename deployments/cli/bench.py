"""`dflash bench`: reads the prompts and lets `cluster.bench` measure."""

from __future__ import annotations

from pathlib import Path

from cluster.bench.benchmark import BenchSettings
from cluster.bench.prompts import default_prompts, read_prompts
from cluster.bench.session import Outputs, run_benchmark


def run_bench(settings: BenchSettings, prompts_file: Path | None, num_prompts: int | None, outputs: Outputs) -> None:
    """Raises `InvalidRequest` for wrong prompts before anything is loaded, and what `run_benchmark` raises."""
    prompts = (default_prompts() if prompts_file is None else read_prompts(prompts_file))[:num_prompts]
    described = {"num_prompts": len(prompts), "prompts_file": prompts_file and str(prompts_file)}
    run_benchmark(settings, prompts, outputs, described)
