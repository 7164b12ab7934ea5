"""On what simulated pairs run. `EMBEDDED_CPU` is measured; `QWEN3_8B_H200` is computed from a card's rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.simulate.times import DraftTimes, Network, RoundTimes, Table
from dflash_core.errors import InvalidRequest

EMBEDDED_TIMES = Path(__file__).with_name("embedded-times-cpu.json")  # by `python -m benchmarks.simulate.measure`
FINGERPRINT = "simulated"  # of the projection, which every simulated pair shares
_KV_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Hardware:
    """A target, its drafter and what joins them. Sizes as in `TargetInfo`."""

    name: str
    round_times: RoundTimes
    draft_times: DraftTimes
    network: Network
    max_model_len: int
    num_blocks: int
    max_rows: int = 1024
    max_tree_rows: int = 512
    kv_block_size: int = _KV_BLOCK_SIZE


def hardware(name: str) -> Hardware:
    """Raises `InvalidRequest` for a name that there is not."""
    if name not in HARDWARE:
        raise InvalidRequest(f"hardware must be one of {', '.join(HARDWARE)}, got {name!r}", param="hardware")
    return HARDWARE[name]()


@cache
def _embedded_cpu() -> Hardware:
    """The embedded pair, each part on a CPU core of its own in one machine, as measured."""
    results = json.loads(EMBEDDED_TIMES.read_text(encoding="utf-8"))["results"]
    shortest = min(result["context"] for result in results)
    rounds = {(r["rows"], r["context"]): r for r in results if "rows" in r}
    by_rows = _rising([(rows, r["ms"]) for (rows, context), r in sorted(rounds.items()) if context == shortest])
    slopes = [  # per token of context: on a CPU that is what gathering the pages costs, however many rows read them
        (r["ms"] - rounds[rows, shortest]["ms"]) * 1e6 / (r["sequences"] * (context - shortest))
        for (rows, context), r in rounds.items()
        if context != shortest
    ]
    by_blocks = _rising([(result["blocks"], result["ms"]) for result in results if "blocks" in result])
    return Hardware(
        name="embedded-cpu",
        round_times=RoundTimes(by_rows, ns_per_context=sum(slopes) / len(slopes), ns_per_row_context=0.0),
        draft_times=DraftTimes(by_blocks),
        network=Network(latency_s=90e-6),
        max_model_len=1024,
        num_blocks=2048,
    )


def _rising(table: list[tuple[int, float]]) -> Table:
    """A table of measured times in which no larger size takes less than a smaller one."""
    rising: list[tuple[int, float]] = []
    for size, ms in table:
        rising.append((size, max(ms, rising[-1][1]) if rising else ms))
    return tuple(rising)


@cache
def _qwen3_8b_h200() -> Hardware:
    """Qwen3-8B in bf16 on one H200 and a DFlash drafter of 5 layers with blocks of 8 on another. No round was timed.

    Measured: memory at 4.3 TB/s and products at 780 TFLOP/s on such cards; features over gRPC at 1.26 GB/s between two
    processes; 0.09 ms one way. Computed: the bytes and operations below. Assumed: everything takes 1.3 × its limit,
    110 GB of the card are left for KV.
    """
    bytes_per_s, operations_per_s, over_limit = 4.3e12, 780e12, 1.3
    target_bytes, target_params = 15.1e9, 7.57e9  # without the embedding table, which is not read
    kv_bytes_per_token = 36 * 2 * 8 * 128 * 2
    row_ms = 2 * target_params / operations_per_s * 1e3
    attention_operations = 36 * 32 * 128 * 2 * 2  # per row and token: two products in every layer and head
    layers, head = 5 * 193e6, 622e6  # the drafter's parameters, and those of the target's head, which it uses
    draft_bytes, block_ms = (layers + head) * 2, 8 * 2 * (layers + head) / operations_per_s * 1e3
    row_sizes = _graph_sizes()
    return Hardware(
        name="qwen3-8b-h200",
        round_times=RoundTimes(
            tuple((r, over_limit * max(target_bytes / bytes_per_s * 1e3, r * row_ms)) for r in (*row_sizes, 1024)),
            ns_per_context=over_limit * kv_bytes_per_token / bytes_per_s * 1e9,
            ns_per_row_context=over_limit * attention_operations / operations_per_s * 1e9,
            row_sizes=row_sizes,
        ),
        draft_times=DraftTimes(
            tuple((n, over_limit * max(draft_bytes / bytes_per_s * 1e3, n * block_ms)) for n in (1, 8, 16, 32, 64, 128))
        ),
        network=Network(latency_s=90e-6, feature_bytes_per_token=8192, feature_bytes_per_s=1.26e9),
        max_model_len=40_960,
        num_blocks=int(110e9 / kv_bytes_per_token) // _KV_BLOCK_SIZE,
    )


def _graph_sizes() -> tuple[int, ...]:
    """The padded sizes of docs/performance.md up to `max_graph_rows`; rounds beyond are not padded."""
    return (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 513, 64))


HARDWARE: dict[str, Callable[[], Hardware]] = {"embedded-cpu": _embedded_cpu, "qwen3-8b-h200": _qwen3_8b_h200}
