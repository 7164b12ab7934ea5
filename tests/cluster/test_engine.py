"""The offline engine: one prompt or many, streams, threads and event loops, and what it refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import LLMInferenceEngine
from cluster.requests import FinishReason
from dflash_core.errors import (
    CheckpointNotFound,
    DeadlineExceeded,
    InvalidRequest,
    InvalidSettings,
    PromptTooLong,
    Unavailable,
)
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from tests.tiny import TinyPair, make_tiny_pair
from tests.waiting import until

PROMPT = "def push(self, item):"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(Path(tmp_path_factory.mktemp("pair")), num_layers=2, target_layer_ids=(0, 1))


def make_engine(pair: TinyPair, drafter: str | None = "", **options: Any) -> LLMInferenceEngine:
    return LLMInferenceEngine(
        str(pair.target),
        str(pair.drafter) if drafter == "" else drafter,
        target_settings=TargetSettings(device="cpu", dtype="float32", num_blocks=64),
        drafter_settings=DrafterSettings(device="cpu", dtype="float32", num_blocks=64),
        **options,
    )


@pytest.fixture(scope="module")
def engine(pair: TinyPair) -> Iterator[LLMInferenceEngine]:
    # A fixed budget, since speculation does not pay for a model as small as this.
    with make_engine(pair, tree_budget=16) as engine:
        yield engine


def test_strategies_agree(pair: TinyPair, engine: LLMInferenceEngine) -> None:
    trees = engine.generate(PROMPT, max_length=24, temperature=0.7, seed=5)
    for strategy in ("block_diffusion", "none"):
        with make_engine(pair, speculative_decoding_strategy=strategy) as other:
            result = other.generate(PROMPT, max_length=24, temperature=0.7, seed=5)
        assert result.token_ids == trees.token_ids
        assert result.text == trees.text
    assert trees.statistics.rounds < 24
    with make_engine(pair, drafter=None) as other:
        assert other.generate(PROMPT, max_length=24, temperature=0.7, seed=5).statistics.rounds == 24


def test_one_or_many_prompts(engine: LLMInferenceEngine) -> None:
    alone = engine.generate(PROMPT, max_length=12, ignore_eos=True)
    assert len(alone.token_ids) == 12
    assert alone.finish_reason is FinishReason.LENGTH
    assert alone.text == engine.tokenizer.decode(alone.token_ids)
    token_ids = engine.tokenizer.encode(PROMPT).ids
    assert engine.generate(token_ids, max_length=12, ignore_eos=True).token_ids == alone.token_ids
    many = engine.generate([PROMPT, "class", token_ids], max_length=12, ignore_eos=True)
    assert [len(result.token_ids) for result in many] == [12, 12, 12]
    assert many[0].token_ids == many[2].token_ids == alone.token_ids


def test_seeds_make_sampling_repeatable(engine: LLMInferenceEngine) -> None:
    outputs = [engine.generate(PROMPT, max_length=16, temperature=1.0, seed=seed).token_ids for seed in (1, 2, 1)]
    assert outputs[0] == outputs[2] != outputs[1]
    drawn = [engine.generate(PROMPT, max_length=16, temperature=1.0).token_ids for _ in range(2)]
    assert drawn[0] != drawn[1]
    first, second = engine.generate([PROMPT, PROMPT], max_length=16, temperature=1.0, seed=1)
    assert first.token_ids == outputs[0] != second.token_ids


def test_stream_gives_the_same_text(engine: LLMInferenceEngine) -> None:
    whole = engine.generate(PROMPT, max_length=24, temperature=1.0, seed=3)
    pieces = list(engine.stream(PROMPT, max_length=24, temperature=1.0, seed=3))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_stop_strings_end_the_output(engine: LLMInferenceEngine) -> None:
    whole = engine.generate(PROMPT, max_length=32, temperature=1.0, seed=3).text
    stop = whole[10:12]
    cut = engine.generate(PROMPT, max_length=32, temperature=1.0, seed=3, stop=[stop])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason is FinishReason.STOP
    assert cut.statistics.rounds > 0
    assert "".join(engine.stream(PROMPT, max_length=32, temperature=1.0, seed=3, stop=[stop])) == cut.text


async def test_closing_a_stream_frees_its_blocks(engine: LLMInferenceEngine) -> None:
    stream = engine.stream(PROMPT, max_length=400, ignore_eos=True)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    astream = engine.astream(PROMPT, max_length=400, ignore_eos=True)
    await anext(astream)
    await astream.aclose()  # type: ignore[attr-defined]
    task = asyncio.create_task(engine.agenerate(PROMPT, max_length=400, ignore_eos=True))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: engine._router.num_active == engine._router.num_running == 0)


async def test_async_forms(engine: LLMInferenceEngine) -> None:
    whole = engine.generate(PROMPT, max_length=12)
    results = await asyncio.gather(*(engine.agenerate(PROMPT, max_length=12) for _ in range(3)))
    assert [result.token_ids for result in results] == [whole.token_ids] * 3  # type: ignore[union-attr]
    assert "".join([piece async for piece in engine.astream(PROMPT, max_length=12)]) == whole.text


def test_threads_share_the_rounds(engine: LLMInferenceEngine) -> None:
    expected = [engine.generate(PROMPT, max_length=12, temperature=1.0, seed=seed).token_ids for seed in range(4)]
    got: dict[int, list[int]] = {}

    def run(seed: int) -> None:
        got[seed] = engine.generate(PROMPT, max_length=12, temperature=1.0, seed=seed).token_ids

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[seed] for seed in range(4)] == expected


def test_refusals(pair: TinyPair, engine: LLMInferenceEngine) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        engine.generate([])
    with pytest.raises(InvalidRequest, match="at least one token"):
        engine.generate("")
    with pytest.raises(InvalidRequest, match="got 0"):
        engine.generate(PROMPT, max_length=0)
    with pytest.raises(InvalidRequest, match="temperature .* got -1"):
        engine.generate(PROMPT, temperature=-1.0)
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        engine.generate([10**6])
    with pytest.raises(InvalidRequest, match="string or token ids"):
        engine.generate([1, "two"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="list of strings"):
        engine.generate(PROMPT, stop="\n")
    with pytest.raises(InvalidRequest, match="one of 'interactive', 'standard', 'batch', got 'x'"):
        engine.generate(PROMPT, latency_class="x")
    with pytest.raises(InvalidRequest, match=r"priority .* got 2147483648"):
        engine.generate(PROMPT, priority=2**31)
    with pytest.raises(PromptTooLong, match="more than the model's context of 512"):
        engine.generate(PROMPT, max_length=1000)
    with pytest.raises(DeadlineExceeded, match="timeout_ms 1 "):
        engine.generate(PROMPT, max_length=400, ignore_eos=True, timeout_ms=1)
    with pytest.raises(TypeError, match="temprature"):
        engine.generate(PROMPT, temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(InvalidSettings, match="'trees'"):
        make_engine(pair, speculative_decoding_strategy="trees")
    with pytest.raises(CheckpointNotFound):
        LLMInferenceEngine("/nowhere/at/all")
    urgent = engine.generate(PROMPT, max_length=3, ignore_eos=True, priority=-1, latency_class="interactive")
    assert len(urgent.token_ids) == 3


def test_a_closed_engine_says_so(pair: TinyPair) -> None:
    engine = make_engine(pair)
    stream = engine.stream(PROMPT, max_length=100)
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(Unavailable, match="closed"):
        list(stream)
    with pytest.raises(Unavailable, match="closed"):
        engine.generate(PROMPT)


def test_importing_cluster_brings_no_torch() -> None:
    code = (
        "import sys, cluster, cluster.engine, cluster.text, cluster.transports.router_service, "
        "cluster.transports.grpc_drafter, cluster.transports.router_pool, cluster.wire.rounds; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
