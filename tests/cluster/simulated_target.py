"""A double of a target for tests of the router: exact about the contract, free of any model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from dflash_core.contracts import (
    ContextChunk,
    Outcome,
    OutcomeStatus,
    Prefill,
    RawTensor,
    RoundRequest,
    RoundResult,
    SequenceKey,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import Unavailable
from tests.cluster.simulated_drafter import Network
from tests.cluster.simulated_text import VOCAB_SIZE, next_token


@dataclass
class _Held:
    key: SequenceKey
    tokens: list[int] = field(default_factory=list)  # cached
    root: int = -1
    seed: int = 0
    drafter_address: str = ""
    num_blocks: int = 0


class SimulatedTarget:
    """Keeps every rule of the contract that a target keeps, and asserts those that the router must keep."""

    def __init__(
        self,
        network: Network,
        *,
        num_blocks: int = 64,
        kv_block_size: int = 8,
        max_rows: int = 48,
        max_tree_rows: int = 40,
        max_model_len: int = 200,
        fc: str = "fc",
        delay_s: float = 0.0,
        row_s: float = 0.0,
        prefix_caching: bool = True,
        forget: float = 0.0,
    ) -> None:
        """A round takes a part of `delay_s`, and `row_s` for each row. `forget`: probability, per round, that the
        prefix cache is emptied. Hits take blocks like other tokens."""
        self.network = network
        self.delay_s = delay_s
        self.row_s = row_s
        self.prefix_caching = prefix_caching
        self.forget = forget
        self.prefixes: set[tuple[int, ...]] = set()  # whole blocks that were committed once
        self.info = TargetInfo(
            model="simulated",
            vocab_size=VOCAB_SIZE,
            hidden_size=1,
            num_layers=1,
            max_model_len=max_model_len,
            eos_token_ids=(0,),
            kv_block_size=kv_block_size,
            num_blocks=num_blocks,
            max_rows=max_rows,
            max_tree_rows=max_tree_rows,
            fingerprint=f"weights:{fc}",
        )
        self.free_blocks = num_blocks
        self.held: dict[str, _Held] = {}  # the oldest first
        self.preempted: list[SequenceKey] = []  # in the round that runs
        self.rounds: list[RoundRequest] = []
        self.is_dead = False
        self.fail_next: list[Exception] = []
        self.status_next: list[OutcomeStatus] = []
        self.turns = asyncio.Lock()
        self.num_in_flight = self.most_in_flight = 0

    async def run_round(self, request: RoundRequest) -> RoundResult:
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            async with self.turns:  # rounds queue up and run one after the other
                return await self._take(request)
        finally:
            self.num_in_flight -= 1

    async def _take(self, request: RoundRequest) -> RoundResult:
        assert self.num_in_flight <= 2, "at most two rounds in flight"
        if self.is_dead:
            raise Unavailable("the simulated target is dead")
        self.rounds.append(request)
        num_rows = sum(tree.tree.num_rows for tree in request.trees)
        num_rows += sum(len(prefill.token_ids) for prefill in request.prefills)
        await asyncio.sleep(self.network.rng.random() * self.delay_s + num_rows * self.row_s)
        if self.is_dead:
            raise Unavailable("the simulated target died in the round")
        if self.fail_next:
            raise self.fail_next.pop()
        return self._run(request)

    def _run(self, request: RoundRequest) -> RoundResult:
        num_tree_rows = sum(tree.tree.num_rows for tree in request.trees)
        num_prefill_rows = sum(len(prefill.token_ids) for prefill in request.prefills)
        assert num_tree_rows <= self.info.max_tree_rows
        assert num_tree_rows + num_prefill_rows <= self.info.max_rows
        for key in request.releases:
            self._release(key)
        for refill in request.refills:
            held = self.held.get(refill.key.sequence_id)
            if held is not None and held.key == refill.key:
                held.drafter_address = refill.drafter_address
                self._send(held, refill.from_position)
        if self.network.rng.random() < self.forget:
            self.prefixes.clear()
        self.preempted = []
        pieces: list[Prefill | TreeRows] = [*request.prefills, *request.trees]
        ages = list(self.held)
        outcomes: dict[int, Outcome] = {}
        for place, piece in sorted(enumerate(pieces), key=lambda entry: self._age(ages, entry[1].key)):
            outcomes[place] = self._prefill(piece) if isinstance(piece, Prefill) else self._verify(piece)
        in_order = tuple(outcomes[place] for place in range(len(pieces)))
        return RoundResult(request.round_id, in_order, self.free_blocks, 0, {"forward": 1}, tuple(self.preempted))

    def _age(self, ages: list[str], key: SequenceKey) -> int:
        held = self.held.get(key.sequence_id)
        return ages.index(key.sequence_id) if held is not None and held.key == key else len(ages)

    def _release(self, key: SequenceKey) -> None:
        held = self.held.get(key.sequence_id)
        if held is not None and held.key.attempt <= key.attempt:
            self.free_blocks += held.num_blocks
            del self.held[key.sequence_id]

    def _prefill(self, prefill: Prefill) -> Outcome:
        if self.status_next:
            return self._not_ok(prefill.key, self.status_next.pop())
        has_more = prefill.start == 0 and not prefill.is_last
        assert bool(len(prefill.following)) == has_more, "a first chunk tells what follows"
        num_hit_tokens = 0
        if prefill.start == 0:
            self._release(prefill.key)
            self.held[prefill.key.sequence_id] = _Held(prefill.key, seed=prefill.sampling.seed)
            num_hit_tokens = self._find_prefix(self.held[prefill.key.sequence_id], prefill.known_tokens.tolist())
            prefill = prefill.skip(num_hit_tokens)
        if prefill.key in self.preempted:
            return self._not_ok(prefill.key, OutcomeStatus.OUT_OF_BLOCKS)
        held = self.held.get(prefill.key.sequence_id)
        if held is None or held.key != prefill.key or len(held.tokens) != prefill.start:
            return self._not_ok(prefill.key, OutcomeStatus.UNKNOWN_SEQUENCE)
        if not self._make_room(held, prefill.start + len(prefill.token_ids)):
            return self._not_ok(prefill.key, OutcomeStatus.OUT_OF_BLOCKS)
        held.drafter_address = prefill.drafter_address
        self._extend(held, prefill.token_ids.tolist())
        self._send(held, prefill.features_from)
        if prefill.is_last:
            held.root = next_token(held.seed, held.tokens)
        bonus = held.root if prefill.is_last else -1
        nothing = np.empty(0, np.int32)
        return Outcome(prefill.key, OutcomeStatus.OK, nothing, bonus, len(held.tokens), num_hit_tokens=num_hit_tokens)

    def _find_prefix(self, held: _Held, known: list[int]) -> int:
        """Gives the sequence the longest prefix that was committed once, without the last of its tokens."""
        size, num_hit_tokens = self.info.kv_block_size, 0
        if self.prefix_caching:
            while num_hit_tokens + size < len(known) and tuple(known[: num_hit_tokens + size]) in self.prefixes:
                num_hit_tokens += size
        if not self._make_room(held, num_hit_tokens):
            return 0
        self._extend(held, known[:num_hit_tokens])
        return num_hit_tokens

    def _verify(self, piece: TreeRows) -> Outcome:
        if self.status_next:
            return self._not_ok(piece.key, self.status_next.pop())
        if piece.key in self.preempted:
            return self._not_ok(piece.key, OutcomeStatus.OUT_OF_BLOCKS)
        held = self.held.get(piece.key.sequence_id)
        if held is None or held.key != piece.key:
            return self._not_ok(piece.key, OutcomeStatus.UNKNOWN_SEQUENCE)
        token_ids, depths = piece.tree.token_ids.tolist(), piece.tree.depths.tolist()
        if token_ids[0] != held.root or piece.root_position != len(held.tokens):
            return self._not_ok(piece.key, OutcomeStatus.MISMATCH)
        if not self._make_room(held, len(held.tokens) + 1):
            return self._not_ok(piece.key, OutcomeStatus.OUT_OF_BLOCKS)
        room = (self.free_blocks + held.num_blocks) * self.info.kv_block_size - len(held.tokens)
        path, row, history = [], 0, [*held.tokens, held.root]
        choice = next_token(held.seed, history)
        while True:
            children = [
                other
                for other in range(row + 1, len(depths))
                if depths[other] == depths[row] + 1 and min(depths[row + 1 : other + 1]) > depths[row]
            ]
            match = [child for child in children if token_ids[child] == choice]
            if not match or len(path) + 1 == room:
                break
            assert len(match) == 1, "siblings must differ"
            row = match[0]
            path.append(choice)
            history.append(choice)
            choice = next_token(held.seed, history)
        begin = len(held.tokens)
        self._extend(held, [held.root, *path])
        held.root = choice
        self._send(held, begin)
        return Outcome(piece.key, OutcomeStatus.OK, np.asarray(path, np.int32), choice, len(held.tokens))

    def _make_room(self, held: _Held, num_tokens: int) -> bool:
        """The youngest give way, at last the sequence itself. False where it did."""
        while -(-num_tokens // self.info.kv_block_size) > held.num_blocks + self.free_blocks:
            youngest = next(reversed(self.held.values()))
            self.preempted.append(youngest.key)
            self._release(youngest.key)
            if youngest is held:
                return False
        return True

    def _extend(self, held: _Held, tokens: list[int]) -> None:
        held.tokens += tokens
        needed = -(-len(held.tokens) // self.info.kv_block_size)
        self.free_blocks -= needed - held.num_blocks
        held.num_blocks = needed
        assert self.free_blocks >= 0, "room was made before"
        size = self.info.kv_block_size
        self.prefixes.update(tuple(held.tokens[:end]) for end in range(size, len(held.tokens) + 1, size))

    def _send(self, held: _Held, from_position: int) -> None:
        if held.drafter_address:
            tokens = held.tokens[from_position:]
            data = np.asarray(tokens, np.int32).tobytes()
            chunk = ContextChunk(held.key, from_position, RawTensor("int32", (len(tokens), 1), data))
            self.network.send(held.drafter_address, [chunk])

    def _not_ok(self, key: SequenceKey, status: OutcomeStatus) -> Outcome:
        held = self.held.get(key.sequence_id)
        return Outcome(key, status, np.empty(0, np.int32), -1, len(held.tokens) if held else 0, "simulated")
