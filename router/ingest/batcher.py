"""Group commit: while one batch is being committed, the readings that arrive collect and go together in the next.

There is no timer: an idle lane commits at once, a busy one fills its batches by itself.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

from router.ingest.counts import count
from router.ingest.promises import Committed, Promise
from router.ingest.queue import LaneLimits, Pressure, Queue, Ticket
from router.ingest.routing import Chunk
from router.metrics import BATCH_READINGS, BATCH_SECONDS
from router.tracing import ACTIVE, KIND, POSTGRESQL, READINGS, SHARD, SYSTEM, shared
from shards.errors import BucketUnavailable, DataRejected, LateUnavailable, ShardError, StaleMap
from shards.kinds import VALUES_AT, Kind, Row
from shards.storage.write import Written, together

# Commits rows of one kind on one shard by a deadline (monotonic seconds); ShardError: nothing was stored.
Write: TypeAlias = Callable[[Sequence[Row], float], Awaitable[Written]]


class LaneFull(Exception):
    """The lane already holds as many readings as it may. Try again in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


_LARGE_MIN: Final = 16  # large requests that are not refused, however long they wait


class Pressures:
    """Of the queues of all lanes: of small chunks, and of large ones."""

    def __init__(self, limits: LaneLimits) -> None:
        self.small = Pressure(limits.batch_readings_max)
        self.large = Pressure(limits.batch_readings_max, _LARGE_MIN)


_RETRY_FULL_S: Final = 1.0
END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)
TOO_OLD: Final = "is of a time that is archived, or about to be: nothing is added to it any more"
_SMALL_READINGS: Final = 10
_TURNS: Final = 3  # measured: one does half as much at 64 connections, and more of them no more than these
_SHUT_S: Final = 2.0  # a bucket that could not be written to is refused for this long, then tried again


class Lane:
    """The bounded queue of one (shard, kind)."""

    def __init__(self, shard: str, kind: Kind, write: Write, limits: LaneLimits, pressures: Pressures) -> None:
        self._kind = kind
        self._write = write
        self._limits = limits
        # Devices that report as ever have room and transactions of their own: they do not wait behind a backlog.
        self._small = Queue(limits, pressures.small)
        self._large = Queue(limits, pressures.large)
        self._shut: dict[int, tuple[float, BucketUnavailable]] = {}  # bucket -> until when it is refused, and why
        self._workers: set[asyncio.Task[None]] = set()
        self._told = {SYSTEM: POSTGRESQL, SHARD: shard, KIND: kind.name}  # in traces
        self._sizes = BATCH_READINGS.labels(shard, kind.name)
        self._committed = BATCH_SECONDS.labels(shard, kind.name, "committed")
        self._failed = BATCH_SECONDS.labels(shard, kind.name, "failed")

    @property
    def queued(self) -> int:
        """Readings waiting for a transaction."""
        return self._small.readings + self._large.readings

    @property
    def in_flight(self) -> int:
        """Transactions under way."""
        return self._small.in_flight + self._large.in_flight

    def submit(self, chunk: Chunk, future: Promise, *, singles: bool = False) -> None:
        """Queue a chunk of at most `batch_readings_max` rows; the future ends after COMMIT, or with a ShardError.

        Cancelling the future withdraws the chunk if its transaction has not begun. LaneFull when over the limit.
        `singles`: its rows are of as many requests.
        """
        queue = self._small if singles or len(chunk.rows) <= _SMALL_READINGS else self._large
        now = time.monotonic()
        if not queue.has_room(len(chunk.rows), now):
            raise LaneFull(_RETRY_FULL_S)
        if self._shut and (refused := self._refused(chunk)) is not None:
            future.set_exception(refused)
            return
        if queue.put(Ticket(chunk, future, ACTIVE.get(), now)):
            task = asyncio.create_task(self._work(queue))
            self._workers.add(task)
            task.add_done_callback(self._workers.discard)

    def _refused(self, chunk: Chunk) -> BucketUnavailable | None:
        """Why a chunk need not be tried: a bucket of it could not be written to a moment ago."""
        now = time.monotonic()
        self._shut = {bucket: shut for bucket, shut in self._shut.items() if shut[0] > now}
        found = {row[0] for row in chunk.rows} & self._shut.keys()
        if not found:
            return None
        last = self._shut[min(found)][1]
        return BucketUnavailable(last.shard, last.detail, frozenset(found), last.cause)

    def _remember(self, error: ShardError) -> None:
        if isinstance(error, BucketUnavailable) and not isinstance(error, LateUnavailable):
            until = time.monotonic() + _SHUT_S
            self._shut |= dict.fromkeys(error.buckets, (until, error))

    async def drain(self) -> None:
        """Wait until nothing is queued or under way."""
        while self._workers:
            await asyncio.wait(self._workers)

    async def _work(self, queue: Queue) -> None:
        # Nothing may be awaited between finding the queue empty and giving up the place: what is submitted in between
        # would start no worker and wait for ever. (A task's done-callbacks run a turn of the loop later.)
        try:
            while tickets := queue.take(started := time.monotonic()):
                try:
                    await self._commit(tickets)
                except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                    _fail(tickets, error)
                readings = sum([len(ticket.chunk.rows) for ticket in tickets])
                queue.took(readings, (now := time.monotonic()) - started, now)
                if queue is self._small:
                    await _let_send()
        finally:
            queue.leave()

    async def _commit(self, tickets: list[Ticket]) -> None:
        rows = [row for ticket in tickets for row in ticket.chunk.rows]
        started = time.monotonic()
        refused: dict[Row, str] = {}
        try:
            with shared("write", [ticket.span for ticket in tickets], {**self._told, READINGS: len(rows)}):
                written = await self._write_or_split(rows, started + self._limits.commit_timeout_s, refused)
        except ShardError as error:
            self._failed.observe(time.monotonic() - started)
            self._remember(error)
            rest = _spared(tickets, error)
            _fail([ticket for ticket in tickets if ticket not in rest], error)
            if rest:
                await self._commit(rest)
            return
        self._committed.observe(time.monotonic() - started)
        self._sizes.observe(len(rows))
        told = [
            (ticket.future, _attribute(ticket.chunk, written, refused))
            for ticket in tickets
            if not ticket.future.done()
        ]
        self._count([committed for _, committed in told])
        for future, committed in told:
            future.set_result(committed)

    def _count(self, committed: Sequence[Committed]) -> None:
        """Once for a batch, not for each of its requests."""
        count(self._kind, "accepted", sum([each.accepted for each in committed]))
        count(self._kind, "duplicate", sum([len(each.duplicates) for each in committed]))
        count(self._kind, "conflict", sum([len(each.conflicts) for each in committed]))
        count(self._kind, "rejected", sum([len(each.rejected) for each in committed]))

    async def _write_or_split(self, rows: list[Row], deadline: float, refused: dict[Row, str]) -> Written:
        """Write; when PostgreSQL refuses a value, halve until only the culprits are left out (into `refused`)."""
        try:
            return await self._write(rows, deadline)
        except DataRejected as error:
            if len(rows) == 1:
                refused[rows[0]] = error.detail
                return Written(set())
        middle = len(rows) // 2
        halves = (rows[:middle], rows[middle:])
        return together([(half, await self._write_or_split(half, deadline, refused)) for half in halves])


