"""Tenants in the catalog: whose devices and readings are told apart, and which buckets are whose."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from shards.buckets import BucketRange
from shards.catalog.database import Catalog, give_out
from shards.errors import Refused
from shards.postgres.connections import Connection

DEFAULT: Final = 0  # of what a cluster without keys stores
DEFAULT_NAME: Final = "default"
BUCKETS_MAX: Final = 32_768  # of all ranges together

_COLUMNS: Final = "tenant_id, name, created_at, rate, first_bucket, bucket_count, shards, ready"
_ALL: Final = f"SELECT {_COLUMNS} FROM tenant ORDER BY tenant_id"
_FIND: Final = f"SELECT {_COLUMNS} FROM tenant WHERE name = $1"
_INSERT: Final = f"""
INSERT INTO tenant (name, rate, first_bucket, bucket_count, shards, ready)
VALUES ($1, $2, $3, $4, $5, $3::integer IS NULL) RETURNING {_COLUMNS}
"""
_SET_RATE: Final = "UPDATE tenant SET rate = $2 WHERE name = $1"
_READY: Final = "UPDATE tenant SET ready = true WHERE tenant_id = $1"
_PUBLISHED: Final = "SELECT count(*) FROM bucket_map WHERE bucket = ANY($1::smallint[])"
_END: Final = """
SELECT greatest(
    (SELECT bucket_count FROM cluster), coalesce((SELECT max(first_bucket + bucket_count) FROM tenant), 0)
)::int
"""


@dataclass(frozen=True)
class Tenant:
    """`rate`: readings a second for each router, None without limit. `pinned`: buckets of its own, on `shards` alone.

    `ready`: False while the tables of its own buckets are being made.
    """

    tenant_id: int
    name: str
    created_at: datetime
    rate: float | None = None
    pinned: BucketRange | None = None
    shards: tuple[str, ...] = ()
    ready: bool = True


def _tenant(record: asyncpg.Record) -> Tenant:
    start, count = record["first_bucket"], record["bucket_count"]
    return Tenant(
        record["tenant_id"],
        record["name"],
        record["created_at"],
        record["rate"],
        None if start is None else BucketRange(start, count),
        tuple(record["shards"] or ()),
        record["ready"],
    )


async def all_of(catalog: Catalog, deadline: float) -> list[Tenant]:
    """All tenants, in the order of their making."""
    async with catalog.pool.connection(deadline) as connection:
        return [_tenant(record) for record in await connection.fetch(_ALL)]


async def find(catalog: Catalog, name: str, deadline: float) -> Tenant | None:
    """The tenant of that name."""
    async with catalog.pool.connection(deadline) as connection:
        record = await connection.fetchrow(_FIND, name)
    return None if record is None else _tenant(record)


async def pins(catalog: Catalog, deadline: float) -> dict[int, tuple[str, ...]]:
    """The buckets of pinned tenants, and the shards that alone may have them."""
    found = await all_of(catalog, deadline)
    return {bucket: tenant.shards for tenant in found if tenant.pinned for bucket in tenant.pinned.buckets}


async def insert(
    connection: Connection, name: str, rate: float | None, pinned: BucketRange | None, shards: Sequence[str]
) -> Tenant:
    """Make a tenant, inside `Catalog.membership`; with buckets of its own it is not ready."""
    start, count = (None, None) if pinned is None else (pinned.start, pinned.count)
    return _tenant((await connection.fetch(_INSERT, name, rate, start, count, list(shards) or None))[0])


async def set_rate(catalog: Catalog, name: str, rate: float | None, deadline: float) -> bool:
    """Change a tenant's limit; False when there is no such tenant."""
    async with catalog.pool.connection(deadline) as connection:
        return (await connection.execute(_SET_RATE, name, rate)) == "UPDATE 1"


async def next_bucket(connection: Connection) -> int:
    """The first bucket that no range has."""
    return int(await connection.fetchval(_END))


async def publish(connection: Connection, tenant: Tenant, owners: Sequence[str]) -> None:
    """Give a tenant's own buckets out, in their order; from then on it is ready. Inside `Catalog.membership`.

    Refused when one of the owners is no shard any more: a map with a bucket that nobody has could not be used.
    """
    buckets = list(tenant.pinned.buckets) if tenant.pinned else []
    if await connection.fetchval(_PUBLISHED, buckets) == 0:  # else two repeats were made at once
        await give_out(connection, buckets, owners)
    if await connection.fetchval(_PUBLISHED, buckets) != len(buckets):
        raise Refused(f"one of {', '.join(sorted(set(owners)))} is not a shard any more")
    await connection.execute(_READY, tenant.tenant_id)
