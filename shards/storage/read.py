"""Reading one shard. Every statement also says which of the asked buckets the shard owns in its snapshot."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from typing import Final

import asyncpg

from shards.kinds import Kind
from shards.postgres.connections import Connection
from shards.postgres.driver import ARCHIVED
from shards.postgres.sql import for_kind
from shards.ratings import Ratings
from shards.storage import registers
from shards.storage.rows import COVERED, COVERED_ONE, Reader, Record, Rows, fetch_rows
from shards.storage.tiers import (
    ARCHIVED_UNTIL,
    ARCHIVED_UNTIL_ONE,
    ONE,
    PACKED_UNTIL,
    PACKED_UNTIL_ONE,
    SEVERAL,
    Place,
    hot,
    late,
    newest_days,
    newest_days_of_all,
    oldest_days,
    packed,
    shape_of,
    source,
)
from shards.window import Window

_TICK: Final = timedelta(microseconds=1)  # PostgreSQL's times are whole microseconds
_STATUS: Final = (
    "SELECT "
    + COVERED_ONE
    + """, s.{id}, {known_values}, s.last_updated, s.created_at{settled}
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

# Each tier gives its newest, so that none is read further than the answer goes.
_HISTORY: Final = (
    "SELECT "
    + COVERED_ONE
    + ", "
    + PACKED_UNTIL_ONE
    + """ AS packed_until, {archived_until} AS archived_until, h.*
FROM readable_bucket AS o
LEFT JOIN LATERAL (
    SELECT {id}, timestamp, ingested_at, {stored_values}, tier
    FROM ({tiers}) AS r
    ORDER BY timestamp DESC
    LIMIT $5
) AS h ON true
WHERE o.bucket = $1
"""
)

_ACTIVITY: Final = (
    "SELECT "
    + COVERED
    + ", "
    + PACKED_UNTIL
    + """ AS packed_until, {archived_until} AS archived_until, h.*
FROM (SELECT) AS one
LEFT JOIN LATERAL (
    SELECT {id}, timestamp, ingested_at, {stored_values}, tier
    FROM ({tiers}) AS r
    ORDER BY timestamp DESC, {id} DESC
    LIMIT $3
) AS h ON true
"""
)
_EXPORT: Final = (
    "SELECT "
    + COVERED
    + """, h.*
FROM (SELECT) AS one
LEFT JOIN LATERAL (
    SELECT {id}, timestamp, {stored_values} FROM ({tiers}) AS r ORDER BY {id}, timestamp LIMIT $5
) AS h ON true
"""
)
_OF_DEVICES: Final = (
    "{row}.bucket = ANY($1::smallint[]) AND {row}.tenant_id = {tenant} AND {row}.{id} = ANY($2::varchar[])"
)
_OF_DEVICE: Final = (
    "{row}.bucket = ($1::smallint[])[1] AND {row}.tenant_id = {tenant} AND {row}.{id} = ($2::varchar[])[1]"
)
_INGESTED: Final = ", h.ingested_at"
_NOT_KEPT: Final = ", NULL::timestamptz AS ingested_at"  # a packed day does not hold it

_SIZE: Final = """
SELECT
    pg_database_size(current_database()) AS size_bytes,
    (SELECT array_agg(bucket ORDER BY bucket) FROM owned_bucket) AS buckets,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
     FROM leaf AS l JOIN pg_class AS c ON c.oid = l.leaf_oid
     WHERE NOT EXISTS (SELECT FROM packed_leaf AS p WHERE p.table_oid = l.leaf_oid))
    + (SELECT coalesce(sum(packed_readings), 0)::bigint FROM tier) AS readings_estimate
"""


@cache
def _sql(template: str, kind: Kind) -> str:
    return for_kind(template, kind)


async def status(reader: Reader, kind: Kind, bucket: int, device_id: str, *, settled: bool = False) -> Rows:
    """Current status of a device: one item or none.

    `settled`: it also has `is_settled`, whether no other shard can have stored anything newer before this was read.
    """
    template = _STATUS.replace("{settled}", ", o.is_settled" if settled else "")
    return await fetch_rows(reader, _sql(template, kind), kind.id_column, bucket, device_id)


async def devices(reader: Reader, kind: Kind, buckets: Sequence[int], between: tuple[str, str], limit: int) -> Rows:
    """Current status of the devices whose IDs lie between two texts, in byte order, at most `limit`."""
    return await fetch_rows(reader, _sql(_DEVICES, kind), kind.id_column, buckets, *between, limit)


async def history(reader: Reader, kind: Kind, place: tuple[int, str], window: Window, limit: int) -> Rows:
    """Readings in `window` of the device at `place` (bucket, ID), newest first, at most `limit`.

    `Rows.archived_until` says where they end for that reason, and None where they do not.
    """
    arguments = (*place, window.start, window.end, limit)
    return await _by_tiers(reader, "history", kind, window.start, limit, *arguments)


