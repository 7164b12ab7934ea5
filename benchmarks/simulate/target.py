"""A target that writes what traces say and takes as long as tables say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from benchmarks.simulate.features import FeatureSender, Span
from benchmarks.simulate.hardware import FINGERPRINT, Hardware
from benchmarks.simulate.kv import HeldSequence, KvBlocks
from benchmarks.simulate.meter import Meter
from benchmarks.simulate.playback import Playback, Script
from benchmarks.simulate.times import RoundNoise, RouterProcessor
from dflash_core.contracts import (
    Outcome,
    OutcomeStatus,
    PackedOutcomes,
    Prefill,
    RoundRequest,
    RoundResult,
    SequenceKey,
    TargetInfo,
    TreeRows,
)

_NOTHING = np.empty(0, np.int32)


@dataclass(slots=True)
class TargetCounts:
    """Since the last reset, by the ends of rounds."""

    rounds: int = 0
    busy_s: float = 0.0
    trees: int = 0
    nodes: int = 0  # without roots
    accepted: int = 0


class SimulatedTarget:
    """Implements `dflash_core.contracts.Target`. Rounds that are sent while one runs wait for it, in their order."""

    def __init__(
        self,
        hardware: Hardware,
        playback: Playback,
        features: FeatureSender,
        router: RouterProcessor,
        meter: Meter,
        noise: RoundNoise,
    ) -> None:
        self._hardware = hardware
        self._playback = playback
        self._features = features
        self._router = router
        self._meter = meter
        self._noise = noise
        self._kv = KvBlocks(hardware.num_blocks, hardware.kv_block_size)
        self._free_at = 0.0
        self._turns = asyncio.Lock()  # two rounds may end at one time, as one does that only releases
        self.counts = TargetCounts()
        self.info = TargetInfo(
            model=hardware.name,
            vocab_size=playback.vocab_size,
            hidden_size=1,
            num_layers=1,
            max_model_len=hardware.max_model_len,
            eos_token_ids=(),
            kv_block_size=hardware.kv_block_size,
            num_blocks=hardware.num_blocks,
            max_rows=hardware.max_rows,
            max_tree_rows=hardware.max_tree_rows,
            fingerprint=f"weights:{FINGERPRINT}",
            row_sizes=hardware.round_times.row_sizes,
            round_times_us=hardware.round_times.measured_us,
        )

    @property
    def num_sequences(self) -> int:
        return self._kv.num_sequences

    @property
    def free_blocks(self) -> int:
        return self._kv.free_blocks

    async def run_round(self, request: RoundRequest) -> RoundResult:
        loop = asyncio.get_running_loop()
        with self._meter.outside():
            duration_s = self._duration_s(request)
            sent_at = self._router.work(loop.time(), len(request.trees) + len(request.prefills))
            self._free_at = max(self._free_at, sent_at + self._hardware.network.latency_s) + duration_s
            free_at = self._free_at
        async with self._turns:
            await _sleep_until(free_at)
            with self._meter.outside():
                result = self._run(request, duration_s)
        await _sleep_until(loop.time() + self._hardware.network.latency_s)
        return result

    def _duration_s(self, request: RoundRequest) -> float:
        """0 for a round that only releases."""
        rows = context = row_context = 0
        for piece in request.trees:
            num_rows = piece.tree.num_rows
            rows += num_rows
            context += piece.root_position
            row_context += num_rows * piece.root_position
        for prefill in request.prefills:
            num_rows = len(prefill.token_ids)
            rows += num_rows
            context += prefill.start
            row_context += num_rows * prefill.start + num_rows * num_rows // 2
        assert rows <= self.info.max_rows, (rows, self.info.max_rows)
        if rows == 0:
            return 0.0
        seconds = self._hardware.round_times.seconds(rows, context, row_context)
        return seconds * self._noise.factor(seconds)

    def _run(self, request: RoundRequest, duration_s: float) -> RoundResult:
        for key in request.releases:
            self._kv.release(key)
        spans: dict[str, list[Span]] = {}
        for refill in request.refills:
            held = self._kv.find(refill.key)
            if held is not None:
                held.drafter_address = refill.drafter_address
                self._ship(held, refill.from_position, spans)
        places = [self._place(piece) for piece in request.trees]
        accepted = self._playback.num_accepted(request.trees, places)
        pieces: list[Prefill | TreeRows] = [*request.prefills, *request.trees]
        outcomes: list[Outcome | None] = [None] * len(pieces)
        for index in self._oldest_first(pieces):
            piece = pieces[index]
            if isinstance(piece, Prefill):
                outcomes[index] = self._prefill(piece, spans)
            else:
                tree = index - len(request.prefills)
                outcomes[index] = self._verify(piece, places[tree], accepted[tree], spans)
        for address, sent in spans.items():
            self._features.send(address, sent)
        self._count(request, duration_s)
        return RoundResult(
            request.round_id,
            PackedOutcomes.of([outcome for outcome in outcomes if outcome is not None]),
            self._kv.free_blocks,
            epoch=0,
            stage_times_us={"forward": round(duration_s * 1e6)},
            preempted=self._kv.take_preempted(),
        )

    def _place(self, piece: TreeRows) -> int:
        """Of its root; any place for a sequence that is not here, which is refused."""
        held = self._kv.find(piece.key)
        return 0 if held is None else self._playback.place(held.script, piece.root_position)

    def _oldest_first(self, pieces: list[Prefill | TreeRows]) -> list[int]:
        """Indices of the pieces; in any order while there are blocks for all."""
        size = self._hardware.kv_block_size
        wanted = sum(len(piece.token_ids) if isinstance(piece, Prefill) else piece.tree.num_rows for piece in pieces)
        if wanted // size + 2 * len(pieces) <= self._kv.free_blocks:
            return list(range(len(pieces)))
        ages = self._kv.ages()
        return sorted(range(len(pieces)), key=lambda index: ages.get(pieces[index].key.sequence_id, len(ages)))

    def _prefill(self, prefill: Prefill, spans: dict[str, list[Span]]) -> Outcome:
        if prefill.start == 0:
            held: HeldSequence | None = self._kv.open(prefill.key, Script.of_seed(prefill.sampling.seed))
        else:
            held = self._kv.find(prefill.key)
        if held is None or held.cached_len != prefill.start:
            return _refused(prefill.key, OutcomeStatus.UNKNOWN_SEQUENCE)
        if not self._kv.make_room(held, len(prefill.token_ids)):
            return _refused(prefill.key, OutcomeStatus.OUT_OF_BLOCKS)
        held.drafter_address = prefill.drafter_address
        self._kv.extend(held, len(prefill.token_ids))
        self._ship(held, prefill.features_from, spans)
        held.has_root = prefill.is_last
        bonus = self._token(held) if prefill.is_last else -1
        return Outcome(prefill.key, OutcomeStatus.OK, _NOTHING, bonus, held.cached_len)

    def _verify(self, piece: TreeRows, place: int, num_accepted: int, spans: dict[str, list[Span]]) -> Outcome:
        held = self._kv.find(piece.key)
        if held is None:
            preempted = self._kv.was_preempted(piece.key)
            return _refused(piece.key, OutcomeStatus.OUT_OF_BLOCKS if preempted else OutcomeStatus.UNKNOWN_SEQUENCE)
        root = int(piece.tree.token_ids[0])
        if not held.has_root or piece.root_position != held.cached_len or root != self._token(held):
            return _refused(piece.key, OutcomeStatus.MISMATCH)
        if not self._kv.make_room(held, 1):
            return _refused(piece.key, OutcomeStatus.OUT_OF_BLOCKS)
        num_accepted = min(num_accepted, self._kv.room(held) - 1)
        begin = held.cached_len
        self._kv.extend(held, num_accepted + 1)
        self._ship(held, begin, spans)
        tokens = self._playback.tokens_at(place + 1, num_accepted + 1)
        self.counts.accepted += num_accepted
        self.counts.trees += 1
        self.counts.nodes += piece.tree.num_nodes
        return Outcome(piece.key, OutcomeStatus.OK, tokens[:-1], int(tokens[-1]), held.cached_len)

    def _token(self, held: HeldSequence) -> int:
        """At the position after those that are cached: the root."""
        place = self._playback.place(held.script, held.cached_len)
        return int(self._playback.tokens_at(place, 1)[0])

    def _ship(self, held: HeldSequence, start: int, spans: dict[str, list[Span]]) -> None:
        if held.drafter_address and start < held.cached_len:
            spans.setdefault(held.drafter_address, []).append(Span(held.key, start, held.cached_len))

    def _count(self, request: RoundRequest, duration_s: float) -> None:
        counts = self.counts
        counts.rounds += bool(request.trees or request.prefills)
        counts.busy_s += duration_s


def _refused(key: SequenceKey, status: OutcomeStatus) -> Outcome:
    return Outcome(key, status, _NOTHING, -1, 0, "simulated")


async def _sleep_until(time_s: float) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(time_s - loop.time())
