"""Speculation never changes the output: any budget, temperature, seed and company, token for token (fp32)."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.requests import GenerationRequest, Strategy
from cluster.router import Router, RouterSettings
from cluster.router.drafts_in_flight import DraftsInFlight
from cluster.router.sequence import Sequence
from cluster.router.speculation import Speculation
from cluster.router.splitting import SplitChooser
from dflash_core.contracts import SamplingParams
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.target import TargetRunner
from dflash_core.trees.build import NodeBudget
from tests.cluster.serving import DRAFTER_SETTINGS, TARGET_SETTINGS, add_models, check_outputs, decode_plainly
from tests.cluster.simulated_client import Client
from tests.tiny import make_tiny_pair
from tests.waiting import until

NUM_PROMPTS = 50
TEMPERATURES = (0.0, 0.7, 1.0)
BUDGETS = (0, 1, 7, 32, 64)
MAX_TOKENS = 16


def choose_at_random(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Budgets, who is drafted for and fed, how long drafts are waited for, and whether two rounds are in flight."""

    def any_budget(*arguments: Any) -> NodeBudget:
        most_nodes: int = arguments[-1]
        return NodeBudget.of(min(rng.choice([0, 3, 40, 200]), most_nodes))

    monkeypatch.setattr(Speculation, "node_budget", any_budget)
    monkeypatch.setattr(DraftsInFlight, "_time_left", lambda *_: rng.choice([-1.0, 0.001, 60.0]))
    monkeypatch.setattr(Speculation, "is_worth_waiting", lambda *_: rng.random() < 0.8)

    def any_of_them(speculation: Speculation, ready: list[Sequence], running: list[Sequence]) -> list[Sequence]:
        speculation.stops_feeding = rng.random() < 0.3
        return [sequence for sequence in ready if rng.random() < 0.9]

    monkeypatch.setattr(Speculation, "choose_drafted", any_of_them)
    monkeypatch.setattr(SplitChooser, "choose", lambda *_: rng.choice([1, 2, 2]))


@pytest.mark.parametrize(
    ("strategy", "tree_budget", "num_prompts", "is_random"),
    [
        (Strategy.DRAFT_TREES, 64, NUM_PROMPTS, False),
        (Strategy.CHAIN, 7, NUM_PROMPTS, False),
        (Strategy.DRAFT_TREES, None, 15, False),
        (Strategy.DRAFT_TREES, None, 15, True),
    ],
    ids=["trees", "chain", "as many as pay", "anything at random"],
)
async def test_every_budget_and_company_gives_the_tokens_of_plain_decoding(
    tmp_path: Path,
    strategy: Strategy,
    tree_budget: int | None,
    num_prompts: int,
    is_random: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each output is decoded alone and plainly first; then all at once, budgets and temperatures mixed at random."""
    if is_random:
        choose_at_random(monkeypatch, random.Random(1))
    pair = make_tiny_pair(tmp_path, num_layers=2, target_layer_ids=(0, 1))
    rng = random.Random(7)
    plain: list[GenerationRequest] = []
    for prompt_index in range(num_prompts):
        num_tokens = rng.randint(1, 40)
        token_ids = np.asarray([rng.randrange(2, pair.settings.vocab_size) for _ in range(num_tokens)], np.int32)
        for temperature in TEMPERATURES:
            sampling = SamplingParams(
                temperature=temperature,
                seed=rng.randrange(2**64),
                top_k=rng.choice([0, 0, 20]),
                top_p=rng.choice([1.0, 1.0, 0.8]),
                min_p=rng.choice([0.0, 0.0, 0.05]),
            )
            name = f"p{prompt_index}t{temperature}"
            plain.append(GenerationRequest(name, token_ids, num_tokens, rng.randint(1, MAX_TOKENS), sampling))
    runner = TargetRunner.load(str(pair.target), str(pair.drafter), TARGET_SETTINGS)
    drafter = DrafterRunner.load(str(pair.drafter), str(pair.target), DRAFTER_SETTINGS)
    no_cache = TARGET_SETTINGS.model_copy(update={"prefix_caching": False})
    expected = await decode_plainly(TargetRunner.load(str(pair.target), None, no_cache), plain)

    budgets = BUDGETS if strategy is Strategy.DRAFT_TREES else (7,)
    requests = [
        replace(request, sequence_id=f"{request.sequence_id}b{budget}", tree_budget=budget)
        for request in plain
        for budget in budgets
    ]
    rng.shuffle(requests)
    client = Client()
    settings = RouterSettings(
        strategy=strategy,
        tree_budget=tree_budget,
        max_running=24,
        prefill_chunk_tokens=29,
        draft_timeout_ms=60_000,
        always_waits=True,
    )
    router = Router(settings)
    with ThreadPoolExecutor(max_workers=1) as executor:
        add_models(router, runner, drafter, executor)
        for request in requests:
            router.submit(request, client)
        wanted = {request.sequence_id: expected[request.sequence_id.partition("b")[0]] for request in requests}
        await check_outputs(client, wanted, timeout_s=250.0)
        await until(lambda: not runner.num_sequences and not drafter.num_sequences)
        await router.close()
    assert runner.free_blocks == runner.info.num_blocks
    for budget in budgets if tree_budget is not None else ():
        if budget > 1:
            statistics = [client.last[r.sequence_id].statistics for r in requests if r.tree_budget == budget]
            # The tests say something only where drafts are both taken and refused.
            assert sum(s.accepted_tokens for s in statistics if s is not None) > 50
            assert sum(s.tree_nodes - s.accepted_tokens for s in statistics if s is not None) > 50
