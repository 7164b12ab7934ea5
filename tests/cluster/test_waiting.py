"""The queue against a list that is searched from end to end, and the time that it tells a refused client."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.requests import LatencyClass
from cluster.router.drain_rate import DrainRate
from cluster.router.sequence import Sequence
from cluster.router.waiting import WaitingQueue
from tests.cluster.queue_cases import make_sequence

S_PER_TOKEN = 0.5


@dataclass
class _Entry:
    sequence: Sequence
    num_tokens: int
    came: int  # the how manieth to enter the queue
    is_put_back: bool = False
    is_aside: bool = False


def _goes_before(one: _Entry, other: _Entry) -> bool:
    """The rules one by one, as the module's docstring has them."""
    if one.is_put_back or other.is_put_back:
        return one.is_put_back and (not other.is_put_back or one.came > other.came)
    ran, other_ran = one.sequence.num_output > 0, other.sequence.num_output > 0
    if ran or other_ran:
        return ran and (not other_ran or one.came < other.came)
    mine, others = one.sequence.request, other.sequence.request
    if mine.priority != others.priority:
        return mine.priority < others.priority
    if mine.latency_class is not others.latency_class:
        names = [latency_class.value for latency_class in (mine.latency_class, others.latency_class)]
        return names in (["interactive", "standard"], ["interactive", "batch"], ["standard", "batch"])
    time = one.sequence.submitted_at + S_PER_TOKEN * one.num_tokens
    other_time = other.sequence.submitted_at + S_PER_TOKEN * other.num_tokens
    return time < other_time or (time == other_time and one.came < other.came)


@dataclass
class _Oracle:
    entries: list[_Entry] = field(default_factory=list)

    def in_order(self, is_aside: bool) -> list[Sequence]:
        left = [entry for entry in self.entries if entry.is_aside is is_aside]
        order = []
        while left:
            (first,) = [one for one in left if all(one is other or _goes_before(one, other) for other in left)]
            left.remove(first)
            order.append(first.sequence)
        return order


class QueueMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.queue = WaitingQueue(S_PER_TOKEN)
        self.oracle = _Oracle()
        self.num_came = 0

    def _enter(self, sequence: Sequence, num_tokens: int = 0, is_put_back: bool = False) -> None:
        self.num_came += 1
        self.oracle.entries.append(_Entry(sequence, num_tokens, self.num_came, is_put_back))

    @rule(
        priority=st.integers(-1, 1),
        latency_class=st.sampled_from(LatencyClass),
        num_tokens=st.integers(1, 4),
        num_output=st.sampled_from([0, 0, 0, 2]),
        submitted_at=st.integers(0, 3),
    )
    def push(
        self, priority: int, latency_class: LatencyClass, num_tokens: int, num_output: int, submitted_at: int
    ) -> None:
        sequence = make_sequence(
            f"s{self.num_came}",
            num_output=num_output,
            submitted_at=float(submitted_at),
            priority=priority,
            latency_class=latency_class,
        )
        rank = self.queue.rank(sequence, num_tokens)
        displaced = self.queue.displaced_by(rank)
        order = self.oracle.in_order(is_aside=False)
        expected = order[-1] if order and self._is_worth_more(sequence, order[-1]) else None
        assert displaced is expected
        self.queue.push(sequence, rank)
        self._enter(sequence, num_tokens)

    def _is_worth_more(self, sequence: Sequence, other: Sequence) -> bool:
        (entry,) = [entry for entry in self.oracle.entries if entry.sequence is other]
        if entry.is_put_back or other.num_output > 0:
            return False
        if sequence.num_output > 0:
            return True
        mine, others = sequence.request, other.request
        order = list(LatencyClass)
        return (mine.priority, order.index(mine.latency_class)) < (others.priority, order.index(others.latency_class))

    @rule()
    def put_back(self) -> None:
        sequence = make_sequence(f"s{self.num_came}")
        self.queue.put_back(sequence)
        self._enter(sequence, is_put_back=True)

    @precondition(lambda self: self.oracle.entries)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.oracle.entries))
        self.queue.remove(entry.sequence)
        self.oracle.entries.remove(entry)

    @precondition(lambda self: self.oracle.entries)
    @rule(data=st.data())
    def set_aside_or_take_back(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.oracle.entries))
        if entry.is_aside:
            self.queue.take_back(entry.sequence)
        else:
            self.queue.set_aside(entry.sequence)
        entry.is_aside = not entry.is_aside

    @invariant()
    def same_order(self) -> None:
        order = self.oracle.in_order(is_aside=False)
        assert [self.queue.at(place) for place in range(len(order) + 1)] == [*order, None]
        assert set(self.queue.aside) == set(self.oracle.in_order(is_aside=True))
        assert list(self.queue) == [*order, *self.queue.aside]
        assert len(self.queue) == len(self.oracle.entries)


TestQueue = QueueMachine.TestCase


def test_a_long_one_is_overtaken_for_a_bounded_time() -> None:
    queue = WaitingQueue(s_per_token=0.001)
    long = make_sequence("long", submitted_at=10.0)
    queue.push(long, queue.rank(long, num_tokens=4000))
    for name, submitted_at in (("before", 13.8), ("after", 14.0)):
        short = make_sequence(name, submitted_at=submitted_at)
        queue.push(short, queue.rank(short, num_tokens=100))
    assert [sequence.request.sequence_id for sequence in queue] == ["before", "long", "after"]


# --- when to come back


def test_nothing_is_known_before_anybody_left() -> None:
    assert DrainRate().seconds_for(1000, now=5.0) == 1.0


@pytest.mark.parametrize("num_seconds", [1, 5, 30, 300])
def test_a_steady_rate_is_found(num_seconds: int) -> None:
    rate = DrainRate()
    for step in range(10 * num_seconds):
        rate.add(2, now=100.0 + step / 10)
    assert rate.seconds_for(200, now=100.0 + num_seconds) == pytest.approx(10.0, rel=0.06)


def test_a_queue_that_stands_still_is_given_the_longest_time_in_the_end() -> None:
    rate = DrainRate()
    rate.add(10, now=0.0)
    times = [rate.seconds_for(10, now) for now in (1.0, 10.0, 100.0, 1e6)]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (pytest.approx(1.0, rel=0.05), 60.0)
    rate.add(0, now=200.0)
    assert rate.seconds_for(10, now=200.0) == 60.0
