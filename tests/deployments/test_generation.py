"""Requests to text and statistics, with routers that answer from a script."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from cluster.requests import FinishReason, LatencyClass
from deployments.border_settings import LimitSettings
from deployments.generation import GenerationService
from deployments.job import GenerationJob, JobStatistics, TextDelta
from dflash_core.contracts import SamplingParams
from dflash_core.errors import (
    DeadlineExceeded,
    DFlashError,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    Unavailable,
    UnknownModel,
)
from dflash_core.sampling.noise import output_seed
from tests.deployments.scripted import INFO, TOKENIZER, ScriptedRouters


def _service(routers: ScriptedRouters, **limits: int) -> GenerationService:
    return GenerationService(routers, TOKENIZER, "tiny", LimitSettings(**limits))


async def _run(routers: ScriptedRouters, job: GenerationJob) -> tuple[list[TextDelta], JobStatistics]:
    statistics = JobStatistics()
    return [delta async for delta in _service(routers).generate(job, statistics)], statistics


async def test_text_usage_and_statistics() -> None:
    routers = ScriptedRouters(["a", "bcd", "ef"])
    deltas, statistics = await _run(routers, GenerationJob(model="tiny", prompts=("xy",)))
    assert [(delta.text, delta.finish_reason) for delta in deltas] == [
        ("a", None),
        ("bcd", None),
        ("ef", FinishReason.LENGTH),
    ]
    assert (statistics.prompt_tokens, statistics.output_tokens, statistics.rounds) == (2, 6, 3)
    assert statistics.mean_acceptance_length == 2.5
    assert statistics.tree_nodes == 8
    assert routers.cancelled == []


async def test_outputs_have_their_own_seeds_and_ids() -> None:
    routers = ScriptedRouters()
    job = GenerationJob(model=None, prompts=("x", [1, 2, 3]), num_choices=2, sampling=SamplingParams(1.0, seed=5))
    deltas, statistics = await _run(routers, job)
    assert [request.sampling.seed for request in routers.requests] == [
        output_seed(5, prompt, choice) for prompt in range(2) for choice in range(2)
    ]
    assert len({request.sequence_id for request in routers.requests}) == 4
    assert [request.stop_token_ids for request in routers.requests] == [(0,)] * 4
    assert sorted({delta.index for delta in deltas}) == [0, 1, 2, 3]
    assert (statistics.prompt_tokens, statistics.output_tokens) == (4, 12)


async def test_every_output_is_as_urgent_as_its_job() -> None:
    routers = ScriptedRouters()
    job = GenerationJob(None, ("x",), num_choices=2, latency_class=LatencyClass.BATCH, priority=-7)
    await _run(routers, job)
    assert [(request.latency_class, request.priority) for request in routers.requests] == [(LatencyClass.BATCH, -7)] * 2


async def test_a_prompt_counts_once_however_many_choices_it_has() -> None:
    """Its cached tokens too, else more were cached than there are."""
    job = GenerationJob(model=None, prompts=([1, 2, 3], [4, 5, 6]), num_choices=3)
    _, statistics = await _run(ScriptedRouters(["ab", "c"], cached_tokens=2), job)
    assert (statistics.prompt_tokens, statistics.cached_tokens) == (6, 4)


@pytest.mark.parametrize("pieces", [("a", "bcd", "ef"), ("abcdef",), ("a", "b", "c", "d", "e", "f")])
async def test_a_stop_string_ends_an_output_alike_however_the_tokens_come(pieces: tuple[str, ...]) -> None:
    routers = ScriptedRouters(pieces)
    deltas, statistics = await _run(routers, GenerationJob(model=None, prompts=("x",), stop=("abcde", "cd")))
    assert "".join(delta.text for delta in deltas) == "ab"
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert statistics.output_tokens == 4
    if len(pieces) > 1:
        assert routers.cancelled == [routers.requests[0].sequence_id]


async def test_leaving_early_cancels_what_runs() -> None:
    routers = ScriptedRouters(["a", "b"], error=None)
    service = _service(routers)
    job = GenerationJob(model=None, prompts=("x", "y"))
    async with aclosing(service.generate(job, JobStatistics())) as deltas:
        await anext(deltas)
        assert service.num_open_outputs == 2
    assert sorted(routers.cancelled) == sorted(request.sequence_id for request in routers.requests)
    assert service.num_open_outputs == 0


async def test_a_cancelled_task_cancels_what_runs() -> None:
    routers = ScriptedRouters([])
    task = asyncio.create_task(_run(routers, GenerationJob(model=None, prompts=("x",))))
    await asyncio.wait_for(routers.submitted.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert routers.cancelled == [routers.requests[0].sequence_id]


async def test_an_error_of_one_output_ends_the_job() -> None:
    routers = ScriptedRouters(["a"], error=Overloaded("full"))
    with pytest.raises(Overloaded):
        await _run(routers, GenerationJob(model=None, prompts=("x", "y")))
    assert len(routers.cancelled) == 1


@pytest.mark.parametrize(
    ("job", "error", "words"),
    [
        (GenerationJob(model="other", prompts=("x",)), UnknownModel, ["'other'", "'tiny'"]),
        (GenerationJob(model=None, prompts=("",)), InvalidRequest, ["empty"]),
        (GenerationJob(model=None, prompts=([],)), InvalidRequest, ["empty"]),
        (GenerationJob(model=None, prompts=([256],)), InvalidRequest, ["256"]),
        (GenerationJob(model=None, prompts=("x" * 40,)), PromptTooLong, ["40", "16", "32"]),
        (GenerationJob(model=None, prompts=("x",), max_tokens=100), PromptTooLong, ["100", "32"]),
        (GenerationJob(model=None, prompts=("x",) * 65), InvalidRequest, ["65", "64"]),
        (GenerationJob(model=None, prompts=("x",), tree_budget=2000), InvalidRequest, ["2000", "1024"]),
    ],
)
async def test_refusals_hold_both_values(job: GenerationJob, error: type[DFlashError], words: list[str]) -> None:
    routers = ScriptedRouters()
    with pytest.raises(error) as caught:
        await _run(routers, job)
    assert all(word in caught.value.message for word in words)
    assert routers.requests == []


async def test_requests_wait_for_a_target_only_where_there_was_one() -> None:
    routers = ScriptedRouters()
    service = _service(routers)
    job = GenerationJob(model=None, prompts=("x",))
    routers.info = None
    assert not service.is_ready
    with pytest.raises(Unavailable):
        await anext(service.generate(job, JobStatistics()))
    routers.info = INFO
    assert service.max_model_len == INFO.max_model_len
    routers.info = None  # lost: the pool of routers holds requests until one is back
    assert not service.is_ready
    assert [delta.text async for delta in service.generate(job, JobStatistics())] == ["a", "bc"]


async def test_a_gateway_takes_a_bounded_number_of_outputs() -> None:
    """Those that wait for the first target count: they take memory like any other."""
    routers = ScriptedRouters()
    routers.info = None
    service = GenerationService(routers, TOKENIZER, "tiny", LimitSettings(max_open_outputs=3), 60.0)
    waiting = asyncio.create_task(_collect(service, GenerationJob(None, ("x",), num_choices=2)))
    while service.num_open_outputs < 2:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 outputs are open at this gateway and 2 more are wanted, the limit is 3"):
        await _collect(service, GenerationJob(None, ("x", "y")))
    routers.info = INFO
    assert await waiting
    assert service.num_open_outputs == 0
    assert await _collect(service, GenerationJob(None, ("x", "y")))


async def test_a_deadline_runs_while_there_is_no_target_yet() -> None:
    routers = ScriptedRouters()
    routers.info = None
    service = GenerationService(routers, TOKENIZER, "tiny", LimitSettings(), 60.0)
    with pytest.raises(DeadlineExceeded, match="timeout_ms 20 ran out"):
        await _collect(service, GenerationJob(None, ("x",), timeout_ms=20))
    late = asyncio.create_task(_collect(service, GenerationJob(None, ("x",), timeout_ms=60_000)))
    while not service.num_open_outputs:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    routers.info = INFO
    await late
    assert 0 < routers.requests[0].timeout_ms < 60_000


async def _collect(service: GenerationService, job: GenerationJob) -> list[TextDelta]:
    return [delta async for delta in service.generate(job, JobStatistics())]
