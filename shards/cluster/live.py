"""A router's view of the cluster: the map it believes, and a writer and a reader pool for each shard."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shards.catalog import keys
from shards.catalog import kinds as catalogued
from shards.catalog.database import Catalog
from shards.catalog.keys import Keyring
from shards.catalog.shard_map import ShardMap
from shards.clock import deadline_in, remaining
from shards.errors import (
    BucketUnavailable,
    Cause,
    ClusterError,
    Frozen,
    MissingLeaf,
    NoCluster,
    NoMap,
    ShardError,
    ShardUnavailable,
    StaleMap,
    Unusable,
    WriteConflict,
)
from shards.kinds import BUILT_IN, Kind, Kinds, Row
from shards.postgres.pools import PoolLimits, PoolOptions, ShardPool
from shards.shard import ShardRecord
from shards.storage import rows, tables, tiers
from shards.storage.horizons import Horizons
from shards.storage.late import write_with_late
from shards.storage.partitions import make_leaves_for
from shards.storage.repeats import Repeats
from shards.storage.write import Written
from shards.storage.write import write as write_hot

WRITE_ATTEMPTS_MAX = 4
REFRESH_TIMEOUT_S = 2.0

# Told when a pool's database becomes unavailable, for another cause, or available again (None): (shard, login, error).
Changed = Callable[[str, str, Unusable | None], None]


def ignore(_shard: str, _login: str, _error: Unusable | None) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Shard:
    """One shard as a router reaches it."""

    record: ShardRecord
    writer: ShardPool
    reader: ShardPool
    monitor: ShardPool | None = None  # reads PostgreSQL's statistics
    repeats: defaultdict[str, Repeats] = field(default_factory=lambda: defaultdict(Repeats))  # by kind
    horizons: defaultdict[str, Horizons] = field(default_factory=lambda: defaultdict(Horizons))  # by kind

    async def write(self, kind: Kind, rows: Sequence[Row], deadline: float) -> Written:
        """Commit rows of one kind; returns which were new. Raises ShardError, then nothing is stored.

        BucketUnavailable when only some buckets are the reason: the same rows without theirs can be stored.
        """
        for attempt in range(1, WRITE_ATTEMPTS_MAX + 1):
            try:
                return await self._write(kind, rows, deadline)
            except (MissingLeaf, Frozen) as error:
                if attempt == WRITE_ATTEMPTS_MAX:
                    raise await self._of_table(error, deadline) from error
                await self._make_room(kind, rows, deadline)
            except WriteConflict:
                if attempt == WRITE_ATTEMPTS_MAX:
                    raise
            except ShardUnavailable as error:
                if error.cause is not Cause.LOCKED or isinstance(error, BucketUnavailable):
                    raise
                raise await self._of_lock(error, rows, deadline) from error
        raise AssertionError  # the loop returns or raises

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
        """Whether the pools go where `record` says; only its state may differ."""
        known = self.record
        own, others = ((each.writer_dsn, each.reader_dsn, each.monitor_dsn) for each in (known, record))
        return own == others

    async def close(self) -> None:
        """Close all pools."""
        monitor = () if self.monitor is None else (self.monitor.close(),)
        await asyncio.gather(self.writer.close(), self.reader.close(), *monitor)


class Cluster:
    """The catalog's shards and map, kept fresh: NOTIFY is the hint, polling the truth."""

    def __init__(self, catalog: Catalog, limits: PoolLimits, query_timeout_s: float, changed: Changed = ignore) -> None:
        self.catalog = catalog
        self._limits = limits
        self._query_timeout_s = query_timeout_s
        self._changed = changed
        self._cluster_id: str | None = None
        self._map: ShardMap | None = None
        self._keyring: Keyring | None = None
        self._kinds = BUILT_IN
        self.on_kinds: Callable[[Kinds], None] = lambda _kinds: None  # told when the cluster's kinds are others
        self._shards: dict[str, Shard] = {}
        self._refreshing: asyncio.Task[ShardMap] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._newer = asyncio.Event()  # replaced whenever a newer map comes
        self.map_read_at = 0.0  # monotonic; when the catalog last said that the map is this one

    @property
    def map(self) -> ShardMap:
        """The map this router believes; NoMap before the first one was read."""
        if self._map is None:
            raise NoMap("no shard map was read from the catalog yet")
        return self._map

    @property
    def has_map(self) -> bool:
        return self._map is not None

    @property
    def keyring(self) -> Keyring:
        """The keys this router knows; NoMap before they were read for the first time."""
        if self._keyring is None:
            raise NoMap("no keys were read from the catalog yet")
        return self._keyring

    @property
    def kinds(self) -> Kinds:
        """The kinds that every shard has; the built-in ones before the catalog was asked."""
        return self._kinds

    @property
    def shards(self) -> Mapping[str, Shard]:
        return self._shards

    def shard(self, name: str) -> Shard:
        """The shard called `name`; StaleMap when it is not registered any more."""
        shard = self._shards.get(name)
        if shard is None:
            raise StaleMap(name, "is not registered in the catalog")
        return shard

    async def write(self, shard: str, kind: Kind, rows: Sequence[Row], deadline: float) -> Written:
        """Commit rows on the shard of that name; see Shard.write."""
        return await self.shard(shard).write(kind, rows, deadline)

    async def refresh(self, timeout_s: float = REFRESH_TIMEOUT_S) -> ShardMap:
        """Read shards and map again; callers at the same time share one read. ShardError when the catalog is silent.

        The shared read has a deadline of its own, and each caller waits no longer than its `timeout_s`.
        """
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._read(REFRESH_TIMEOUT_S))
            self._refreshing.add_done_callback(_retrieve)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._refreshing)
        except TimeoutError:
            raise ShardUnavailable("catalog", "did not answer in time", cause=Cause.SILENT) from None

    async def first_map(self) -> None:
        """Wait until there is a map."""
        while self._map is None:
            await self._newer.wait()

    async def newer_map(self, known: ShardMap, timeout_s: float) -> None:
        """Wait until the map is another than `known`, at most `timeout_s`."""
        if self.map is known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._newer.wait()

    async def _read(self, timeout_s: float) -> ShardMap:
        deadline = deadline_in(timeout_s)
        if self._cluster_id is None:
            self._cluster_id = (await self.catalog.info(deadline)).cluster_id
        shard_map = await self.catalog.shard_map(deadline)
        if shard_map is None:
            raise NoCluster("the catalog has no shard map: `voltroute init` was not finished")
        if self._keyring is None:
            self._keyring = await keys.ring(self.catalog, deadline)
        if self._kinds is BUILT_IN:
            with contextlib.suppress(ClusterError):
                await self._read_kinds(deadline)
        retired = self._adopt({record.name: record for record in await self.catalog.shards(deadline)})
        # Any other map, also one with a lower epoch: reads do not overlap, so it is the later word of a catalog that
        # was restored from a backup. Its epochs are counted again, and say nothing beside the contents.
        if shard_map != self._map:
            self._map = shard_map
            self._newer.set()
            self._newer = asyncio.Event()
        self.map_read_at = time.monotonic()
        for shard in retired:
            task = asyncio.create_task(shard.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return self._map

    async def _read_kinds(self, deadline: float) -> None:
        """ClusterError when they cannot be used: what there was stays, and they are read again."""
        found = (await catalogued.known(self.catalog, deadline)).keeping(self._kinds)
        self.on_kinds(found)
        self._kinds = found

    def _adopt(self, records: Mapping[str, ShardRecord]) -> list[Shard]:
        """Take over what the catalog says; returns the shards that are not used any more. Pools that fit are kept."""
        kept: dict[str, Shard] = {}
        retired = dict(self._shards)
        for name, record in records.items():
            known = self._shards.get(name)
            if known is not None and known.is_reached_by(record):
                kept[name] = replace(known, record=record)
                del retired[name]
            else:
                kept[name] = self._reach(record)
        self._shards = kept
        return list(retired.values())

    def _reach(self, record: ShardRecord) -> Shard:
        identity = f"{self._cluster_id} {record.name}"
        reader_limits = replace(self._limits, statement_timeout_s=self._query_timeout_s)
        options = PoolOptions("voltroute writer", None, identity, self._changed, writes=True)
        reading = PoolOptions("voltroute reader", rows.SESSION, identity, self._changed)
        watching = PoolOptions("voltroute monitor", None, identity)
        one = replace(self._limits, min_size=0, max_size=1, statement_timeout_s=self._query_timeout_s)
        return Shard(
            record,
            writer=ShardPool(record.name, record.writer_dsn, self._limits, options),
            reader=ShardPool(record.name, record.reader_dsn, reader_limits, reading),
            monitor=None if record.monitor_dsn is None else ShardPool(record.name, record.monitor_dsn, one, watching),
        )

    async def watch(self, poll_s: float) -> None:
        """Follow the map until cancelled. While the catalog is unreachable, the last map stays in force."""
        changed = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(changed, poll_s))
            while True:
                try:
                    async with asyncio.timeout(poll_s):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
                await self._follow(poll_s)

    async def _follow(self, poll_s: float) -> None:
        try:
            map_epoch, keys_epoch, kinds_epoch = await self.catalog.epochs(deadline_in(poll_s))
            # Keys first: a bucket that is not found is asked for again, a revoked key must be refused in time.
            if self._keyring is None or keys_epoch != self._keyring.epoch:
                self._keyring = await keys.ring(self.catalog, deadline_in(poll_s))
            if self._map is None or map_epoch != self._map.epoch:
                await self.refresh()
            else:
                self.map_read_at = time.monotonic()
            if kinds_epoch != self._kinds.epoch:
                await self._read_kinds(deadline_in(poll_s))
        except (ShardError, ClusterError):
            return

    async def _listen(self, changed: asyncio.Event, poll_s: float) -> None:
        while True:
            with contextlib.suppress(ShardError):
                await self.catalog.listen(changed, poll_s)
            await asyncio.sleep(poll_s)

    async def close(self) -> None:
        """Close all pools."""
        await asyncio.gather(*self._closing, *(shard.close() for shard in self._shards.values()), self.catalog.close())


def _retrieve(task: "asyncio.Task[ShardMap]") -> None:
    """Whoever waited has heard of the error; when nobody did, it is not to be complained about."""
    if not task.cancelled():
        task.exception()
