"""One shard as a router reaches it: its pools, and the write with all that may have to be done for it."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from shards.clock import remaining
from shards.cluster.replicas import Replicas
from shards.errors import (
    BucketUnavailable,
    Cause,
    Frozen,
    MissingLeaf,
    ShardError,
    ShardUnavailable,
    StaleMap,
    WriteConflict,
)
from shards.kinds import Kind, Row
from shards.postgres.pools import ShardPool
from shards.shard import ShardRecord
from shards.storage import tables, tiers
from shards.storage.horizons import Horizons
from shards.storage.late import write_with_late
from shards.storage.partitions import make_leaves_for
from shards.storage.repeats import Repeats
from shards.storage.write import Written
from shards.storage.write import write as write_hot

WRITE_ATTEMPTS_MAX: Final = 4


@dataclass(frozen=True)
class Shard:
    """One shard as a router reaches it."""

    record: ShardRecord
    writer: ShardPool
    reader: ShardPool
    replicas: Replicas
    monitor: ShardPool | None = None  # reads PostgreSQL's statistics
    repeats: defaultdict[str, Repeats] = field(default_factory=lambda: defaultdict(Repeats))  # by kind
    horizons: defaultdict[str, Horizons] = field(default_factory=lambda: defaultdict(Horizons))  # by kind

    async def write(self, kind: Kind, rows: Sequence[Row], deadline: float) -> Written:
        """Commit rows of one kind; returns which were new. Raises ShardError, then nothing is stored.

        BucketUnavailable when only some buckets are the reason: the same rows without theirs can be stored.
        """
        tries = 0
        while True:
            try:
                return await self._write(kind, rows, deadline)
            except (MissingLeaf, Frozen) as error:
                tries += 1
                if tries == WRITE_ATTEMPTS_MAX:
                    raise await self._of_table(error, deadline) from error
                await self._make_room(kind, rows, deadline)
            except WriteConflict:
                tries += 1
                if tries == WRITE_ATTEMPTS_MAX:
                    raise
            except ShardUnavailable as error:
                if error.cause is Cause.LOCKED and not isinstance(error, BucketUnavailable):
                    raise await self._of_lock(error, rows, deadline) from error
                # What was committed, and nobody heard of it, is found to be there: the key of a reading is the same.
                if not await self.writer.comes_back(error, deadline):
                    raise

    async def _write(self, kind: Kind, rows: Sequence[Row], deadline: float) -> Written:
        hot, late = self.horizons[kind.name].split(rows)
        async with self.writer.connection(deadline) as connection:
            if late:
                name = self.record.name
                return await write_with_late(connection, name, kind, (hot, late), remaining(deadline))
            return await write_hot(connection, kind, hot, self.repeats[kind.name], remaining(deadline))

    async def _make_room(self, kind: Kind, rows: Sequence[Row], deadline: float) -> None:
        """Learn what is frozen; what is not gets the partitions that it lacks."""
        horizons = self.horizons[kind.name]
        async with self.writer.connection(deadline) as connection:
            horizons.learn(await tiers.horizons(connection, kind, remaining(deadline)))
            hot, _ = horizons.split(rows)
            await make_leaves_for(connection, self.record.name, hot, remaining(deadline))

    async def _of_table(self, error: MissingLeaf | Frozen, deadline: float) -> ShardError:
        """The same error, of the bucket whose table it names."""
        if isinstance(error, Frozen):
            return error
        async with self.writer.connection(deadline) as connection:
            bucket = await tables.bucket_of_table(connection, error.table, remaining(deadline))
        if bucket is None:
            return error
        return BucketUnavailable(self.record.name, error.detail, frozenset([bucket]), Cause.PARTITION_MISSING)

    async def _of_lock(self, error: ShardUnavailable, rows: Sequence[Row], deadline: float) -> ShardError:
        """The same error, of the buckets whose tables somebody has locked; StaleMap when that is a move's fence."""
        async with self.writer.connection(deadline) as connection:
            locked = await tables.locked(connection, (row[0] for row in rows), remaining(deadline))
            moving = bool(locked) and await tables.held_by_moves(connection, remaining(deadline))
        if not locked:
            self.writer.tell(error)  # no lock on a bucket's table: it stops them all
            return error
        if moving:  # the bucket is about to be elsewhere: its readings wait for that, as behind a fence that is up
            return StaleMap(self.record.name, "a bucket is being fenced", min(locked) if len(locked) == 1 else None)
        detail = f"buckets {', '.join(map(str, sorted(locked)))} are locked by another session"
        return BucketUnavailable(self.record.name, detail, locked)

    def is_reached_by(self, record: ShardRecord) -> bool:
        """Whether the pools go where `record` says; only its state, and its replicas, may differ."""
        known = self.record
        own, others = ((each.writer_dsn, each.reader_dsn, each.monitor_dsn) for each in (known, record))
        return own == others

    async def close(self) -> None:
        """Close all pools."""
        monitor = () if self.monitor is None else (self.monitor.close(),)
        await asyncio.gather(self.writer.close(), self.reader.close(), self.replicas.close(), *monitor)
