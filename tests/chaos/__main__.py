"""`make chaos`: seeded runs of the long form, one table and one JSON file.

python -m tests.chaos --seeds 20 --kills 12 --json build/chaos.json
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import ENVIRONMENT

os.environ.update(ENVIRONMENT)  # before anything imports torch or numba

from cluster.bench.machine import describe_machine
from tests.chaos.runs import VICTIMS, ChaosReport, chaos_cluster, make_kills, run_chaos
from tests.chaos.workload import Workload, make_workload
from tests.tiny import TinyPair, make_tiny_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="runs, each with a cluster of its own")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=12, help="processes killed in each run")
    parser.add_argument("--streams", type=int, default=32, help="open at any time")
    parser.add_argument("--json", type=Path, default=Path("build/chaos.json"))
    arguments = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        reports = asyncio.run(_run_all(Path(folder), arguments))
    summary = summarise(reports)
    print(_table(summary))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    runs = [dataclasses.asdict(report) for report in reports]
    arguments.json.write_text(json.dumps({"machine": machine, "summary": summary, "runs": runs}, indent=1) + "\n")
    print(f"\nwritten to {arguments.json}")


async def _run_all(folder: Path, arguments: argparse.Namespace) -> list[ChaosReport]:
    pair = make_tiny_pair(folder / "pair", num_layers=2, target_layer_ids=(0, 1))
    workload = await make_workload(pair)
    reports = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        report = await _run(folder / f"run-{seed}", pair, workload, seed, arguments)
        reports.append(report)
        verdict = report.verdict
        print(
            f"seed {seed}: {verdict.num_streams} streams, {verdict.num_tokens} tokens, {len(report.recoveries)} kills, "
            f"{verdict.num_explained} differences within the error of fp32, {report.seconds:.0f} s",
            flush=True,
        )
    return reports


async def _run(
    folder: Path, pair: TinyPair, workload: Workload, seed: int, arguments: argparse.Namespace
) -> ChaosReport:
    async with chaos_cluster(folder, pair) as cluster:
        return await run_chaos(cluster, workload, seed, make_kills(seed, arguments.kills), arguments.streams)


def summarise(reports: list[ChaosReport]) -> dict[str, Any]:
    """Sums over all runs, and per kind of victim the pauses of the streams that it held, in seconds."""
    return {
        "runs": len(reports),
        "streams": sum(report.verdict.num_streams for report in reports),
        "tokens": sum(report.verdict.num_tokens for report in reports),
        "differences_within_fp32_error": sum(report.verdict.num_explained for report in reports),
        "alone": _by_role(reports, is_alone=True),
        "one upon another": _by_role(reports, is_alone=False),
    }


def _by_role(reports: list[ChaosReport], is_alone: bool) -> dict[str, Any]:
    recoveries = [each for report in reports for each in report.recoveries if each.is_alone == is_alone]
    by_role = {}
    for role in VICTIMS:
        pauses = [pause for each in recoveries if each.role == role for pause in each.pauses_s]
        num_kills = sum(each.role == role for each in recoveries)
        by_role[role] = {"kills": num_kills, "affected_streams": len(pauses), **_quantiles(pauses)}
    return by_role


def _quantiles(pauses: list[float]) -> dict[str, float | None]:
    if not pauses:
        return {"p50_s": None, "p95_s": None, "max_s": None}
    return {
        "p50_s": float(np.quantile(pauses, 0.5)),
        "p95_s": float(np.quantile(pauses, 0.95)),
        "max_s": max(pauses),
    }


def _table(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['runs']} runs, {summary['streams']} streams, {summary['tokens']} tokens: all as undisturbed, "
        f"{summary['differences_within_fp32_error']} of the streams within the error of fp32",
        "",
        "| killed | | times | streams it held | pause p50 | p95 | longest |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("alone", "one upon another"):
        for role, numbers in summary[kind].items():
            pauses = [numbers[name] for name in ("p50_s", "p95_s", "max_s")]
            texts = ["–" if pause is None else f"{pause:.2f} s" for pause in pauses]
            counts = f"{numbers['kills']} | {numbers['affected_streams']}"
            lines.append(f"| {role} | {kind} | {counts} | {' | '.join(texts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
