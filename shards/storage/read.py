"""Reading one shard. Every statement also says which of the asked buckets the shard owns in its snapshot."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.pools import Connection
from shards.postgres.sql import for_kind
from shards.ratings import Ratings
from shards.storage import registers
from shards.storage.rows import COVERED, COVERED_ONE, Reader, Record, Rows, fetch_rows
from shards.window import Window

_TICK: Final = timedelta(microseconds=1)  # PostgreSQL's times are whole microseconds
_STATUS: Final = (
    "SELECT "
    + COVERED_ONE
    + """, s.{id}, {known_values}, s.last_updated, s.created_at
FROM readable_bucket AS o
LEFT JOIN {status} AS s ON s.bucket = $1 AND s.{id} = $2 AND s.tenant_id = {tenant}
WHERE o.bucket = $1
"""
)

# By key, so that a page costs the same wherever it is: $2 < ID < $3, both of them text that no ID need be.
_DEVICES: Final = (
    "SELECT "
    + COVERED
    + """, s.{id}, {known_values}, s.last_updated, s.created_at
FROM (SELECT) AS one
LEFT JOIN LATERAL (
    SELECT {id}, {status_columns}, last_updated, created_at, bucket, tenant_id
    FROM {status}
    WHERE bucket = ANY($1::smallint[]) AND tenant_id = {tenant} AND {id} > $2 AND {id} < $3
    ORDER BY {id}
    LIMIT $4
) AS s ON true
"""
)

_HISTORY: Final = (
    "SELECT "
    + COVERED_ONE
    + """, h.*
FROM readable_bucket AS o
LEFT JOIN LATERAL (
    SELECT {id}, timestamp, ingested_at, {stored_values}
    FROM {history}
    WHERE bucket = $1 AND {id} = $2 AND tenant_id = {tenant} AND timestamp > $3 AND timestamp <= $4
    ORDER BY timestamp DESC
    LIMIT $5
) AS h ON true
WHERE o.bucket = $1
"""
)

_ACTIVITY: Final = (
    "SELECT "
    + COVERED
    + """, h.*
FROM (SELECT) AS one
LEFT JOIN LATERAL (
    SELECT {id}, timestamp, ingested_at, {stored_values}
    FROM {history}
    WHERE bucket = ANY($1::smallint[]) AND tenant_id = {tenant} AND timestamp > $2
    ORDER BY timestamp DESC, {id} DESC
    LIMIT $3
) AS h ON true
"""
)

_SIZE: Final = """
SELECT
    pg_database_size(current_database()) AS size_bytes,
    (SELECT array_agg(bucket ORDER BY bucket) FROM owned_bucket) AS buckets,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
     FROM leaf AS l JOIN pg_class AS c ON c.oid = l.leaf_oid) AS readings_estimate
"""


@cache
def _sql(template: str, kind: Kind) -> str:
    return for_kind(template, kind)


async def status(reader: Reader, kind: Kind, bucket: int, device_id: str) -> Rows:
    """Current status of a device: one item or none."""
    return await fetch_rows(reader, _sql(_STATUS, kind), kind.id_column, bucket, device_id)


async def devices(reader: Reader, kind: Kind, buckets: Sequence[int], between: tuple[str, str], limit: int) -> Rows:
    """Current status of the devices whose IDs lie between two texts, in byte order, at most `limit`."""
    return await fetch_rows(reader, _sql(_DEVICES, kind), kind.id_column, buckets, *between, limit)


async def history(reader: Reader, kind: Kind, place: tuple[int, str], window: Window, limit: int) -> Rows:
    """Readings in `window` of the device at `place` (bucket, ID), newest first, at most `limit`."""
    arguments = (*place, window.start, window.end, limit)
    return await fetch_rows(reader, _sql(_HISTORY, kind), kind.id_column, *arguments)


def counts(kind: Kind, rows: Rows) -> list[Record]:
    """Those rows of a history that have a register in place of an energy."""
    if kind.alternatives is None:
        return []
    _, register = kind.alternatives
    return [row for row in rows.rows if row[register] is not None]


async def add_energies(
    reader: Reader, kind: Kind, place: tuple[int, str], counted: list[Record], ratings: Ratings
) -> None:
    """Give each of a history's `counts` (at least one, newest first) the energy since the one before it."""
    if kind.alternatives is None:
        raise AssertionError  # there are no counts of such a kind
    energy, _ = kind.alternatives
    window = Window(counted[-1]["timestamp"] - _TICK, counted[0]["timestamp"])
    energies = await registers.each(reader, kind, place, window, ratings)
    for row in counted:
        row[energy] = energies.get(row["timestamp"])


async def activity(reader: Reader, kind: Kind, buckets: Sequence[int], since: datetime, limit: int) -> Rows:
    """The newest readings after `since` in `buckets`: by time, then device, descending."""
    return await fetch_rows(reader, _sql(_ACTIVITY, kind), kind.id_column, buckets, since, limit)


async def size(connection: Connection) -> Record:
    """Bytes, owned buckets and PostgreSQL's estimate of the number of readings of a shard."""
    return dict((await connection.fetch(_SIZE))[0])
