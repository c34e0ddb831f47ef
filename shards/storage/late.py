"""Late readings: their time is frozen, so they go to a table of their own, once, whatever tier has the others.

A merge takes late readings into packed days, and deletes them here. Whoever stores late readings shares a lock with
others, which a merge takes alone: without it a statement that began before the merge's commit would find a repeat
neither here nor there, and store it again.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import asyncpg

from shards.clock import deadline_in, remaining
from shards.errors import Frozen, LateUnavailable
from shards.kinds import VALUES_AT, Kind, Row
from shards.postgres.connections import Connection
from shards.postgres.sql import for_kind
from shards.postgres.transactions import transaction
from shards.storage.packing import Column, part_of, readings, times
from shards.storage.tiers import shape_of
from shards.storage.write import Key, Written, refreshing, stored, together, write_within

_SHARED: Final = "SELECT pg_advisory_xact_lock_shared(hashtext('voltroute.late'), $1::integer)"
ALONE: Final = "SELECT pg_advisory_xact_lock(hashtext('voltroute.late'), $1::integer)"
# The packed days of what is given.
_DAYS: Final = """
), day AS MATERIALIZED (
    SELECT DISTINCT bucket, tenant_id, {id}, (timestamp AT TIME ZONE 'UTC')::date AS day FROM given
), packed AS MATERIALIZED (
    SELECT p.* FROM day AS d CROSS JOIN LATERAL (
        SELECT * FROM {packed}
        WHERE bucket = d.bucket AND {id} = d.{id} AND day = d.day AND tenant_id = d.tenant_id
        OFFSET 0
    ) AS p
)"""
# Of each day only the parts in which one of the given times would lie: a part is a twenty-fourth of a usual day.
_HELD: Final = (
    _DAYS
    + """, part AS MATERIALIZED (
    SELECT DISTINCT p.{id}, p.tenant_id, p.day, {part} AS part
    FROM given AS g JOIN packed AS p
        ON p.{id} = g.{id} AND p.tenant_id = g.tenant_id AND p.day = (g.timestamp AT TIME ZONE 'UTC')::date
), held AS MATERIALIZED ({times}
)"""
)
_PARTS: Final = "(SELECT p.*, part.part FROM part JOIN packed AS p USING ({id}, tenant_id, day) WHERE part.part >= 0)"
_STORE: Final = (
    """
