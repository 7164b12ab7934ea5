"""Doubles of the GPU pools for tests of the router: exact about the contract, free of any model.

The simulated target's next token is a pure function of (seed, all tokens before it). The simulated drafter learns
the committed tokens from its context features alone, guesses the target's tokens from them, and is wrong at times:
so a feature that is late, lost or stale shows as a draft that is not accepted.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from cluster.requests import GenerationRequest, TokenEvent
from dflash_core.contracts import (
    ContextChunk,
    Draft,
    DrafterInfo,
    DraftRequest,
    DraftResult,
    Outcome,
    OutcomeStatus,
    Prefill,
    RawTensor,
    RoundRequest,
    RoundResult,
    SamplingParams,
    SequenceKey,
    TargetInfo,
    TreeRows,
)
from dflash_core.errors import Unavailable

VOCAB_SIZE = 97
NUM_CANDIDATES = 4
DEPTH = 7


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Polls, since what is waited for is the absence of something that nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def next_token(seed: int, history: list[int]) -> int:
    return (
        zlib.crc32(np.asarray([seed & 0x7FFFFFFF, len(history), *history[-6:]], dtype=np.int64).tobytes()) % VOCAB_SIZE
    )


def decode_plainly(request: GenerationRequest) -> list[int]:
    """The oracle: one token at a time. Returns the tokens beyond those that the request brings."""
    tokens = request.token_ids.tolist()
    begin = len(tokens)
    while len(tokens) - request.num_prompt_tokens < request.max_tokens:
        tokens.append(next_token(request.sampling.seed, tokens))
        if tokens[-1] in request.stop_token_ids:
            break
    return tokens[begin:]


class Network:
    """Carries features from targets to drafters: late, out of order, or not at all."""

    def __init__(self, rng: random.Random, drop: float = 0.0, delay_s: float = 0.0) -> None:
        self.rng = rng
        self.drop = drop
        self.delay_s = delay_s
        self.drafters: dict[str, SimulatedDrafter] = {}

    def send(self, address: str, chunks: list[ContextChunk]) -> None:
        for chunk in chunks:
            if self.rng.random() < self.drop:
                continue
            if self.delay_s:
                delay = self.rng.random() * self.delay_s
                asyncio.get_running_loop().call_later(delay, self._deliver, address, chunk)
            else:
                self._deliver(address, chunk)

    def _deliver(self, address: str, chunk: ContextChunk) -> None:
        drafter = self.drafters.get(address)
        if drafter is not None:
            drafter.append_context(chunk)


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


class SimulatedDrafter:
    """Guesses right with probability `skill` at each depth's first rank, else at a later rank or not at all."""

    _numbers = count(1)

    def __init__(
        self,
        network: Network,
        *,
        skill: float = 0.7,
        fingerprint: str = "fc",
        delay_s: float = 0.0,
        straggle: float = 0.0,
        address: str = "",
    ) -> None:
        self.network = network
        self.rng = network.rng
        self.skill = skill
        self.delay_s = delay_s
        self.straggle = straggle  # probability of an answer that takes longer than any round waits
        address = address or f"simulated-{next(self._numbers)}"
        self.info = DrafterInfo("simulated", DEPTH + 1, NUM_CANDIDATES, 1, VOCAB_SIZE, 1, fingerprint, address)
        self.contexts: dict[str, tuple[SequenceKey, list[int]]] = {}
        self.num_drafts = 0
        self.num_missing = 0
        self.is_dead = False
        network.drafters[address] = self

    def append_context(self, chunk: ContextChunk) -> None:
        held = self.contexts.get(chunk.key.sequence_id)
        if held is None or held[0] != chunk.key or chunk.start > len(held[1]):
            return
        tokens = np.frombuffer(chunk.features.data, np.int32).tolist()
        known = len(held[1]) - chunk.start
        assert held[1][chunk.start :][: len(tokens)] == tokens[:known], "features of a position never change"
        held[1].extend(tokens[known:])

    async def draft(self, request: DraftRequest) -> DraftResult:
        if self.is_dead:
            raise Unavailable("the simulated drafter is dead")
        for key in request.releases:
            held = self.contexts.get(key.sequence_id)
            if held is not None and held[0].attempt <= key.attempt:
                del self.contexts[key.sequence_id]
        for key, context_len in request.opens:
            held = self.contexts.get(key.sequence_id)
            if held is None or held[0].attempt < key.attempt:
                self.contexts[key.sequence_id] = (key, [] if held is None else held[1][:context_len])
        delay = 5.0 if self.rng.random() < self.straggle else self.rng.random() * self.delay_s
        if request.blocks and delay:
            await asyncio.sleep(delay)
        if self.is_dead:
            raise Unavailable("the simulated drafter died")
        drafts = tuple(
            self._draft(block.key, block.root_token, block.context_len, block.sampling) for block in request.blocks
        )
        return DraftResult(request.batch_id, drafts, {"forward": 1})

    def _draft(self, key: SequenceKey, root: int, context_len: int, sampling: SamplingParams) -> Draft:
        empty = Draft(key, context_len, np.empty((0, 0), np.int32), np.empty((0, 0), np.float32))
        held = self.contexts.get(key.sequence_id)
        if held is None or held[0] != key:
            return Draft(key, context_len, empty.token_ids, empty.scores, error="unknown sequence")
        if len(held[1]) < context_len:
            self.num_missing += 1
            return Draft(key, context_len, empty.token_ids, empty.scores, missing_from=len(held[1]))
        self.num_drafts += 1
        history = [*held[1][:context_len], root]  # an answer that is late may come when there is more already
        rows = []
        for _ in range(DEPTH):
            right = next_token(sampling.seed, history)
            wrong = [token for token in self.rng.sample(range(VOCAB_SIZE), NUM_CANDIDATES + 1) if token != right]
            row = wrong[:NUM_CANDIDATES]
            roll = self.rng.random()
            if roll < self.skill:
                row[0] = right
            elif roll < (1 + self.skill) / 2:
                row[self.rng.randrange(1, NUM_CANDIDATES)] = right
            rows.append(row)
            history.append(right)
        scores = np.log(np.tile(np.asarray([0.6, 0.2, 0.1, 0.05], np.float32), (DEPTH, 1)))
        return Draft(key, context_len, np.asarray(rows, np.int32), scores)


