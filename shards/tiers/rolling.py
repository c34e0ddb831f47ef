"""Keeping rollups: what was ingested since a bucket's mark is added, in the transaction that moves the mark.

The caller holds the bucket (see runner). Readings are only inserted, so that nothing needs to be looked at twice; where
that is not so (a clock that was set back, columns that are summed as something else), rollups are made anew.
"""

import contextlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from shards.bins import HOUR
from shards.kinds import Kind
from shards.postgres.pools import Connection
from shards.postgres.transactions import transaction
from shards.storage import rollups
from shards.tiers.due import NEVER, Leaf
from shards.tiers.watching import Watch, watch_nothing

_BUCKETS: Final = """
SELECT b.bucket FROM bucket_table AS b JOIN owned_bucket AS o USING (bucket)
WHERE b.kind = $1 AND b.role = 'history' AND NOT b.detaching
    AND NOT EXISTS (SELECT FROM bucket_move AS m WHERE m.bucket = b.bucket)
ORDER BY bucket
"""
_IS_HERE: Final = """
SELECT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1)
    AND NOT EXISTS (SELECT FROM bucket_move WHERE bucket = $1)
"""
_BEGIN: Final = "INSERT INTO tier (bucket, kind, frozen_until) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
_KNOWN: Final = """
SELECT rolled_until, rolled_of, packed_until, clock_timestamp() AS clock FROM tier WHERE bucket = $1 AND kind = $2
"""
_ROLLED: Final = "UPDATE tier SET rolled_until = $3, rolled_of = $4 WHERE bucket = $1 AND kind = $2"
_FORGOTTEN: Final = "UPDATE tier SET rolled_of = NULL WHERE bucket = $1 AND kind = $2"
_IS_ROLLED: Final = "SELECT FROM tier WHERE kind = {kind} AND bucket = $1::smallint AND rolled_of = '{roles}'"
_PAGES: Final = """
SELECT x.oid, upper(l.span) <= now() AS closed,
    pg_relation_size(l.leaf_oid) / current_setting('block_size')::integer / coalesce((
        SELECT option_value FROM pg_options_to_table(x.reloptions) WHERE option_name = 'pages_per_range'
    ), '128')::integer AS ranges
FROM bucket_table AS b
CROSS JOIN LATERAL leaves_of(b.name) AS l
JOIN pg_index AS i ON i.indrelid = l.leaf_oid
JOIN pg_class AS x ON x.oid = i.indexrelid
JOIN pg_am AS a ON a.oid = x.relam AND a.amname = 'brin'
WHERE b.bucket = $1 AND b.kind = $2 AND b.role = 'history' AND NOT b.detaching
"""
_SUMMARIZE: Final = """
SELECT count(brin_summarize_range($1::oid::regclass, n * coalesce((
    SELECT option_value FROM pg_class AS c, pg_options_to_table(c.reloptions)
    WHERE c.oid = $1::oid AND option_name = 'pages_per_range'
), '128')::bigint)) FROM generate_series($2::bigint, $3::bigint) AS n
"""
_SUMMARIZE_ALL: Final = "SELECT brin_summarize_new_values($1::oid::regclass)"
_DAY: Final = timedelta(days=1)


@dataclass
class Summaries:
    """How far the summaries of leaves go, as this process made them: index -> complete ranges of pages."""

    ranges: dict[int, int] = field(default_factory=dict)

    async def extend(self, connection: Connection, bucket: int, kind: Kind) -> None:
        """Summarize the pages that are full; the last ones of a leaf that is written to would be changed by writers."""
        for oid, closed, ranges in await connection.fetch(_PAGES, bucket, kind.name):
            known = self.ranges.get(oid, -1)
            if ranges <= known and not (closed and known >= 0):
                continue
            with contextlib.suppress(asyncpg.LockNotAvailableError):  # a VACUUM is there: next time
                if closed and ranges != known:
                    await connection.execute(_SUMMARIZE_ALL, oid)
                elif ranges > max(known, 0):
                    await connection.execute(_SUMMARIZE, oid, max(known, 0), ranges - 1)
                self.ranges[oid] = ranges


