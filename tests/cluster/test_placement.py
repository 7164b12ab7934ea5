"""Who starts on which target: the queue over links to targets that never run a round."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.requests import GenerationRequest
from cluster.router.links import TargetLink
from cluster.router.placement import load_tokens, place_waiting
from cluster.router.sequence import Phase, Sequence
from cluster.router.waiting import WaitingQueue
from dflash_core.contracts import SamplingParams, SequenceKey
from tests.cluster.queue_cases import make_sequence
from tests.cluster.simulated_client import Client
from tests.cluster.simulated_drafter import Network
from tests.cluster.simulated_target import SimulatedTarget


def make_link(max_running: int = 256, **options: Any) -> TargetLink:
    options = {"max_rows": 800, "max_tree_rows": 400, "max_model_len": 4000, **options}
    return TargetLink(SimulatedTarget(Network(random.Random(0)), **options), max_running)


def enqueue(queue: WaitingQueue, *sequences: Sequence) -> None:
    for sequence in sequences:
        queue.push(sequence, queue.rank(sequence, len(sequence.token_ids)))


def with_tokens(name: str, token_ids: list[int]) -> Sequence:
    request = GenerationRequest(name, np.asarray(token_ids, np.int32), len(token_ids), 20, SamplingParams())
    return Sequence(request, Client(), SequenceKey(name, 1), 0.0, token_ids)


def names(link: TargetLink) -> list[str]:
    return [sequence.request.sequence_id for sequence in link.sequences]


async def test_equal_ones_are_spread() -> None:
    queue, links = WaitingQueue(0.0), [make_link(), make_link(), make_link()]
    enqueue(queue, *(make_sequence(f"s{i}") for i in range(9)))
    place_waiting(queue, links, now=0.0)
    assert [names(link) for link in links] == [["s0", "s3", "s6"], ["s1", "s4", "s7"], ["s2", "s5", "s8"]]


async def test_who_has_much_to_prefill_gets_fewer() -> None:
    queue, links = WaitingQueue(0.0), [make_link(), make_link()]
    enqueue(queue, make_sequence("long", num_tokens=300), *(make_sequence(f"s{i}") for i in range(3)))
    place_waiting(queue, links, now=0.0)
    assert [names(link) for link in links] == [["long"], ["s0", "s1", "s2"]]


async def test_what_waits_for_room_is_not_overtaken_by_those_behind_it() -> None:
    """It fits nowhere now: one target is set apart for it, the one that lacks least, and stays so."""
    queue, links = WaitingQueue(0.0), [make_link(num_blocks=20), make_link(num_blocks=20)]
    first = [make_sequence("a", num_tokens=64), make_sequence("b", num_tokens=40)]
    enqueue(queue, *first)
    place_waiting(queue, links, now=0.0)
    big = make_sequence("big", num_tokens=130)
    enqueue(queue, big, *(make_sequence(f"s{i}", num_tokens=8) for i in range(3)))
    place_waiting(queue, links, now=0.0)
    assert [names(link) for link in links] == [["a", "s0", "s1", "s2"], ["b"]]
    links[0].remove(first[0])  # now the other lacks less
    enqueue(queue, make_sequence("s3", num_tokens=8))
    place_waiting(queue, links, now=0.0)
    assert [names(link) for link in links] == [["s0", "s1", "s2", "s3"], ["b"]]
    links[1].remove(first[1])
    place_waiting(queue, links, now=0.0)
    assert names(links[1]) == ["big"]


async def test_a_second_big_one_waits_for_another_target() -> None:
    queue, links = WaitingQueue(0.0), [make_link(num_blocks=20), make_link(num_blocks=20)]
    enqueue(queue, make_sequence("a", num_tokens=64), make_sequence("b", num_tokens=64))
    place_waiting(queue, links, now=0.0)
    enqueue(queue, *(make_sequence(name, num_tokens=130) for name in ("big", "bigger")), make_sequence("small"))
    place_waiting(queue, links, now=0.0)
    assert [names(link) for link in links] == [["a"], ["b"]]
    links[0].remove(next(iter(links[0].sequences)))
    links[1].remove(next(iter(links[1].sequences)))
    place_waiting(queue, links, now=0.0)
    assert [names(link) for link in links] == [["big", "small"], ["bigger"]]


async def test_what_only_a_full_target_could_hold_holds_up_nobody() -> None:
    queue = WaitingQueue(0.0)
    wide, narrow = make_link(num_blocks=20, max_running=1), make_link(num_blocks=20, max_model_len=40)
    enqueue(queue, make_sequence("a", num_tokens=100))
    place_waiting(queue, [wide, narrow], now=0.0)
    enqueue(queue, make_sequence("b", num_tokens=100), make_sequence("small"))
    place_waiting(queue, [wide, narrow], now=0.0)
    assert (names(wide), names(narrow)) == (["a"], ["small"])


async def test_who_goes_before_may_take_what_another_waits_for() -> None:
    queue, link = WaitingQueue(0.0), make_link(num_blocks=20)
    enqueue(queue, make_sequence("a", num_tokens=64))
    place_waiting(queue, [link], now=0.0)
    enqueue(queue, make_sequence("big", num_tokens=130), make_sequence("urgent", priority=-1), make_sequence("late"))
    place_waiting(queue, [link], now=0.0)
    assert names(link) == ["a", "urgent"]


async def test_nobody_starts_after_its_deadline() -> None:
    queue, link = WaitingQueue(0.0), make_link()
    late, early = make_sequence("late"), make_sequence("early")
    late.deadline, early.deadline = 5.0, 5.1
    enqueue(queue, late, early)
    place_waiting(queue, [link], now=5.0)
    assert names(link) == ["early"]
    assert late.phase is Phase.WAITING
    assert list(queue) == [late]
    assert early.admitted_at == 5.0


# --- prefixes

PREFIX = list(range(80))


@pytest.mark.parametrize("first", [0, 1])
async def test_a_known_prefix_decides_between_equals(first: int) -> None:
    queue, links = WaitingQueue(0.0), [make_link(), make_link()]
    links[first].prefixes.add(with_tokens("before", PREFIX).prefix_hashes)
    enqueue(queue, *(with_tokens(f"s{i}", [*PREFIX, i]) for i in range(2)))
    place_waiting(queue, links, now=0.0)
    assert names(links[first]) == ["s0", "s1"]


async def test_more_neighbours_than_a_prefix_is_worth_send_it_elsewhere() -> None:
    queue, links = WaitingQueue(0.0), [make_link(), make_link()]
    links[0].prefixes.add(with_tokens("before", PREFIX).prefix_hashes)
    enqueue(queue, *(with_tokens(f"s{i}", [*PREFIX, i]) for i in range(6)))
    place_waiting(queue, links, now=0.0)
    # The third would have two neighbours: its 80 tokens are worth one. Then both know the prefix.
    assert [names(link) for link in links] == [["s0", "s1", "s3", "s5"], ["s2", "s4"]]


async def test_a_longer_prefix_is_worth_more() -> None:
    queue, links = WaitingQueue(0.0), [make_link(num_blocks=4000), make_link(num_blocks=4000)]
    long_prefix = list(range(1024))
    links[0].prefixes.add(with_tokens("before", long_prefix).prefix_hashes)
    enqueue(queue, *(with_tokens(f"s{i}", [*long_prefix, i]) for i in range(16)))
    place_waiting(queue, links, now=0.0)
    assert [len(link.sequences) for link in links] == [16, 0]


async def test_a_prefix_without_room_sends_it_elsewhere() -> None:
    queue, links = WaitingQueue(0.0), [make_link(max_running=1), make_link()]
    links[0].prefixes.add(with_tokens("before", PREFIX).prefix_hashes)
    enqueue(queue, *(with_tokens(f"s{i}", [*PREFIX, i]) for i in range(2)))
    place_waiting(queue, links, now=0.0)
    assert [names(link) for link in links] == [["s0"], ["s1"]]


async def test_whole_blocks_of_the_cache_count_and_one_token_is_always_computed() -> None:
    link = make_link(kv_block_size=24)
    link.prefixes.add(with_tokens("before", PREFIX).prefix_hashes)
    assert [link.num_known_tokens(with_tokens("s", PREFIX[:n])) for n in (15, 31, 32, 47, 48, 49, 64)] == [
        *(0, 0, 24, 24, 24, 48, 48),
    ]


async def test_what_a_sequence_wrote_is_known_when_it_ends() -> None:
    """So that the next turn of a conversation finds it; what was not committed there is not."""
    link = make_link()
    sequence = with_tokens("s", PREFIX[:20])
    link.admit(sequence)
    sequence.token_ids += range(100, 140)
    sequence.cached_len = 50
    link.recount(sequence)
    link.remove(sequence)
    next_turn = with_tokens("t", [*PREFIX[:20], *range(100, 140), 7])
    assert link.num_known_tokens(next_turn) == 48


async def test_expected_hits_are_no_load_until_the_target_says_otherwise() -> None:
    link = make_link()
    link.prefixes.add(with_tokens("before", PREFIX).prefix_hashes)
    sequence = with_tokens("s", [*PREFIX, 1, 2])
    link.admit(sequence)
    assert (link.num_uncached_tokens, load_tokens(link)) == (2, 66)
    sequence.cached_len = 81
    link.recount(sequence)
    assert link.num_uncached_tokens == 1
    link.drop(sequence)
    assert (link.num_uncached_tokens, link.num_claimed_blocks) == (0, 0)


async def test_a_lost_target_s_prefixes_are_forgotten_with_it() -> None:
    link = make_link()
    sequence = with_tokens("s", PREFIX)
    link.admit(sequence)
    link.is_lost = True
    sequence.cached_len = 80
    link.remove(sequence)
    assert make_link().num_known_tokens(replace(sequence)) == 0


# --- claims


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 60), st.integers(0, 100), st.integers(1, 20))
def test_claims_by_counting_blocks(
    num_prompt: int, num_output: int, max_tokens: int, num_cached: int, kv_block_size: int
) -> None:
    """One block after another, as the target would take them."""
    link = make_link(kv_block_size=kv_block_size)
    num_output = min(num_output, max_tokens)
    sequence = make_sequence("s", num_tokens=num_prompt, num_output=num_output, max_tokens=max_tokens)
    sequence.cached_len = min(num_cached, num_prompt + num_output)
    held = {position // kv_block_size for position in range(sequence.cached_len)}
    committed = {position // kv_block_size for position in range(num_prompt + num_output)}
    reachable = {position // kv_block_size for position in range(num_prompt + max_tokens)}
    soon = committed | ({max(committed) + 1} & reachable)
    assert link.claim(sequence) == len(soon - held)
