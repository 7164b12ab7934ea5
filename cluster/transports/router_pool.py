"""All routers as a gateway sees them: one takes a request by its prefix and load, another when that fails or is full.

pool = RouterPool()
pool.set_endpoints([...])           # as often as routers are listed
pool.submit(request, sink)          # events go to the sink, each sequence's last one included
pool.cancel(sequence_id)
await pool.close()
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from cluster.requests import EventSink, GenerationRequest, TokenEvent
from cluster.transports.affinity import choose_router
from cluster.transports.authentication import OPEN, DataPlaneSecurity
from cluster.transports.dialer import Dialer
from cluster.transports.grpc_options import open_channel
from cluster.transports.router_client import RouterClient
from dflash_core.contracts import TargetInfo
from dflash_core.errors import DeadlineExceeded, DFlashError, InvalidRequest, Overloaded, Unavailable

logger = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 5.0
_RETRY_S = 0.1
_MOST_LOSSES = 64  # a request that fails whoever runs it must end
_NO_TOKENS = np.empty(0, dtype=np.int32)


@dataclass(slots=True, eq=False)
class _Submission:
    """One sequence of a client: what it asked for, and what it has got."""

    request: GenerationRequest
    sink: EventSink
    submitted_at: float  # time.monotonic(), as all times here
    deadline: float | None
    received: list[int] = field(default_factory=list)
    client: RouterClient | None = None  # None: parked
    num_losses: int = 0  # routers that took it and failed it
    parked_since: float | None = None  # of the failures in a row, without a token in between
    was_moved: bool = False  # from a router that had taken it: a full queue elsewhere is no answer to it
    timer: asyncio.TimerHandle | None = None  # fires at the deadline
    refusal: DFlashError | None = None
    full: set[RouterClient] = field(default_factory=set)  # those whose queue had no place for it, this time round

    def remaining(self, now: float) -> GenerationRequest:
        """What is still to be done, for the next router: the tokens received count as committed."""
        token_ids = self.request.token_ids
        if self.received:
            token_ids = np.concatenate([token_ids, np.asarray(self.received, dtype=np.int32)])
        timeout_ms = 0 if self.deadline is None else max(1, int((self.deadline - now) * 1e3))
        return replace(self.request, token_ids=token_ids, timeout_ms=timeout_ms)


class RouterPool:
    """Resubmission is safe since tokens depend on seed and position alone: the client sees a pause, no seam.

    A sequence that no router takes waits at most `failover_timeout_s`, or until its own deadline, which is kept here
    too: a router that is cut off keeps none. All methods must be called on one event loop.
    """

    def __init__(self, failover_timeout_s: float = 30.0, security: DataPlaneSecurity = OPEN) -> None:
        self._security = security
        self._failover_timeout_s = failover_timeout_s
        self._dialer = Dialer(self._session, "router")
        self._clients: dict[str, RouterClient] = {}
        self._submissions: dict[str, _Submission] = {}
        self._parked: dict[_Submission, None] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._unready_since: float | None = time.monotonic()  # None while a round can run somewhere

    def set_endpoints(self, addresses: Iterable[str]) -> None:
        """A router that is no longer listed keeps its stream while that works."""
        self._dialer.set_endpoints(addresses)

    @property
    def info(self) -> TargetInfo | None:
        """Of the targets behind a router that can run a round now; None while none can."""
        return next((client.target_info for client in self._clients.values() if client.is_ready), None)

    @property
    def is_ready(self) -> bool:
        return self.info is not None

    @property
    def num_active(self) -> int:
        return len(self._submissions)

    def submit(self, request: GenerationRequest, sink: EventSink) -> None:
        """Raises `InvalidRequest` for an id that is in use; every other error comes as an event."""
        if request.sequence_id in self._submissions:
            raise InvalidRequest(f"sequence_id {request.sequence_id!r} is already running", param="sequence_id")
        now = time.monotonic()
        submission = _Submission(request, sink, now, now + request.timeout_ms / 1e3 if request.timeout_ms else None)
        if request.timeout_ms:
            loop = asyncio.get_running_loop()
            submission.timer = loop.call_later(request.timeout_ms / 1e3, self._expire, submission)
        self._submissions[request.sequence_id] = submission
        self._place(submission)

    def cancel(self, sequence_id: str) -> None:
        """No further event follows. An unknown id may just be done."""
        submission = self._forget(sequence_id)
        if submission is None:
            return
        self._parked.pop(submission, None)
        if submission.client is not None:
            submission.client.cancel(sequence_id)

    async def close(self) -> None:
        """Ends every sequence with `Unavailable`, then the streams."""
        for submission in list(self._submissions.values()):
            self._fail(submission, Unavailable("the gateway is shutting down"))
        if self._retry is not None:
            self._retry.cancel()
        await self._dialer.close()

    def put(self, events: list[TokenEvent]) -> None:
        """The sink of every client: keeps what was received before anything else is done with it."""
        batches: dict[EventSink, list[TokenEvent]] = {}
        for event in events:
            submission = self._submissions.get(event.sequence_id)
            if submission is None:
                continue
            if isinstance(event.error, Unavailable):
                self._park(submission, event.error)
                continue
            if isinstance(event.error, Overloaded) and self._place_elsewhere(submission, event.error):
                continue
            if len(event.token_ids):
                submission.received += event.token_ids.tolist()
                submission.parked_since = None
            if event.is_last:
                self._forget(event.sequence_id)
            batches.setdefault(submission.sink, []).append(event)
        for sink, batch in batches.items():
            sink.put(batch)

    def _forget(self, sequence_id: str) -> _Submission | None:
        submission = self._submissions.pop(sequence_id, None)
        if submission is not None and submission.timer is not None:
            submission.timer.cancel()
        return submission

    # --- placing

    def _place(self, submission: _Submission) -> None:
        """On the router of its prefix or the least loaded; parks it where there is none."""
        ready = self._ready_for(submission)
        if not ready:
            self._park(submission, submission.refusal or Unavailable("no router with a target is connected"))
            return
        request = submission.request
        client = choose_router(request.token_ids[: request.num_prompt_tokens], ready)
        submission.client = client
        client.submit(submission.remaining(time.monotonic()), self)

    def _ready_for(self, submission: _Submission) -> list[RouterClient]:
        return [client for client in self._clients.values() if client.is_ready and client not in submission.full]

    def _place_elsewhere(self, submission: _Submission, refusal: Overloaded) -> bool:
        """Asks the routers that have not said yet that they are full; False where there are none.

        Once a router had taken it, it waits for a place as for a router that comes back.
        """
        assert submission.client is not None, f"{submission.request.sequence_id} is refused where it is not"
        submission.full.add(submission.client)
        if self._ready_for(submission):
            self._place(submission)
            return True
        if not (submission.received or submission.was_moved):
            return False
        submission.client = None  # it did not take it: that is no loss
        self._park(submission, refusal)
        return True

    def _park(self, submission: _Submission, refusal: DFlashError) -> None:
        submission.num_losses += submission.client is not None
        submission.client = None
        submission.full.clear()
        submission.refusal = refusal
        if submission.num_losses > _MOST_LOSSES:
            self._fail(submission, refusal)
            return
        if submission.parked_since is None:
            # A router may have waited for a target already: that time counts.
            now = time.monotonic()
            since = now if self._unready_since is None else self._unready_since
            submission.parked_since = max(submission.submitted_at, since)
        self._parked[submission] = None
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._place_parked)

    def _place_parked(self) -> None:
        """Again and again while anything is parked: a router may refuse at once, and must not be asked in a loop."""
        self._retry = None
        parked, self._parked = self._parked, {}
        now = time.monotonic()
        for submission in parked:
            assert submission.parked_since is not None
            assert submission.refusal is not None
            if now - submission.parked_since >= self._failover_timeout_s:
                self._fail(submission, submission.refusal)
            else:
                self._place(submission)

    def _expire(self, submission: _Submission) -> None:
        reason = f": {submission.refusal}" if submission in self._parked else ""
        error = DeadlineExceeded(f"timeout_ms {submission.request.timeout_ms} ran out{reason}")
        self._fail(submission, error)

    def _changed(self, client: RouterClient) -> None:
        """A router has or has no target from now on: what waits there goes on elsewhere, where that is possible."""
        self._note_readiness()
        if client.target_info is not None or client.is_draining or not self.is_ready:
            return
        for submission in [each for each in self._submissions.values() if each.client is client]:
            client.cancel(submission.request.sequence_id)
            submission.client, submission.was_moved = None, True
            submission.full.clear()
            self._place(submission)

    def _note_readiness(self) -> None:
        if self.is_ready:
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = time.monotonic()

    def _fail(self, submission: _Submission, error: DFlashError) -> None:
        sequence_id = submission.request.sequence_id
        self.cancel(sequence_id)
        submission.sink.put([TokenEvent(sequence_id, _NO_TOKENS, error=error)])

    async def _session(self, address: str) -> None:
        async with open_channel(address, self._security) as channel:
            client = RouterClient(address, channel, self._changed)
            run = asyncio.create_task(client.run())
            try:
                async with asyncio.timeout(_HELLO_TIMEOUT_S):
                    hello = asyncio.create_task(client.said_hello.wait())
                    await asyncio.wait({run, hello}, return_when=asyncio.FIRST_COMPLETED)
                    hello.cancel()
                if not run.done():
                    self._clients[address] = client
                    self._note_readiness()
                    self._dialer.worked(address)
                await run
            except TimeoutError:
                raise Unavailable(f"router {address} said no hello") from None
            finally:
                self._clients.pop(address, None)
                self._note_readiness()
                run.cancel()