async def buckets(connection: Connection, kind: Kind) -> list[int]:
    """Those that can be rolled up: owned, and in no move."""
    return [record["bucket"] for record in await connection.fetch(_BUCKETS, kind.name)]


async def roll(connection: Connection, kind: Kind, bucket: int, mark: datetime, at: Watch = watch_nothing) -> int:
    """Add what was ingested in a bucket before `mark`; returns how many readings. The bucket is held."""
    if not await connection.fetchval(_IS_HERE, bucket):
        return 0
    await connection.execute(_BEGIN, bucket, kind.name, NEVER)
    known = (await connection.fetch(_KNOWN, bucket, kind.name))[0]
    # A clock behind the mark was set back: what is ingested now may lie before it, and would never be added.
    if known["rolled_of"] != rollups.roles(kind) or known["clock"] < known["rolled_until"]:
        return await _make_anew(connection, kind, bucket, (mark, known["packed_until"]), at)
    if mark <= known["rolled_until"]:
        return 0
    async with transaction(connection):
        added = await connection.fetchval(rollups.roll(kind), bucket, known["rolled_until"], mark)
        await at("inside roll")
        await connection.execute(_ROLLED, bucket, kind.name, mark, rollups.roles(kind))
    return int(added)


async def _make_anew(
    connection: Connection, kind: Kind, bucket: int, bounds: tuple[datetime, datetime], at: Watch
) -> int:
    """All of a bucket, a day at a time. Until the end readers take none of it, and whoever comes next begins anew.

    `bounds`: the mark, and up to where the bucket is packed.
    """
    mark, packed_until = bounds
    async with transaction(connection):
        await connection.execute(_FORGOTTEN, bucket, kind.name)
        for statement in rollups.forget(kind):
            await connection.execute(statement, bucket)
    total = 0
    for record in await connection.fetch(rollups.days(kind), bucket):
        day: datetime = record["day"]
        total += int(await connection.fetchval(rollups.fill(kind), bucket, mark, day, day + _DAY))
        await at("inside roll")
    await fold(connection, kind, bucket, packed_until)
    await connection.execute(_ROLLED, bucket, kind.name, mark, rollups.roles(kind))
    return total


async def fold(connection: Connection, kind: Kind, bucket: int, packed_until: datetime) -> None:
    """Fold the hours that are packed. The last one may still hold a reading that is not: of its last instant."""
    if packed_until > NEVER:
        await connection.execute(rollups.fold(kind), bucket, packed_until - HOUR)


def _if_rolled(kind: Kind) -> str:
    return f"EXISTS ({_IS_ROLLED.format(kind=repr(kind.name), roles=rollups.roles(kind))})"


async def add_leaf(connection: Connection, kind: Kind, bucket: int, leaf: Leaf, table: str) -> None:
    """In the transaction that publishes a leaf as packed: what of it was not counted yet is, from now on.

    Where the sums of its hours are not those of its readings, the bucket's rollups are none until they are made anew.
    """
    await connection.execute(rollups.add_rest(kind, table, _if_rolled(kind)), bucket)
    bounds = (leaf.lower or NEVER, leaf.upper)
    if await connection.fetchval(rollups.differing(kind, table), bucket, *bounds):
        await connection.execute(_FORGOTTEN, bucket, kind.name)
    await fold(connection, kind, bucket, leaf.upper)


async def add_late(connection: Connection, kind: Kind, bucket: int, which: str, *keys: object) -> None:
    """In the transaction that merges the late readings `which` (SQL, from $2 on): those that were not counted yet."""
    await connection.execute(rollups.add_rest(kind, f'"{kind.late}"', f"{which} AND {_if_rolled(kind)}"), bucket, *keys)
