"""The catalog: shards, the map and its epoch. Everything that is said to it in SQL, but for pairings."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import asyncpg

from shards.buckets import BucketRange
from shards.catalog.shard_map import ShardMap, map_from_rows
from shards.errors import Cause, NoCluster, NoMap, Refused, ShardUnavailable, Unusable
from shards.postgres.connections import Connection
from shards.postgres.dsn import redact
from shards.postgres.lineage import Lineage
from shards.postgres.options import PoolLimits, PoolOptions
from shards.postgres.pools import ShardPool
from shards.postgres.sessions import open_session
from shards.postgres.transactions import transaction
from shards.shard import SHARD_FOLLOWING, ReplicaRecord, ShardRecord, ShardState

NAME: Final = "catalog"
MAP_CHANNEL: Final = "voltroute_map"

_CLUSTER: Final = (
    "SELECT cluster_id::text AS cluster_id, bucket_count, epoch, first_month, hash_seed, leaf_width FROM cluster"
)
_EPOCHS: Final = "SELECT epoch, keys_epoch, kinds_epoch FROM cluster"
_MAP: Final = """
SELECT c.epoch, c.bucket_count, m.bucket, s.name,
    (
        SELECT array_agg(ARRAY[tenant_id, first_bucket, bucket_count]) FROM tenant WHERE first_bucket > 0 AND ready
    ) AS pinned
FROM cluster AS c
LEFT JOIN bucket_map AS m ON true
LEFT JOIN shard AS s USING (shard_id)
"""
# What routers before there were tenants find when none of them may be left: with the login that sees one tenant they
# would answer that there is nothing; so they are refused.
_RETIRED: Final = "postgresql://retired.invalid/retired"
_SHARDS: Final = f"""
SELECT name, state, owner_dsn, writer_dsn, coalesce(query_dsn, reader_dsn) AS reader_dsn, weight,
    nullif(reader_dsn, '{_RETIRED}') AS old_reader_dsn, monitor_dsn, system_identifier AS system, timeline,
    (
        SELECT array_agg(ARRAY[r.name, address, zone] ORDER BY r.name) FROM replica AS r WHERE r.shard_id = s.shard_id
    ) AS replicas
FROM shard AS s ORDER BY shard_id
"""
_SET_STATE: Final = "UPDATE shard SET state = $2 WHERE name = $1 AND state = ANY($3::text[])"
_SET_WEIGHT: Final = "UPDATE shard SET weight = $2 WHERE name = $1"
_SET_LOGINS: Final = "UPDATE shard SET query_dsn = $2, monitor_dsn = $3 WHERE name = $1"
_FORGET_OLD_READER: Final = "UPDATE shard SET reader_dsn = $2 WHERE name = $1 AND query_dsn IS NOT NULL"
# Never back to an older one of the same system; and another system is a matter for an operator.
_LEARN: Final = """
UPDATE shard SET system_identifier = $2, timeline = $3
WHERE name = $1 AND (system_identifier IS NULL OR system_identifier = $2 AND timeline < $3)
"""
_ACCEPT: Final = "UPDATE shard SET system_identifier = $2, timeline = $3 WHERE name = $1"
_REMOVE: Final = "DELETE FROM shard WHERE name = $1"
_ADD_REPLICA: Final = """
INSERT INTO replica (shard_id, name, address, zone) SELECT shard_id, $2, $3, $4 FROM shard WHERE name = $1
"""
_REMOVE_REPLICA: Final = """
DELETE FROM replica AS r USING shard AS s WHERE r.shard_id = s.shard_id AND s.name = $1 AND r.name = $2
"""
_IN_USE: Final = """
SELECT (SELECT count(*) FROM bucket_map JOIN shard USING (shard_id) WHERE name = $1) AS buckets,
    (SELECT count(*) FROM move WHERE ended_at IS NULL AND $1 IN (source, target)) AS moves
