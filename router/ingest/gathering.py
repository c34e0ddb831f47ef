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
from router.ingest.batcher import LaneFull
from router.ingest.dispatch import Sent
from router.ingest.exchange import Exchange
from router.ingest.intake import Intake
from router.ingest.promises import Part
from router.ingest.routing import Chunk
from shards.kinds import Kind

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
        self._intake = intake
        self._expiries = expiries
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
                alone = self._send(group)
            except Exception:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                _log.exception("failed")
                for request in group:
                    request.fail()
            else:
                for request in alone:
                    request.take()

    def _send(self, group: Sequence[Single]) -> Iterable[Single]:
        """Give the readings of one endpoint and tenant to their lanes; returns those that have to go alone."""
        intake, first = self._intake, group[0]
        callers, bodies = [each.caller for each in group], [each.body for each in group]
        chunks = first.exchange.take_together(intake, callers, bodies)
        if chunks is None:
            return group
        alone: list[Single] = []
        for shard, kind, chunk in intake.dispatcher.pieces(chunks):
            share = Share(self._expiries, shard, kind, chunk, [group[index] for index in chunk.indexes])
            share.deadline = first.started + intake.timeout_s
            try:
                intake.dispatcher.queue(shard, kind, chunk, share)
            except LaneFull:
                alone += share.requests
            else:
                if not share.done():
                    self._expiries.add(share)
        return alone


def _alike(requests: Iterable[Single]) -> Iterable[list[Single]]:
    """By endpoint and tenant, each in the order in which they came."""
    groups: dict[tuple[Exchange, int], list[Single]] = {}
    for request in requests:
        groups.setdefault((request.exchange, request.caller.tenant), []).append(request)
    return groups.values()


class Share(Part):
    """What becomes of the readings that some requests have in one transaction: each hears of its own."""

    __slots__ = ("_chunk", "_expiries", "_kind", "_shard", "deadline", "requests")

    def __init__(self, expiries: Expiries, shard: str, kind: Kind, chunk: Chunk, requests: Sequence[Single]) -> None:
        super().__init__()
        self.requests = requests
        self.deadline = 0.0
        self._expiries = expiries
        self._shard = shard
        self._kind = kind
        self._chunk = chunk

    def expire(self) -> None:
        """Time is over: if it has not begun it is withdrawn, else its end is not known."""
        self.cancel()

    def tell(self) -> None:
        """Mostly all readings are new, which costs each of them its answer alone."""
        self._expiries.drop(self)
        if self._result is not None and self._result.accepted == len(self.requests):
            now = time.monotonic()
            for request in self.requests:
                request.stored(now)
            return
        rows = zip(self._chunk.rows, self._chunk.indexes, self.requests, strict=True)
        for row, index, request in rows:
            request.ended(Sent(self._shard, self._kind, Chunk([row], [0]), self.of(index)))
