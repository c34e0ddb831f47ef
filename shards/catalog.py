"""The catalog: shards, the map and its epoch. Everything that is said to it in SQL, but for pairings."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import Final

import asyncpg

from shards.driver import translated
from shards.dsn import redact
from shards.errors import ClusterError, InvalidArgument, Refused
from shards.pools import Connection, PoolLimits, ShardPool
from shards.shard_map import ShardMap, map_from_rows

NAME: Final = "catalog"
MAP_CHANNEL: Final = "voltroute_map"

_CLUSTER: Final = "SELECT cluster_id::text AS cluster_id, bucket_count, epoch, first_month, hash_seed FROM cluster"
_EPOCH: Final = "SELECT epoch FROM cluster"
_MAP: Final = """
SELECT c.epoch, c.bucket_count, m.bucket, s.name
FROM cluster AS c
LEFT JOIN bucket_map AS m ON true
LEFT JOIN shard AS s USING (shard_id)
"""
_SHARDS: Final = "SELECT name, state, owner_dsn, writer_dsn, reader_dsn, weight FROM shard ORDER BY shard_id"
_SET_STATE: Final = "UPDATE shard SET state = $2 WHERE name = $1"
_SET_WEIGHT: Final = "UPDATE shard SET weight = $2 WHERE name = $1"
_REMOVE: Final = """
DELETE FROM shard AS s WHERE name = $1
    AND NOT EXISTS (SELECT FROM bucket_map AS m WHERE m.shard_id = s.shard_id)
    AND NOT EXISTS (SELECT FROM move WHERE ended_at IS NULL AND s.name IN (source, target))
"""
_CREATE: Final = """
INSERT INTO cluster (bucket_count, hash_seed, first_month) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""
_REGISTER: Final = """
INSERT INTO shard (name, owner_dsn, writer_dsn, reader_dsn) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET owner_dsn = excluded.owner_dsn, writer_dsn = excluded.writer_dsn, reader_dsn = excluded.reader_dsn
WHERE (shard.owner_dsn, shard.writer_dsn, shard.reader_dsn)
    IS DISTINCT FROM (excluded.owner_dsn, excluded.writer_dsn, excluded.reader_dsn)
"""
_PUBLISH: Final = """
INSERT INTO bucket_map (bucket, shard_id)
SELECT o.bucket, s.shard_id
FROM unnest($1::smallint[], $2::text[]) AS o (bucket, name) JOIN shard AS s USING (name)
"""
_HOUSEKEEPING_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('voltroute.housekeeping'))"
_HOUSEKEEPING_UNLOCK: Final = "SELECT pg_advisory_unlock(hashtext('voltroute.housekeeping'))"


@dataclass(frozen=True)
class ClusterInfo:
    """What a cluster is from its making on."""

    cluster_id: str
    bucket_count: int
    epoch: int
    first_month: date
    hash_seed: int


@dataclass(frozen=True)
class ShardRecord:
    """A registered shard and its logins. The DSNs hold passwords: repr() hides them."""

    name: str
    state: str
    owner_dsn: str
    writer_dsn: str
    reader_dsn: str
    weight: float = 1.0

    def __repr__(self) -> str:
        return f"ShardRecord({self.name!r}, {self.state!r}, {redact(self.owner_dsn)!r})"


