"""Who of the queue starts now, on which target, and with which drafter."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cluster.router.links import DrafterLink, TargetLink
from cluster.router.sequence import PREFILLING, Sequence
from cluster.router.waiting import WaitingQueue

# A neighbour costs the others as much as so many tokens to prefill, as far as placing is concerned: a known prefix of
# 1024 tokens outweighs sixteen sequences more, one of 64 tokens a single one.
_TOKENS_PER_NEIGHBOUR = 64
# How many that fit no target now may be looked at behind one another, where targets differ in what they can hold.
_MOST_PASSED_OVER = 64


def place_waiting(queue: WaitingQueue, links: Iterable[TargetLink], now: float) -> None:
    """Starts sequences in their order while targets have room.

    One that fits nowhere now has a target set apart until it fits there: nobody behind it may go to that one, so that
    it is not overtaken for ever; they may go to the others. Who is before it in the queue may: by the queue's order
    that ends with time.

    `now`: of the router's clock. One whose deadline is over is not started: its timer is due and takes it out.
    """
    open_links = [link for link in links if link.has_a_place]
    place = num_started = 0
    while open_links and place < _MOST_PASSED_OVER and (sequence := queue.at(place)) is not None:
        if sequence.deadline is not None and now >= sequence.deadline:
            place += 1
            continue
        link = choose_target(sequence, open_links)
        if link is not None:
            queue.remove(sequence)
            _start(sequence, link, now)
            num_started += 1
            if not link.has_a_place:
                open_links.remove(link)
        else:
            place += 1
            set_apart = _set_apart(sequence, open_links)
            if set_apart is not None:
                open_links.remove(set_apart)
    queue.drain_rate.add(num_started, now)


def choose_target(sequence: Sequence, links: Collection[TargetLink]) -> TargetLink | None:
    """Of those with room: the one with the longest known prefix of it, unless another has less to do by more than that
    prefix saves; so the least loaded where nobody knows it. None where nobody has room."""
    return min(
        (link for link in links if link.has_room_for(sequence)),
        key=lambda link: (load_tokens(link) - link.num_known_tokens(sequence), len(link.sequences)),
        default=None,
    )


def load_tokens(link: TargetLink) -> int:
    """What a target has to do, in tokens to prefill."""
    return link.num_uncached_tokens + _TOKENS_PER_NEIGHBOUR * len(link.sequences)


def choose_drafter(target: TargetLink, links: Iterable[DrafterLink]) -> DrafterLink | None:
    """The least used one that understands this target's features, a slow one only where all are."""
    fc_fingerprint = target.info.fc_fingerprint
    if not fc_fingerprint:
        return None
    fitting = [link for link in links if link.info.fingerprint == fc_fingerprint]
    return min(fitting, key=lambda link: (link.is_slow, link.num_sequences), default=None)


def _set_apart(sequence: Sequence, open_links: Collection[TargetLink]) -> TargetLink | None:
    """The target on which it waits for room: the same as before, while that is there; first, the one that lacks least.

    None where it waits for one that is closed to it: set apart for another before it, or full.
    """
    if sequence.waits_for is None or sequence.waits_for.is_lost:
        able = [link for link in open_links if link.could_hold(sequence)]
        sequence.waits_for = min(able, key=lambda link: link.num_blocks_lacking(sequence), default=None)
    return sequence.waits_for if sequence.waits_for in open_links else None


def _start(sequence: Sequence, link: TargetLink, now: float) -> None:
    sequence.waits_for = None
    sequence.phase = PREFILLING
    if sequence.admitted_at is None:
        sequence.admitted_at = now
    link.admit(sequence)
