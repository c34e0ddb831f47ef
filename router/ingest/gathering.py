"""Requests of one reading each that came in one turn of the event loop: their readings are taken as one batch.

What is done once for all of them is not done for each: decoding, routing, a place in the lane, the timer, the counting.
Whatever is not plain (a reading that is not valid, a queue without room) is left to the request itself, which then
takes the steps that it would have taken alone.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import structlog

from router.access.caller import Caller
from router.ingest.batcher import LaneFull, refused_buckets
from router.ingest.dispatch import Sent
from router.ingest.exchange import Exchange
from router.ingest.intake import Intake
from router.ingest.promises import Committed, Part
from router.ingest.routing import Chunk, Chunks
from shards.kinds import Kind, Row

_log: Final = structlog.stdlib.get_logger(__name__)


class Single(Protocol):
    """A request whose body is one JSON object. `started`: monotonic seconds."""

    exchange: Exchange
    body: bytes
    started: float

    @property
    def caller(self) -> Caller:
        """Who sent it."""

    def take(self) -> None:
        """It goes its own way from here."""

    def stored(self, now: float) -> None:
        """Its reading is committed, and was new, by `now` (monotonic)."""

    def ended(self, sent: Sent) -> None:
        """Something else became of its reading."""

    def fail(self) -> None:
        """Nothing more will come, by a fault of ours."""


class Expiries(Protocol):
    """Whoever sees to deadlines."""

    def add(self, waiting: "Share") -> None:
        """Expire it at its deadline, unless it is dropped before."""

    def drop(self, waiting: "Share") -> None:
        """It is over."""


def may_join(body: bytes) -> bool:
    """Whether a body can be a line among others: one JSON object, if it is JSON at all."""
    return body[:1] == b"{" and b"\n" not in body


class Gathering:
    """What has come in this turn of the loop."""

    def __init__(self, intake: Intake, expiries: Expiries) -> None:
        self.expiries = expiries
        self._intake = intake
        self._waiting: list[Single] = []

    def add(self, request: Single) -> None:
        """It is sent on at the end of this turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(request)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for group in _alike(waiting):
            try:
                chunks = self._take(group)
                if chunks is None:
                    for request in group:
                        request.take()
                else:
                    self._send(group, chunks)
            except Exception:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                for request in group:
                    request.fail()

    def _take(self, group: Sequence[Single]) -> Chunks | None:
        """The readings of one endpoint and tenant by shard and kind; None when they have to go alone."""
        callers, bodies = [each.caller for each in group], [each.body for each in group]
        try:
            return group[0].exchange.take_together(self._intake, callers, bodies)
        except Exception:  # noqa: BLE001 - a bug, of which one of them is the cause: the others need not suffer
            _log.exception("failed")
            return None

    def _send(self, group: Sequence[Single], chunks: Chunks) -> None:
        deadline = group[0].started + self._intake.timeout_s
        for shard, kind, chunk in self._intake.dispatcher.pieces(chunks):
            share = Share(self, shard, kind, chunk, [group[index] for index in chunk.indexes])
            share.deadline = deadline
            if self.queue(share):
                self.expiries.add(share)

    def queue(self, share: "Share") -> bool:
        """Give a share to its lane; False when it ended at once. What finds no room is told so one by one."""
        try:
            self._intake.dispatcher.queue(share.shard, share.kind, share.chunk, share)
        except LaneFull:
            for request in share.requests:
                request.take()
            return False
        return not share.done()


def _alike(requests: Iterable[Single]) -> Iterable[list[Single]]:
    """By endpoint and tenant, each in the order in which they came."""
    groups: dict[tuple[Exchange, int], list[Single]] = {}
    for request in requests:
        groups.setdefault((request.exchange, request.caller.tenant), []).append(request)
    return groups.values()


class Share(Part):
    """What becomes of the readings that some requests have in one transaction: each hears of its own."""

    __slots__ = ("_gathering", "chunk", "deadline", "kind", "requests", "shard")

    def __init__(self, gathering: Gathering, shard: str, kind: Kind, chunk: Chunk, requests: Sequence[Single]) -> None:
        super().__init__()
        self.shard = shard
        self.kind = kind
        self.chunk = chunk
        self.requests = requests
        self.deadline = 0.0
        self._gathering = gathering

    def expire(self) -> None:
        """Time is over: if it has not begun it is withdrawn, else its end is not known."""
        self.cancel()

    def tell(self) -> None:
        """Mostly all readings are new, which costs each of them its answer alone."""
        self._gathering.expiries.drop(self)
        if self._result is None:
            self._tell_refused()
        elif self._result.accepted == len(self.requests):
            now = time.monotonic()
            for request in self.requests:
                request.stored(now)
        else:
            others, new = self._result.others(), Committed(1)
            for row, index, request in self._each():
                request.ended(self._sent(row, Part(others.get(index, new))))

    def _each(self) -> Iterable[tuple[Row, int, Single]]:
        return zip(self.chunk.rows, self.chunk.indexes, self.requests, strict=True)

    def _sent(self, row: Row, part: Part) -> Sent:
        """As if the reading had been sent alone."""
        return Sent(self.shard, self.kind, Chunk([row], [0]), part)

    def _tell_refused(self) -> None:
        """A bucket that is handed over, or shut, is no matter of the others: they go again, by the same deadline."""
        buckets = refused_buckets(self._error)
        spared = [each for each in self._each() if buckets and each[0][0] not in buckets]
        for row, _, request in self._each():
            if not buckets or row[0] in buckets:
                part = Part(error=self._error)
                if self.cancelled():
                    part.cancel()
                request.ended(self._sent(row, part))
        if spared:
            rows, indexes, requests = zip(*spared, strict=True)
            rest = Share(self._gathering, self.shard, self.kind, Chunk([*rows], [*indexes]), requests)
            rest.deadline = self.deadline
            if self._gathering.queue(rest):
                # A timer of its own: those of `expiries` are in order, and this one is older.
                asyncio.get_running_loop().call_later(max(self.deadline - time.monotonic(), 0), rest.expire)