"""
# One lock for everything that changes who is a member, and for starting what relies on it.
_MEMBERSHIP: Final = "SELECT pg_advisory_xact_lock(hashtext('voltroute.membership'))"
_PATIENCE: Final = "SET LOCAL idle_in_transaction_session_timeout = '60s'"
_CREATE: Final = """
INSERT INTO cluster (bucket_count, hash_seed, first_month) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""
_REGISTER: Final = """
INSERT INTO shard (
    name, owner_dsn, writer_dsn, query_dsn, reader_dsn, monitor_dsn, weight, system_identifier, timeline
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (name) DO UPDATE
SET (owner_dsn, writer_dsn, query_dsn, reader_dsn, monitor_dsn, system_identifier, timeline) = (
    excluded.owner_dsn, excluded.writer_dsn, excluded.query_dsn, excluded.reader_dsn, excluded.monitor_dsn,
    excluded.system_identifier, excluded.timeline
)
WHERE (shard.owner_dsn, shard.writer_dsn, shard.query_dsn, shard.reader_dsn, shard.monitor_dsn) IS DISTINCT FROM (
    excluded.owner_dsn, excluded.writer_dsn, excluded.query_dsn, excluded.reader_dsn, excluded.monitor_dsn
)
"""
_PUBLISH: Final = """
INSERT INTO bucket_map (bucket, shard_id)
SELECT o.bucket, s.shard_id
FROM unnest($1::smallint[], $2::text[]) AS o (bucket, name) JOIN shard AS s USING (name)
"""


@dataclass(frozen=True)
class ClusterInfo:
    """What a cluster is from its making on."""

    cluster_id: str
    bucket_count: int
    epoch: int
    first_month: date
    hash_seed: int
    leaf_width: str


class Catalog:
    """Calls on the control database. Each takes a deadline (monotonic seconds) and raises ShardError."""

    def __init__(
        self,
        dsn: str,
        limits: PoolLimits | None = None,
        changed: Callable[[str, str, Unusable | None], None] | None = None,
        *,
        apart: bool = False,
    ) -> None:
        """`apart`: what a router must know (map, shards, keys) has connections of its own; no request can take them."""
        self.dsn = dsn
        limits = limits or PoolLimits(min_size=1, max_size=5, cooldown_max_s=1.0, lock_timeout_s=5.0)
        self.lineage = Lineage()
        options = PoolOptions("voltroute catalog", lineage=self.lineage)
        options = replace(options, changed=changed) if changed else options
        self.pool = ShardPool(NAME, dsn, limits, options)
        few = replace(limits, min_size=1, max_size=2)
        self.knowing = (
            ShardPool(NAME, dsn, few, PoolOptions("voltroute map", lineage=self.lineage)) if apart else self.pool
        )

    @asynccontextmanager
    async def transaction(self, deadline: float, turn: int | None = None) -> AsyncIterator[Connection]:
        """A connection inside a transaction that commits on leaving; `turn`: the tenant that it is for."""
        async with self.pool.connection(deadline, turn=turn) as connection, transaction(connection):
            yield connection

    @asynccontextmanager
    async def membership(self, deadline: float) -> AsyncIterator[Connection]:
        """A transaction in which nobody else adds, removes or drains a shard, or starts a rebalance.

        Refused when another command does so right now.
        """
        try:
            async with self.transaction(deadline) as connection:
                await connection.execute(_PATIENCE)
                await connection.execute(_MEMBERSHIP)
                yield connection
        except ShardUnavailable as error:
            if error.cause is not Cause.LOCKED:
                raise
            raise Refused("another command is changing the cluster's shards: try again when it has ended") from None

    async def info(self, deadline: float) -> ClusterInfo:
        """The cluster's constants and current epoch. NoCluster when this database holds none."""
        async with self.knowing.connection(deadline) as connection:
            try:
                record = await connection.fetchrow(_CLUSTER)
            except asyncpg.UndefinedTableError:
                record = None
        if record is None:
            message = f"{redact(self.dsn)} holds no voltroute cluster; make one with `voltroute init`"
            raise NoCluster(message)
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
        async with self.knowing.connection(deadline) as connection:
            records = await connection.fetch(_MAP)
        rows = [(r["bucket"], r["name"]) for r in records if r["bucket"] is not None]
        if not rows:
            return None
        pinned = {tenant: BucketRange(start, count) for tenant, start, count in records[0]["pinned"] or ()}
        try:
            return map_from_rows(records[0]["epoch"], records[0]["bucket_count"], rows, pinned)
        except ValueError as error:  # routers go on with the map that they have
            raise NoMap(f"the catalog's map cannot be used: {error}") from None

    async def epochs(self, deadline: float) -> tuple[int, int, int]:
        """The current epochs of the map, of tenants and keys, and of kinds."""
        async with self.knowing.connection(deadline) as connection:
            record = (await connection.fetch(_EPOCHS))[0]
        return record["epoch"], record["keys_epoch"], record["kinds_epoch"]

    async def shards(self, deadline: float) -> list[ShardRecord]:
        """Registered shards, in the order of their registration."""
        async with self.knowing.connection(deadline) as connection:
            records = await connection.fetch(_SHARDS)
        return [_record(dict(record)) for record in records]

    async def set_shard_weight(self, name: str, weight: float, deadline: float) -> bool:
        """How much a shard should hold beside the others; False when there is no such shard."""
        async with self.pool.connection(deadline) as connection:
            return (await connection.execute(_SET_WEIGHT, name, weight)) == "UPDATE 1"

    async def learn_lineage(self, name: str, system: int, timeline: int, deadline: float) -> None:
        """A shard's primary was met on this timeline: routers that start later write to no older one."""
        async with self.knowing.connection(deadline) as connection:
            await connection.execute(_LEARN, name, system, timeline)

    async def accept_lineage(self, name: str, system: int, timeline: int, deadline: float) -> None:
        """A shard's server is this one from now on, whatever it was."""
        async with self.pool.connection(deadline) as connection:
            await connection.execute(_ACCEPT, name, system, timeline)

    async def publish_first_map(self, owners: tuple[str, ...], deadline: float) -> None:
        """Give all buckets out at once. Only for a cluster that has no map yet."""
        async with self.pool.connection(deadline) as connection:
            await give_out(connection, range(len(owners)), owners)

    async def listen(self, changed: asyncio.Event, ping_s: float) -> None:
        """Set `changed` at every NOTIFY of a new map; returns when the connection is lost. ShardError if it fails.

        A connection that went silent is found by asking it something every `ping_s` seconds.
        """
        lost = asyncio.Event()
        async with open_session(
            NAME, self.dsn, application_name="voltroute listener", lineage=self.lineage
        ) as connection:
            await connection.add_listener(MAP_CHANNEL, lambda *_: changed.set())
            connection.add_termination_listener(lambda *_: lost.set())
            changed.set()
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ping_s):
                        await lost.wait()
                        return
                await connection.execute("SELECT 1", timeout=ping_s)

    async def close(self) -> None:
        """Close the pools."""
        await self.pool.close()
        if self.knowing is not self.pool:
            await self.knowing.close()