@cache
def _export(kind: Kind, *, one: bool) -> str:
    columns = shape_of(kind).columns
    if not one:
        return for_kind(_EXPORT.replace("({tiers})", source(kind, Place(_OF_DEVICES, "$3", "$4"), columns)), kind)
    place = Place(_OF_DEVICE, "$3", "$4")
    days = oldest_days(kind, place, "$5")
    parts = (hot(kind, place, columns), late(kind, place, columns), packed(kind, place, columns, rows=days))
    tiers = " UNION ALL ".join(f"({part} ORDER BY h.timestamp LIMIT $5)" for part in parts)
    return for_kind(_EXPORT.replace("{tiers}", tiers), kind)


async def export(
    reader: Reader, kind: Kind, buckets: Sequence[int], device_ids: Sequence[str], window: Window, limit: int
) -> Rows:
    """Readings of some devices in `window` as they were sent: by device, then time, ascending, at most `limit`.

    Of one device no more is read than is given; of several, everything.
    """
    one = len(device_ids) == 1
    arguments = (device_ids, window.start, window.end, limit)
    return await fetch_rows(reader, _export(kind, one=one), kind.id_column, buckets, *arguments, anew=not one)


def counts(kind: Kind, rows: Rows) -> list[Record]:
    """Those rows of a history that have a register in place of an energy."""
    if kind.alternatives is None:
        return []
    _, register = kind.alternatives
    return [row for row in rows.rows if row[register] is not None]


async def add_energies(
    reader: Reader, kind: Kind, place: tuple[int, str], counted: list[Record], ratings: Ratings
) -> None:
    """Give each of a history's `counts` (at least one, newest first) the energy since the one before it.

    That of the oldest one stays unknown when the one before it is archived.
    """
    if kind.alternatives is None:
        raise AssertionError  # there are no counts of such a kind
    energy, _ = kind.alternatives
    window = Window(counted[-1]["timestamp"] - _TICK, counted[0]["timestamp"])
    try:
        energies = await registers.each(reader, kind, place, window, ratings)
    except asyncpg.PostgresError as error:
        if error.sqlstate != ARCHIVED:
            raise
        window = Window(counted[-1]["timestamp"], max(counted[0]["timestamp"], counted[-1]["timestamp"] + _TICK))
        energies = await registers.each(reader, kind, place, window, ratings)
    for row in counted:
        row[energy] = energies.get(row["timestamp"])


async def activity(reader: Reader, kind: Kind, buckets: Sequence[int], since: datetime, limit: int) -> Rows:
    """The newest readings after `since` in `buckets`: by time, then device, descending; down to what is archived."""
    return await _by_tiers(reader, "activity", kind, since, limit, buckets, since, limit)


async def _by_tiers(
    reader: Reader,
    name: str,
    kind: Kind,
    since: datetime,
    limit: int,
    buckets: int | Sequence[int],
    *arguments: object,
) -> Rows:
    """The newest readings. Packed days are looked at only when those that are not packed leave room for theirs."""
    found = await fetch_rows(reader, _newest(name, kind, whole=False), kind.id_column, buckets, *arguments)
    until = found.packed_until
    if until is None or since >= until or (len(found.rows) == limit and found.rows[-1]["timestamp"] >= until):
        return found
    # Another snapshot, in which more may be packed: this one is the answer, whatever the first one had.
    found = await fetch_rows(reader, _newest(name, kind, whole=True), kind.id_column, buckets, *arguments)
    return _above_archived(found, since, limit)


def _above_archived(found: Rows, since: datetime, limit: int) -> Rows:
    """Without what is older than archived time: readings of a month that was restored, with a gap before them."""
    until = found.archived_until
    if until is None or since >= until - _TICK:
        return replace(found, archived_until=None)
    rows = [row for row in found.rows if row["timestamp"] >= until]
    return replace(found, rows=rows, archived_until=None if len(rows) == limit else until)


@cache
def _newest(name: str, kind: Kind, *, whole: bool) -> str:
    """The statement of a history or of activity: of all tiers, or without packed days."""
    if name == "history":
        template, place, limit, order = _HISTORY, Place(ONE, "$3", "$4", guarded=False), "$5", "h.timestamp DESC"
        days = newest_days(kind, place, limit)
    else:
        template, place, limit = _ACTIVITY, Place(SEVERAL, "$2", guarded=False), "$3"
        order, days = "h.timestamp DESC, h.{id} DESC", newest_days_of_all(kind, place, limit)
    columns = shape_of(kind).columns
    parts = [hot(kind, place, columns, _INGESTED), late(kind, place, columns, _INGESTED)]
    if whole:
        parts.append(packed(kind, place, columns, _NOT_KEPT, days))
    tiers = " UNION ALL ".join(f"({part} ORDER BY {order} LIMIT {limit})" for part in parts)
    of_one = name == "history"
    until = (ARCHIVED_UNTIL_ONE if of_one else ARCHIVED_UNTIL).replace("{until}", "$4" if of_one else "now()")
    archived = until if whole else "NULL::timestamptz"
    return for_kind(template.replace("{tiers}", tiers).replace("{archived_until}", archived), kind)


async def size(connection: Connection) -> Record:
    """Bytes, owned buckets and PostgreSQL's estimate of the number of readings of a shard."""
    return dict((await connection.fetch(_SIZE))[0])
