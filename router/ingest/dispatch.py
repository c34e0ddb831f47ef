"""Storing the readings of one request: to the right lanes, again when the map was stale, all under one deadline."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from router.ingest.batcher import Lane, LaneFull, Pressures
from router.ingest.counts import count, count_from_zero
from router.ingest.promises import Committed, Promise
from router.ingest.queue import LaneLimits
from router.ingest.routing import Chunk, Chunks, pieces, reroute
from router.metrics import MAP_REFRESH_FAILURES, STALE_MAPS
from router.wire.complaints import ItemError
from shards.catalog.shard_map import ShardMap
from shards.clock import remaining
from shards.cluster.live import Cluster
from shards.errors import BucketUnavailable, ClusterError, ShardError, ShardUnavailable, StaleMap
from shards.kinds import Kind, Kinds, Row
from shards.storage.write import Written

_STALE_PAUSE_S: Final = 0.02
_STALE_PAUSE_MAX_S: Final = 0.1
_UNEXPECTED_RETRY_S: Final = 5.0


@dataclass(slots=True)
class Outcome:
    """What became of a request's valid readings. `missing`: shard -> seconds after which to try again.

    `conflicts`: indexes of readings whose device and time are stored with other values.
    """

    accepted: int = 0
    duplicates: int = 0
    unavailable: int = 0
    overloaded: int = 0
    errors: list[ItemError] = field(default_factory=list)
    conflicts: list[int] = field(default_factory=list)
    missing: dict[str, float] = field(default_factory=dict)
    retry_after_s: float = 1.0


@dataclass(slots=True)
class Sent:
    """A chunk that was given to a lane."""

    shard: str
    kind: Kind
    chunk: Chunk
    future: Promise


@dataclass(slots=True)
class _Again:
    """Refused by a shard that does not own the bucket; spared because only other buckets of the chunk are shut."""

    stale: list[Sent]
    spared: list[Sent]


def _split(each: Sent, buckets: frozenset[int]) -> tuple[Sent, Sent]:
    """The part of a chunk in these buckets, and the rest."""
    parts = (Chunk(), Chunk())
    for row, index in zip(each.chunk.rows, each.chunk.indexes, strict=True):
        part = parts[0 if row[0] in buckets else 1]
        part.rows.append(row)
        part.indexes.append(index)
    shut, rest = (Sent(each.shard, each.kind, part, each.future) for part in parts)
    return shut, rest


class Dispatcher:
    """Owns the lanes: one for each shard and kind, made when first needed."""

    def __init__(
        self,
        cluster: Cluster,
        limits: LaneLimits,
        on_fault: Callable[[ShardError], None],
        on_written: Callable[[Kind, Sequence[Row]], Awaitable[None]] | None = None,
    ) -> None:
        self._cluster = cluster
        self._limits = limits
        self._on_fault = on_fault
        self._on_written = on_written  # between COMMIT and answer
        self._lanes: dict[tuple[str, Kind], Lane] = {}
        self.pressures = Pressures(limits)

    @property
    def lanes(self) -> dict[tuple[str, Kind], Lane]:
        return self._lanes

    @property
    def map(self) -> ShardMap:
        """The map in use; NoMap before the first one."""
        return self._cluster.map

    async def settle(self, sent: list[Sent], outcome: Outcome, deadline: float) -> None:
        """Wait for what was sent, and send again what may be, until it is all told in `outcome`."""
        for attempt in itertools.count(1):
            again = await self._collect(sent, outcome, deadline)
            if not again.stale and not again.spared:
                break
            if time.monotonic() >= deadline:
                for each in again.stale + again.spared:
                    self._unavailable(each, 1.0, outcome)
                break
            if again.stale:
                await self._refresh(deadline, attempt)
            parts = ((each.kind, each.chunk) for each in again.stale + again.spared)
            sent = self.send(reroute(parts, self._cluster.map), outcome)

    def tally(self, sent: list[Sent], outcome: Outcome) -> bool:
        """Tell in `outcome` what was sent and is all committed; False, and nothing is told, when some of it is not."""
        if any(each.future.cancelled() or each.future.exception() is not None for each in sent):
            return False
        for each in sent:
            _tell(each.future.result(), outcome)
        return True

    def send(self, chunks: Chunks, outcome: Outcome, promise: Callable[[], Promise] | None = None) -> list[Sent]:
        """Give each chunk to its lane; what finds no room is told in `outcome`. `promise` makes the futures."""
        promise = promise or asyncio.get_running_loop().create_future
        sent = []
        for shard, kind, piece in self.pieces(chunks):
            try:
                self._lane(shard, kind).submit(piece, future := promise())
                sent.append(Sent(shard, kind, piece, future))
            except LaneFull as full:
                outcome.overloaded += len(piece.rows)
                outcome.retry_after_s = max(outcome.retry_after_s, full.retry_after_s)
                count(kind, "overloaded", len(piece.rows))
        return sent

    def queue(self, shard: str, kind: Kind, chunk: Chunk, promise: Promise) -> None:
        """Give a chunk, whose rows are of as many requests, to its lane. LaneFull when it finds no room."""
        self._lane(shard, kind).submit(chunk, promise, singles=True)

    def pieces(self, chunks: Chunks) -> Iterator[tuple[str, Kind, Chunk]]:
        """The chunks, none larger than a transaction may be (but for readings with one key)."""
        for (shard, kind), chunk in chunks.items():
            for piece in pieces(chunk, self._limits.batch_readings_max):
                yield shard, kind, piece

    def _lane(self, shard: str, kind: Kind) -> Lane:
        lane = self._lanes.get((shard, kind))
        if lane is None:
            write = partial(self._cluster.write if self._on_written is None else self._write, shard, kind)
            lane = self._lanes[shard, kind] = Lane(shard, kind, write, self._limits, self.pressures)
        return lane

    async def _write(self, shard: str, kind: Kind, rows: Sequence[Row], deadline: float) -> Written:
        written = await self._cluster.write(shard, kind, rows, deadline)
        if self._on_written is not None:
            await self._on_written(kind, rows)
        return written

    async def _collect(self, sent: list[Sent], outcome: Outcome, deadline: float) -> "_Again":
        """Count what ended; returns what may be stored in another try."""
        await _all_done([each.future for each in sent], deadline)
        again = _Again([], [])
        for each in sent:
            if each.future.cancelled():
                self._unavailable(each, 1.0, outcome)
                continue
            error = each.future.exception()
            if error is None:
                _tell(each.future.result(), outcome)
            elif isinstance(error, StaleMap):
                STALE_MAPS.labels(each.shard).inc()
                again.stale.append(each)
            elif isinstance(error, BucketUnavailable):
                shut, rest = _split(each, error.buckets)
                self._unavailable(shut, error.retry_after_s, outcome)
                if rest.chunk.rows:
                    again.spared.append(rest)
            elif isinstance(error, ShardUnavailable):
                self._unavailable(each, error.retry_after_s, outcome)
            elif isinstance(error, ShardError):
                self._on_fault(error)
                self._unavailable(each, _UNEXPECTED_RETRY_S, outcome)
            else:
                raise error
        return again

    def _unavailable(self, each: Sent, retry_after_s: float, outcome: Outcome) -> None:
        outcome.unavailable += len(each.chunk.rows)
        outcome.missing[each.shard] = max(retry_after_s, outcome.missing.get(each.shard, 0))
        outcome.retry_after_s = max(retry_after_s, outcome.retry_after_s)
        count(each.kind, "unavailable", len(each.chunk.rows))

    async def _refresh(self, deadline: float, attempt: int) -> None:
        """Read the map again. If that was tried already, a move is between its fence and its cutover: wait a little."""
        if attempt > 1:
            pause = min(_STALE_PAUSE_S * attempt, _STALE_PAUSE_MAX_S) * random.uniform(0.5, 1.5)
            await self._cluster.newer_map(self._cluster.map, min(pause, remaining(deadline)))
        try:
            await self._cluster.refresh(max(deadline - time.monotonic(), 0.05))
        except (ShardError, ClusterError):
            MAP_REFRESH_FAILURES.inc()
            await asyncio.sleep(_STALE_PAUSE_S)  # no catalog: the old map, until the deadline

    def follow(self, kinds: Kinds) -> None:
        """Lanes of kinds that are declared otherwise by now go if they are empty; the others with the next change."""
        count_from_zero(kinds)
        current = set(kinds)
        for (shard, kind), lane in list(self._lanes.items()):
            if kind not in current and not lane.queued and not lane.in_flight:
                del self._lanes[shard, kind]

    async def drain(self) -> None:
        """Wait until every lane is empty."""
        await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))


async def _all_done(futures: list[Promise], deadline: float) -> None:
    """Wait until all futures are done, whatever came of them; at the deadline those that are not are cancelled.

    One timer, and no task or callback for each future: this runs for every request.
    """
    loop = asyncio.get_running_loop()
    expiry = loop.call_later(max(deadline - time.monotonic(), 0), _cancel, futures)
    try:
        for future in futures:
            if not isinstance(future, asyncio.Future):  # of a request that waits until all are done
                continue
            try:
                await future
            except asyncio.CancelledError:
                if not future.cancelled():
                    _cancel(futures)
                    raise  # this task itself was cancelled
            except Exception:  # noqa: BLE001, S110 - the caller looks at it
                pass
    finally:
        expiry.cancel()


def _cancel(futures: list[Promise]) -> None:
    for future in futures:
        future.cancel()


def _tell(committed: Committed, outcome: Outcome) -> None:
    outcome.accepted += committed.accepted
    outcome.duplicates += len(committed.duplicates)
    if committed.conflicts:
        outcome.conflicts += committed.conflicts
    if committed.rejected:
        outcome.errors += [ItemError(index, "", code, detail) for index, code, detail in committed.rejected]