def _record(row: Mapping[str, Any]) -> ShardRecord:
    replicas = tuple(ReplicaRecord(*each) for each in row["replicas"] or ())
    return ShardRecord(**{**row, "state": ShardState(row["state"]), "replicas": replicas})


async def give_out(connection: Connection, buckets: Iterable[int], owners: Sequence[str]) -> None:
    """Enter the owners of new buckets into the map. No bucket may have one; an owner that is no shard is left out."""
    await connection.execute(_PUBLISH, list(buckets), list(owners))


async def register(connection: Connection, shard: ShardRecord) -> None:
    """Add a shard, or change how it is reached, inside `Catalog.membership`. The map alone gives it buckets."""
    old_reader = shard.old_reader_dsn or _RETIRED
    dsns = (shard.owner_dsn, shard.writer_dsn, shard.reader_dsn, old_reader, shard.monitor_dsn)
    values = (*dsns, shard.weight, shard.system, shard.timeline)
    await connection.execute(_REGISTER, shard.name, *values)


async def set_new_logins(connection: Connection, name: str, query_dsn: str, monitor_dsn: str) -> None:
    """How routers read a shard that knows tenants, and its statistics."""
    await connection.execute(_SET_LOGINS, name, query_dsn, monitor_dsn)


async def forget_old_reader(connection: Connection, name: str) -> None:
    """No router of before is left: nobody reads with the login that knows no tenants."""
    await connection.execute(_FORGET_OLD_READER, name, _RETIRED)


async def set_state(connection: Connection, name: str, state: ShardState) -> bool:
    """Change a shard's state, inside `Catalog.membership`; False when there is no such shard."""
    before = [state, *(each for each, following in SHARD_FOLLOWING.items() if state in following)]
    return (await connection.execute(_SET_STATE, name, state, before)) == "UPDATE 1"


async def uses(connection: Connection, name: str) -> tuple[int, int]:
    """(buckets by the map, open moves) of a shard, inside `Catalog.membership`."""
    record = (await connection.fetch(_IN_USE, name))[0]
    return record["buckets"], record["moves"]


async def remove(connection: Connection, name: str) -> None:
    """Forget a shard, inside `Catalog.membership`."""
    await connection.execute(_REMOVE, name)


async def add_replica(connection: Connection, shard: str, replica: ReplicaRecord) -> None:
    """Have routers read from a replica of a shard, inside `Catalog.membership`."""
    await connection.execute(_ADD_REPLICA, shard, replica.name, replica.address, replica.zone)


async def remove_replica(connection: Connection, shard: str, name: str) -> bool:
    """Have no router read from a replica any more; False when there is none of that name."""
    return (await connection.execute(_REMOVE_REPLICA, shard, name)) == "DELETE 1"
