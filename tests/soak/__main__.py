"""`make soak`: load, cancellations and kills for minutes; fails where memory, descriptors or tasks grow.

python -m tests.soak --minutes 30 --out build/soak
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conftest import ENVIRONMENT

# Before anything imports torch or numba. oneDNN keeps a compiled product per number of rows, 1,024 of them unless told
# otherwise: about 100 MiB that fill so slowly that a short soak would take them for a leak.
os.environ.update(ENVIRONMENT | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"})

from cluster.bench.machine import describe_machine
from tests.chaos.runs import chaos_cluster
from tests.chaos.workload import make_workload
from tests.soak.levels import RULES
from tests.soak.plot import plot
from tests.soak.run import Soak
from tests.tiny import make_tiny_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=16, help="open at any time")
    parser.add_argument("--sample-s", type=float, default=5.0, help="between two looks at every process")
    parser.add_argument("--kill-s", type=float, default=10.0, help="between two kills, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = asyncio.run(_run(Path(folder), arguments))
    summary = {"machine": machine, "minutes": arguments.minutes, **summarise(soak)}
    _write_csv(soak, arguments.out / "soak.csv")
    (arguments.out / "soak.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(soak, arguments.out / "soak.png")
    print(json.dumps(summary["counts"]))
    for process, levels in summary["levels"].items():
        for name, level in levels.items():
            verdict = "flat" if level["is_flat"] else "GROWS"
            print(f"{process:10} {name:8} {level['settled']:10.1f} → {level['tail']:10.1f}  {verdict}")
    sys.exit(0 if summary["is_flat"] else 1)


async def _run(folder: Path, arguments: argparse.Namespace) -> Soak:
    pair = make_tiny_pair(folder / "pair", num_layers=2, target_layer_ids=(0, 1))
    workload = await make_workload(pair)
    async with chaos_cluster(folder / "cluster", pair) as cluster:
        soak = Soak(cluster, workload, arguments.seed)
        await soak.run(arguments.minutes * 60, arguments.streams, arguments.sample_s, arguments.kill_s)
        return soak


def summarise(soak: Soak) -> dict[str, Any]:
    """The levels of every process that lived from beginning to end. That all blocks are free at the end was checked."""
    levels = {
        process: {name: rule.check(soak.figures_of(process, name)[1]) for name, rule in RULES.items()}
        for process in soak.long_lived
    }
    return {
        "counts": dict(soak.counts),
        "is_flat": all(level.is_flat for mine in levels.values() for level in mine.values()),
        "levels": {
            process: {name: dataclasses.asdict(level) for name, level in mine.items()}
            for process, mine in levels.items()
        },
    }


def _write_csv(soak: Soak, path: Path) -> None:
    names = sorted({name for sample in soak.samples for name in sample.figures})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["at_s", "process", *names])
        for sample in soak.samples:
            values = [sample.figures.get(name, "") for name in names]
            writer.writerow([f"{sample.at_s:.1f}", sample.process, *values])


if __name__ == "__main__":
    main()