async def _let_send() -> None:
    """Turns of the event loop for those who were just answered, and send again at once when there is load.

    Their readings then go with the next transaction, not with the one after it: half as many, twice as large. Without
    load a turn takes some microseconds.
    """
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def refused_buckets(error: BaseException | None) -> frozenset[int]:
    """The buckets that an error is about, if it is about some alone."""
    if isinstance(error, StaleMap) and error.bucket is not None:
        return frozenset([error.bucket])
    return error.buckets if isinstance(error, BucketUnavailable) else frozenset()


def _spared(tickets: list[Ticket], error: ShardError) -> list[Ticket]:
    """The tickets that a refused bucket does not concern: they are committed without the others."""
    refused = refused_buckets(error)
    if not refused:
        return []
    until = error.until if isinstance(error, LateUnavailable) else END_OF_TIME
    return [ticket for ticket in tickets if all(row[0] not in refused or row[3] > until for row in ticket.chunk.rows)]


def _fail(tickets: list[Ticket], error: Exception) -> None:
    for ticket in tickets:
        if not ticket.future.done():
            ticket.future.set_exception(error)


def _attribute(chunk: Chunk, written: Written, refused: dict[Row, str]) -> Committed:
    """Which of the batch's new readings are this chunk's. A reading sent twice in a batch is new once."""
    new = written.new
    if new is None:
        return Committed(len(chunk.rows))
    accepted = 0
    duplicates: list[int] = []
    rejected: list[tuple[int, str, str]] = []
    conflicts: list[int] = []
    for row, index in zip(chunk.rows, chunk.indexes, strict=True):
        key = row[1:VALUES_AT]
        if key in new:
            new.discard(key)
            accepted += 1
        elif row in refused:
            rejected.append((index, "refused_by_database", refused[row]))
        elif key in written.too_old:
            rejected.append((index, "too_old", TOO_OLD))
        elif written.stored.get(key, row[VALUES_AT:]) != row[VALUES_AT:]:
            conflicts.append(index)
        else:
            duplicates.append(index)
    return Committed(accepted, tuple(duplicates), tuple(rejected), tuple(conflicts))
