"""A double of a drafter, and of the network that brings it features.

It learns the committed tokens from its context features alone, guesses the target's tokens from them, and is wrong at
times: so a feature that is late, lost or stale shows as a draft that is not accepted.
"""

from __future__ import annotations

import asyncio
import random
from itertools import count

import numpy as np

from dflash_core.contracts import (
    ContextChunk,
    Draft,
    DrafterInfo,
    DraftRequest,
    DraftResult,
    SamplingParams,
    SequenceKey,
)
from dflash_core.errors import Unavailable
from tests.cluster.simulated_text import VOCAB_SIZE, next_token

NUM_CANDIDATES = 4
DEPTH = 7


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
