"""A router's view of the cluster: the map it believes, and a writer and a reader pool for each shard."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from shards.catalog import keys
from shards.catalog import kinds as catalogued
from shards.catalog.database import Catalog
from shards.catalog.keys import Keyring
from shards.catalog.shard_map import ShardMap
from shards.clock import deadline_in
from shards.cluster.cached import OWNED, Cache, Known, check
from shards.cluster.lineages import Lineages
from shards.cluster.reach import Changed, Reach
from shards.cluster.replica import Replica
from shards.cluster.replicas import ReplicaRules
from shards.cluster.shard import Shard
from shards.errors import (
    Cause,
    ClusterError,
    NoCluster,
    NoMap,
    Refused,
    ShardError,
    ShardUnavailable,
    StaleMap,
    Unusable,
)
from shards.kinds import BUILT_IN, Kind, Kinds, Row
from shards.postgres.lineage import Lineage
from shards.postgres.options import PoolLimits
from shards.shard import ShardRecord
from shards.storage.write import Written

REFRESH_TIMEOUT_S = 2.0


def ignore(_shard: str, _login: str, _error: Unusable | None) -> None:
    """Nobody wants to know."""


class Cluster:
    """The catalog's shards and map, kept fresh: NOTIFY is the hint, polling the truth."""

    def __init__(
        self,
        catalog: Catalog,
        limits: PoolLimits,
        query_timeout_s: float,
        changed: Changed = ignore,
        replicas: ReplicaRules | None = None,
        cache: str | None = None,
    ) -> None:
        self.catalog = catalog
        self._cache = Cache(cache)
        self._known: Known | None = None  # of an earlier run
        self._reach = Reach(limits, query_timeout_s, changed, replicas or ReplicaRules())
        self._cluster_id: str | None = None
        self._map: ShardMap | None = None
        self._keyring: Keyring | None = None
        self._kinds = BUILT_IN
        self.on_kinds: Callable[[Kinds], None] = lambda _kinds: None  # told when the cluster's kinds are others
        self._shards: dict[str, Shard] = {}
        self._hint = asyncio.Event()  # that the catalog has news, or should hear some
        self._lineages = Lineages(catalog, self._hint.set)
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
    def cluster_id(self) -> str:
        """Whose router this is; NoMap before the catalog was asked."""
        if self._cluster_id is None:
            raise NoMap("nothing was read from the catalog yet")
        return self._cluster_id

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

    def lineage(self, shard: str) -> Lineage:
        """Which server is believed to be that shard's primary."""
        return self._lineages.of(shard)

    async def write(self, shard: str, kind: Kind, rows: Sequence[Row], deadline: float) -> Written:
        """Commit rows on the shard of that name; see Shard.write."""
        written = await self.shard(shard).write(kind, rows, deadline)
        await self._lineages.settle(shard, deadline)
        return written

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

    async def remember(self) -> None:
        """Read what was known last. Of the catalog no older primary is believed than was seen then. MachineError."""
        self._known = await self._cache.load()
        if self._known is not None and self._known.system is not None:
            self.catalog.lineage.remember(self._known.system, self._known.timeline)

    async def recall(self) -> None:
        """Begin with what was known last, while the catalog does not answer. Refused when it cannot be used.

        Keys and kinds come with the map: without known keys everything stays closed.
        """
        known = self._known
        if known is None:
            raise Refused("nothing is known of an earlier run (VOLTROUTE_CACHE_FILE)")
        self._cluster_id = self._cluster_id or known.cluster_id
        self._adopt({record.name: record for record in known.shards})
        shards = dict(self._shards)
        answers = await asyncio.gather(*(self._owned(shard) for shard in shards.values()))
        if self._map is None:  # else the catalog was faster
            check(known, dict(zip(shards, answers, strict=True)))
            self._take_kinds(Kinds(known.kinds, known.kinds_epoch))
            self._keyring, self._map = known.keyring, known.shard_map
            self._newer.set()
            self._newer = asyncio.Event()

    async def _owned(self, shard: Shard) -> frozenset[int] | ShardError:
        try:
            async with shard.reader.connection(deadline_in(REFRESH_TIMEOUT_S)) as connection:
                return frozenset(await connection.fetchval(OWNED))
        except ShardError as error:
            return error

    async def _keep(self) -> None:
        """Remember what is known, for a start without the catalog."""
        if self._map is None or self._keyring is None or self._cluster_id is None:
            return
        records = tuple(self._lineages.newest(shard.record) for shard in self._shards.values())
        lineage, kinds = self.catalog.lineage, self._kinds
        place = lineage.system, lineage.timeline
        with contextlib.suppress(OSError):
            await self._cache.keep(
                Known(self._cluster_id, self._map, records, self._keyring, kinds.all, kinds.epoch, *place)
            )

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
        for each in retired:
            task = asyncio.create_task(each.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return self._map

    async def _read_kinds(self, deadline: float) -> None:
        """ClusterError when they cannot be used: what there was stays, and they are read again."""
        self._take_kinds(await catalogued.known(self.catalog, deadline))

    def _take_kinds(self, known: Kinds) -> None:
        found = known.keeping(self._kinds)
        self.on_kinds(found)
        self._kinds = found

    def _adopt(self, records: Mapping[str, ShardRecord]) -> list[Shard | Replica]:
        """Take over what the catalog says; returns what is not used any more. Pools that fit are kept."""
        kept: dict[str, Shard] = {}
        retired, replicas = dict(self._shards), list[Replica]()
        for name, record in records.items():
            self._lineages.learn(record)
            known = self._shards.get(name)
            if known is not None and known.is_reached_by(record):
                kept[name] = replace(known, record=record)
                del retired[name]
            else:
                kept[name] = self._reach.shard(self._cluster_id, record, self._lineages.of(name))
            replicas += kept[name].replicas.adopt(record.replicas)
        self._shards = kept
        return [*retired.values(), *replicas]

    async def watch(self, poll_s: float) -> None:
        """Follow the map until cancelled. While the catalog is unreachable, the last map stays in force."""
        changed = self._hint
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
            await self._lineages.tell(deadline_in(poll_s))
        except (ShardError, ClusterError):
            if self._map is None and self._known is not None:
                with contextlib.suppress(ShardError, ClusterError):  # the shards may come before the catalog does
                    await self.recall()
        await self._keep()

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