WITH place AS MATERIALIZED (
    SELECT frozen_until, sealed_until FROM tier WHERE kind = {kind} AND bucket = ($1::smallint[])[1]
), given AS MATERIALIZED (
    SELECT * FROM unnest($1::smallint[], $2::smallint[], $3::varchar[], $4::timestamptz[], {value_arrays})
        AS t (bucket, tenant_id, {id}, timestamp, {values})
    WHERE timestamp >= coalesce((SELECT sealed_until FROM place), '-infinity')"""
    + _HELD
    + """, stored AS (
    INSERT INTO {late} (bucket, tenant_id, {id}, timestamp, {values})
    SELECT bucket, tenant_id, {id}, timestamp, {values} FROM given AS g
    WHERE NOT EXISTS (
        SELECT FROM held WHERE held.{id} = g.{id} AND held.timestamp = g.timestamp AND held.tenant_id = g.tenant_id
    ) AND NOT EXISTS (
        SELECT FROM {history} AS h
        WHERE h.bucket = g.bucket AND h.{id} = g.{id} AND h.timestamp = g.timestamp AND h.tenant_id = g.tenant_id
    )
    ON CONFLICT DO NOTHING
    RETURNING bucket, tenant_id, {id}, timestamp, {values}
), refreshed AS ({refreshing}
)
SELECT
    (SELECT count(*) FROM given WHERE timestamp >= coalesce((SELECT frozen_until FROM place), '-infinity')) AS hot,
    (SELECT sealed_until FROM place) AS sealed_until,
    (SELECT array_agg(tenant_id) FROM stored) AS tenants,
    (SELECT array_agg({id}) FROM stored) AS ids,
    (SELECT array_agg(timestamp) FROM stored) AS timestamps
"""
)
_STORED: Final = (
    """
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::smallint[], $2::smallint[], $3::varchar[], $4::timestamptz[])
        AS t (bucket, tenant_id, {id}, timestamp)"""
    + _DAYS
    + """, held AS MATERIALIZED ({readings}
)
SELECT h.* FROM given AS g CROSS JOIN LATERAL (
    SELECT tenant_id, {id}, timestamp, {values} FROM {history}
    WHERE bucket = g.bucket AND {id} = g.{id} AND timestamp = g.timestamp AND tenant_id = g.tenant_id
    UNION ALL
    SELECT tenant_id, {id}, timestamp, {values} FROM {late}
    WHERE bucket = g.bucket AND {id} = g.{id} AND timestamp = g.timestamp AND tenant_id = g.tenant_id
    LIMIT 1
) AS h
UNION ALL
SELECT tenant_id, {id}, timestamp, {values} FROM held
WHERE (tenant_id, {id}, timestamp) IN (SELECT tenant_id, {id}, timestamp FROM given)
"""
)


@cache
def _sql(template: str, kind: Kind, columns: tuple[Column, ...]) -> str:
    shape = shape_of(kind)
    names = {
        "{part}": part_of("p", "g.timestamp"),
        "{times}": times(shape, _PARTS),
        "{readings}": readings(shape, "packed", columns),
    }
    for placeholder, text in names.items():
        template = template.replace(placeholder, text)
    return for_kind(template.replace("{refreshing}", refreshing(kind)), kind)


async def write_with_late(
    connection: Connection,
    shard: str,
    kind: Kind,
    rows: tuple[Sequence[Row], Sequence[Sequence[Row]]],
    timeout_s: float,
) -> Written:
    """Store a batch: hot rows (perhaps none), and late ones by bucket. On return they are committed.

    One transaction: whatever fails, nothing of the batch is stored, so that it counts as it should when it comes again.
    Frozen when the time of a late row is not. Raises what the driver raises; LateUnavailable while a merge of a bucket
    takes too long.
    """
    deadline, (hot, late) = deadline_in(timeout_s), rows
    async with transaction(connection):
        parts = [(some, await _write(connection, shard, kind, some, deadline)) for some in late]
        if hot:
            parts.append((hot, await write_within(connection, kind, hot, remaining(deadline))))
    written = together(parts)
    # After the COMMIT: what fails now concerns only what repeats are told.
    found = dict(written.stored)
    for some, part in parts:
        if part.new is not None:
            look = stored if some is hot else _stored
            found |= await look(connection, kind, some, remaining(deadline))
    return Written(written.new, found, written.too_old)


async def _write(connection: Connection, shard: str, kind: Kind, rows: Sequence[Row], deadline: float) -> Written:
    """Late rows of one bucket, inside a transaction."""
    first: dict[Key, Row] = {}
    for row in rows:  # of two with one key, the one that arrived first
        first.setdefault(row[1:VALUES_AT], row)
    ordered = sorted(first.values(), key=lambda row: row[1:VALUES_AT], reverse=True)  # as every batch locks statuses
    bucket = ordered[0][0]
    columns = [*zip(*ordered, strict=True)]
    try:
        # A statement of its own: what comes next sees whatever a merge committed before the lock was free.
        await connection.execute(_SHARED, bucket, timeout=remaining(deadline))
    except asyncpg.LockNotAvailableError:
        newest = max(row[3] for row in rows)
        raise LateUnavailable(shard, f"late readings of bucket {bucket} are being merged", bucket, newest) from None
    found = (await connection.fetch(_sql(_STORE, kind, ()), *columns, timeout=remaining(deadline)))[0]
    if found["hot"]:
        raise Frozen(shard, "the time of a reading is not frozen here")
    new = set(zip(*(found[name] or () for name in ("tenants", "ids", "timestamps")), strict=True))
    sealed_until = found["sealed_until"]
    too_old = frozenset(row[1:VALUES_AT] for row in ordered if sealed_until is not None and row[3] < sealed_until)
    return Written(None if len(new) == len(rows) else new, too_old=too_old)


async def _stored(
    connection: Connection, kind: Kind, rows: Sequence[Row], timeout_s: float
) -> Mapping[Key, tuple[object, ...]]:
    """What is stored under the keys of late rows, after the COMMIT; nothing when PostgreSQL does not say."""
    keys = zip(*(row[:VALUES_AT] for row in rows), strict=True)
    values = tuple(column for column in shape_of(kind).columns if column.name in kind.values)
    try:
        records = await connection.fetch(_sql(_STORED, kind, values), *keys, timeout=timeout_s)
    except (asyncpg.PostgresError, TimeoutError):
        return {}
    return {(record[0], record[1], record[2]): tuple(record)[3:] for record in records}
