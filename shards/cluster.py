"""A router's view of the cluster: the map it believes, and a writer and a reader pool for each shard."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shards import queries, store
from shards.catalog import Catalog, ShardRecord, deadline_in
from shards.errors import ClusterError, MissingLeaf, ShardError, StaleMap, WriteConflict
from shards.kinds import Kind, Row
from shards.partitions import make_leaves_for
from shards.pools import PoolLimits, ShardPool
from shards.shard_map import ShardMap

WRITE_ATTEMPTS_MAX = 4


@dataclass(frozen=True)
class Shard:
    """One shard as a router reaches it."""

    record: ShardRecord
    writer: ShardPool
    reader: ShardPool

    async def write(self, kind: Kind, rows: Sequence[Row], deadline: float) -> store.NewReadings:
        """Commit rows of one kind; returns which were new (None: all). Raises ShardError, then nothing is stored."""
        for attempt in range(1, WRITE_ATTEMPTS_MAX + 1):
            try:
                async with self.writer.connection(deadline) as connection:
                    return await store.write(connection, kind, rows, max(deadline - deadline_in(0), 0.001))
            except MissingLeaf:
                if attempt == WRITE_ATTEMPTS_MAX:
                    raise
                async with self.writer.connection(deadline) as connection:
                    await make_leaves_for(connection, rows, max(deadline - deadline_in(0), 0.001))
            except WriteConflict:
                if attempt == WRITE_ATTEMPTS_MAX:
                    raise
        raise AssertionError  # the loop returns or raises

    def is_reached_by(self, record: ShardRecord) -> bool:
        """Whether the pools go where `record` says; only its state may differ."""
        known = self.record
        return (known.writer_dsn, known.reader_dsn) == (record.writer_dsn, record.reader_dsn)

    async def close(self) -> None:
        """Close both pools."""
        await asyncio.gather(self.writer.close(), self.reader.close())


class Cluster:
    """The catalog's shards and map, kept fresh: NOTIFY is the hint, polling the truth."""

    def __init__(self, catalog: Catalog, limits: PoolLimits, query_timeout_s: float) -> None:
        self.catalog = catalog
        self._limits = limits
        self._query_timeout_s = query_timeout_s
        self._map: ShardMap | None = None
        self._shards: dict[str, Shard] = {}
        self._refreshing: asyncio.Task[ShardMap] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._newer = asyncio.Event()  # replaced whenever a newer map comes

    @property
    def map(self) -> ShardMap:
        """The map this router believes; ClusterError before the first one was read."""
        if self._map is None:
            message = "no shard map was read from the catalog yet"
            raise ClusterError(message)
        return self._map

    @property
    def has_map(self) -> bool:
        return self._map is not None

    @property
    def shards(self) -> Mapping[str, Shard]:
        return self._shards

    def shard(self, name: str) -> Shard:
        """The shard called `name`; StaleMap when it is not registered any more."""
        shard = self._shards.get(name)
        if shard is None:
            raise StaleMap(name, "is not registered in the catalog")
        return shard

    async def write(self, shard: str, kind: Kind, rows: Sequence[Row], deadline: float) -> store.NewReadings:
        """Commit rows on the shard of that name; see Shard.write."""
        return await self.shard(shard).write(kind, rows, deadline)

    async def refresh(self, timeout_s: float = 2.0) -> ShardMap:
        """Read shards and map again; callers at the same time share one read. ShardError when the catalog is away."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._read(timeout_s))
        return await asyncio.shield(self._refreshing)

    async def newer_map(self, epoch: int, timeout_s: float) -> None:
        """Wait until the map is newer than `epoch`, at most `timeout_s`."""
        if self.map.epoch == epoch:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._newer.wait()

    async def _read(self, timeout_s: float) -> ShardMap:
        deadline = deadline_in(timeout_s)
        shard_map = await self.catalog.shard_map(deadline)
        if shard_map is None:
            message = "the catalog has no shard map: `voltroute init` was not finished"
            raise ClusterError(message)
        retired = self._adopt({record.name: record for record in await self.catalog.shards(deadline)})
        if self._map is None or shard_map.epoch > self._map.epoch:
            self._map = shard_map
            self._newer.set()
            self._newer = asyncio.Event()
        for shard in retired:
            task = asyncio.create_task(shard.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return self._map

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
        reader_limits = replace(self._limits, statement_timeout_s=self._query_timeout_s)
        return Shard(
            record,
            writer=ShardPool(record.name, record.writer_dsn, self._limits, "voltroute writer"),
            reader=ShardPool(record.name, record.reader_dsn, reader_limits, "voltroute reader", queries.SESSION),
        )

    async def watch(self, poll_s: float) -> None:
        """Follow the map until cancelled. A catalog that is away changes nothing: the last map stays in force."""
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
            if self._map is None or await self.catalog.epoch(deadline_in(poll_s)) != self._map.epoch:
                await self.refresh()
        except (ShardError, ClusterError):
            return

    async def _listen(self, changed: asyncio.Event, poll_s: float) -> None:
        while True:
            with contextlib.suppress(ShardError):
                await self.catalog.listen(changed, self._limits.connect_timeout_s)
            await asyncio.sleep(poll_s)

    async def close(self) -> None:
        """Close all pools."""
        await asyncio.gather(*self._closing, *(shard.close() for shard in self._shards.values()), self.catalog.close())