class Catalog:
    """Calls on the control database. Each takes a deadline (monotonic seconds) and raises ShardError."""

    def __init__(self, dsn: str, limits: PoolLimits | None = None) -> None:
        self.dsn = dsn
        self.pool = ShardPool(NAME, dsn, limits or PoolLimits(min_size=1, max_size=5), "voltroute catalog")

    @asynccontextmanager
    async def transaction(self, deadline: float) -> AsyncIterator[Connection]:
        """A connection inside a transaction that commits on leaving."""
        async with self.pool.connection(deadline) as connection, connection.transaction():
            yield connection

    async def info(self, deadline: float) -> ClusterInfo:
        """The cluster's constants and current epoch. ClusterError when this database holds no cluster."""
        async with self.pool.connection(deadline) as connection:
            try:
                record = await connection.fetchrow(_CLUSTER)
            except asyncpg.UndefinedTableError:
                record = None
        if record is None:
            message = f"{redact(self.dsn)} holds no voltroute cluster; make one with `voltroute init`"
            raise ClusterError(message)
        return ClusterInfo(**dict(record))

    async def create_cluster(self, bucket_count: int, hash_seed: int, first_month: date, deadline: float) -> None:
        """Write down what the cluster is; Refused when one exists with another number of buckets or seed."""
        async with self.pool.connection(deadline) as connection:
            await connection.execute(_CREATE, bucket_count, hash_seed, first_month)
        info = await self.info(deadline)
        if (info.bucket_count, info.hash_seed) != (bucket_count, hash_seed):
            message = (
                f"the cluster has {info.bucket_count} buckets and hash seed {info.hash_seed}: "
                "both are fixed when it is made"
            )
            raise Refused(message)

    async def shard_map(self, deadline: float) -> ShardMap | None:
        """The current map and epoch, in one snapshot; None when no buckets were given out yet."""
        async with self.pool.connection(deadline) as connection:
            records = await connection.fetch(_MAP)
        rows = [(r["bucket"], r["name"]) for r in records if r["bucket"] is not None]
        if not rows:
            return None
        return map_from_rows(records[0]["epoch"], records[0]["bucket_count"], rows)

    async def epoch(self, deadline: float) -> int:
        """The current epoch."""
        async with self.pool.connection(deadline) as connection:
            return int(await connection.fetchval(_EPOCH))

    async def shards(self, deadline: float) -> list[ShardRecord]:
        """Registered shards, in the order of their registration."""
        async with self.pool.connection(deadline) as connection:
            return [ShardRecord(**dict(record)) for record in await connection.fetch(_SHARDS)]

    async def register(self, shard: ShardRecord, deadline: float) -> None:
        """Add a shard, or change how it is reached. It owns no bucket until the map says so."""
        async with self.pool.connection(deadline) as connection:
            await connection.execute(_REGISTER, shard.name, shard.owner_dsn, shard.writer_dsn, shard.reader_dsn)

    async def set_shard_state(self, name: str, state: str, deadline: float) -> bool:
        """`active` or `draining`; False when there is no such shard."""
        async with self.pool.connection(deadline) as connection:
            return (await connection.execute(_SET_STATE, name, state)) == "UPDATE 1"

    async def set_shard_weight(self, name: str, weight: float, deadline: float) -> bool:
        """How much a shard should hold beside the others; False when there is no such shard."""
        async with self.pool.connection(deadline) as connection:
            return (await connection.execute(_SET_WEIGHT, name, weight)) == "UPDATE 1"

    async def remove_shard(self, name: str, deadline: float) -> bool:
        """Forget a shard that owns nothing and takes part in no move; False when it may not go."""
        async with self.pool.connection(deadline) as connection:
            return (await connection.execute(_REMOVE, name)) == "DELETE 1"

    async def publish_first_map(self, owners: tuple[str, ...], deadline: float) -> None:
        """Give all buckets out at once. Only for a cluster that has no map yet."""
        async with self.pool.connection(deadline) as connection:
            await connection.execute(_PUBLISH, list(range(len(owners))), list(owners))

    @asynccontextmanager
    async def housekeeping_lock(self, deadline: float) -> AsyncIterator[bool]:
        """Whether this process is the one that keeps house, for as long as the block lasts."""
        async with self.pool.connection(deadline) as connection:
            leader = bool(await connection.fetchval(_HOUSEKEEPING_LOCK))
            try:
                yield leader
            finally:
                if leader:
                    await connection.execute(_HOUSEKEEPING_UNLOCK)

    async def listen(self, changed: asyncio.Event, connect_timeout_s: float) -> None:
        """Set `changed` at every NOTIFY of a new map; returns when the connection is lost. ShardError if it fails."""
        lost = asyncio.Event()
        with translated(NAME):
            connection = await asyncpg.connect(self.dsn, timeout=connect_timeout_s)
        try:
            with translated(NAME):
                await connection.add_listener(MAP_CHANNEL, lambda *_: changed.set())
                connection.add_termination_listener(lambda *_: lost.set())
            changed.set()
            await lost.wait()
        finally:
            connection.terminate()

    async def close(self) -> None:
        """Close the pool."""
        await self.pool.close()


def deadline_in(timeout_s: float) -> float:
    """The monotonic time `timeout_s` seconds from now."""
    return time.monotonic() + timeout_s


def check_names(shards: Mapping[str, str]) -> None:
    """InvalidArgument unless every name is 1-31 characters of a-z, 0-9, _ and -, beginning with a letter."""
    for name in shards:
        ok = name[:1].isalpha() and len(name) <= 31 and all(c.islower() or c.isdigit() or c in "_-" for c in name)
        if not (ok and name.isascii()):
            message = f"shard name {name!r}: use 1-31 of a-z, 0-9, _ and -, beginning with a letter"
            raise InvalidArgument(message)