class Client:
    """A sink that checks the order of events and waits for their ends."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.first: dict[str, TokenEvent] = {}
        self.last: dict[str, TokenEvent] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self.num_puts = 0

    def put(self, events: list[TokenEvent]) -> None:
        self.num_puts += 1
        assert len({event.sequence_id for event in events}) == len(events), "one event per sequence and round"
        for event in events:
            assert event.sequence_id not in self.last, "no event after the last one"
            self.first.setdefault(event.sequence_id, event)
            assert event is self.first[event.sequence_id] or not event.cached_tokens, "told once"
            self.tokens.setdefault(event.sequence_id, []).extend(event.token_ids.tolist())
            if event.is_last:
                self.last[event.sequence_id] = event
                self._end(event.sequence_id).set()

    def _end(self, sequence_id: str) -> asyncio.Event:
        return self._ends.setdefault(sequence_id, asyncio.Event())

    async def wait(self, *sequence_ids: str, timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            for sequence_id in sequence_ids:
                await self._end(sequence_id).wait()


def make_request(rng: random.Random, sequence_id: str, **changes: object) -> GenerationRequest:
    num_prompt_tokens = rng.randint(1, 60)
    values: dict[str, object] = {
        "sequence_id": sequence_id,
        "token_ids": np.asarray([rng.randrange(VOCAB_SIZE) for _ in range(num_prompt_tokens)], np.int32),
        "num_prompt_tokens": num_prompt_tokens,
        "max_tokens": rng.randint(1, 60),
        "sampling": SamplingParams(seed=rng.randrange(2**64)),
        "stop_token_ids": rng.choice([(), (3,), (5, 17, 40)]),
        "tree_budget": rng.choice([None, None, 0, 1, 5, 30]),
    }
    values.update(changes)
    return GenerationRequest(**values)  # type: ignore[arg-type]
