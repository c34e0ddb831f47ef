"""Keeping rollups: what was ingested since a bucket's mark is added, in the transaction that moves the mark.

The caller holds the bucket (see runner). Readings are only inserted, so that nothing needs to be looked at twice; where
that is not so (a clock that was set back, columns that are summed as something else), rollups are made anew.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import asyncpg
from asyncpg import Record

from shards.bins import DAY, HOUR
from shards.kinds import Kind
from shards.postgres.connections import Connection
from shards.postgres.sql import LOCK_TIMEOUT, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage import rollups, spans
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
SELECT rolled_until, rolled_of, packed_until, sealed_until, summed_since, clock_timestamp() AS clock
FROM tier WHERE bucket = $1 AND kind = $2
"""
_ROLLED: Final = "UPDATE tier SET rolled_until = $3, rolled_of = $4 WHERE bucket = $1 AND kind = $2"
_FORGOTTEN: Final = "UPDATE tier SET rolled_of = NULL WHERE bucket = $1 AND kind = $2"
# What left before there were sums of these columns has none, and never will.
_NOT_SUMMED: Final = """
UPDATE tier SET summed_since = greatest(summed_since, sealed_until) WHERE bucket = $1 AND kind = $2
"""
_IS_ROLLED: Final = "SELECT EXISTS (SELECT FROM tier WHERE bucket = $1 AND kind = $2 AND rolled_of = $3)"
_OF_OTHERS: Final = """
UPDATE tier SET rolled_of = NULL, summed_since = greatest(summed_since, sealed_until)
WHERE bucket = $1 AND kind = $2 AND rolled_of <> $3
"""
_SUMMED_SINCE: Final = """
UPDATE tier SET summed_since = $3 WHERE bucket = $1 AND kind = $2 AND summed_since < $3
"""
_PAGES: Final = """
SELECT x.oid, upper(l.span) <= now() AS closed,
    coalesce(pg_relation_size(l.leaf_oid), 0) / current_setting('block_size')::integer / coalesce((
        SELECT option_value FROM pg_options_to_table(x.reloptions) WHERE option_name = 'pages_per_range'
    ), '128')::integer AS ranges
FROM bucket_table AS b
CROSS JOIN LATERAL leaves_of(b.name) AS l
JOIN pg_index AS i ON i.indrelid = l.leaf_oid
JOIN pg_class AS x ON x.oid = i.indexrelid
JOIN pg_am AS a ON a.oid = x.relam AND a.amname = 'brin'
WHERE b.kind = $1 AND b.role = 'history' AND NOT b.detaching
"""
_SUMMARIZE: Final = """
SELECT count(brin_summarize_range($1::oid::regclass, n * coalesce((
    SELECT option_value FROM pg_class AS c, pg_options_to_table(c.reloptions)
    WHERE c.oid = $1::oid AND option_name = 'pages_per_range'
), '128')::bigint)) FROM generate_series($2::bigint, $3::bigint) AS n
"""
_SUMMARIZE_ALL: Final = "SELECT brin_summarize_new_values($1::oid::regclass)"
# A VACUUM is there: next time. Or the leaf is not any more, as another duty has dropped it since somebody looked: for
# that PostgreSQL has no code of its own.
_PASSING: Final = (asyncpg.LockNotAvailableError, asyncpg.UndefinedTableError, asyncpg.InternalServerError)
SLICE: Final = timedelta(hours=1)  # of what was ingested, in a transaction


@dataclass
class Summaries:
    """How far the summaries of leaves go, as this process made them: index -> full ranges of pages, and if closed."""

    known: dict[int, tuple[int, bool]] = field(default_factory=dict)
    counted: set[tuple[int, str]] = field(default_factory=set)  # of which buckets and kinds no hot hour is unknown

    async def extend(self, connection: Connection, kind: Kind) -> None:
        """Summarize the pages that are full; the last ones of a leaf that is written to would be changed by writers."""
        for oid, closed, ranges in await connection.fetch(_PAGES, kind.name):
            done, was_closed = self.known.get(oid, (0, False))
            if was_closed or (ranges <= done and not closed):
                continue
            with contextlib.suppress(*_PASSING):
                async with transaction(connection):
                    await connection.execute(LOCK_TIMEOUT)  # an autovacuum would be ended after a second
                    if closed:
                        await connection.execute(_SUMMARIZE_ALL, oid)
                    else:
                        await connection.execute(_SUMMARIZE, oid, done, ranges - 1)
                self.known[oid] = (ranges, closed)


async def buckets(connection: Connection, kind: Kind) -> list[int]:
    """Those that can be rolled up: owned, and in no move."""
    return [record["bucket"] for record in await connection.fetch(_BUCKETS, kind.name)]


async def roll(
    connection: Connection, kind: Kind, bucket: int, mark: datetime, at: Watch = watch_nothing
) -> tuple[int, bool]:
    """Add what was ingested in a bucket before `mark`, or a slice of it; how many readings, and if more is to come.

    The bucket is held.
    """
    if not await connection.fetchval(_IS_HERE, bucket):
        return 0, False
    await connection.execute(_BEGIN, bucket, kind.name, NEVER)
    known = (await connection.fetch(_KNOWN, bucket, kind.name))[0]
    since = known["rolled_until"]
    # A clock behind the mark was set back: what is ingested now may lie before it, and would never be added.
    if known["rolled_of"] != rollups.roles(kind) or known["clock"] < since:
        if since == NEVER or known["rolled_of"] not in {None, rollups.roles(kind)}:
            await connection.execute(_NOT_SUMMED, bucket, kind.name)
        return await _make_anew(connection, kind, bucket, mark, at), False
    if mark <= since:
        return 0, False
    upto = min(mark, since + SLICE)
    async with transaction(connection):
        added, registers = await _add(connection, rollups.roll(kind), bucket, since, upto)
        if registers:
            await _count(connection, kind, spans.append(kind), bucket, since, upto)
        await at("inside roll")
        await connection.execute(_ROLLED, bucket, kind.name, upto, rollups.roles(kind))
    return added, upto < mark


async def _add(connection: Connection, statement: str, *arguments: object) -> tuple[int, int]:
    """How many readings were added, and how many of them are counts whose hours are kept."""
    readings, registers = (await connection.fetch(statement, *arguments))[0]
    return int(readings), int(registers)


async def _count(connection: Connection, kind: Kind, statement: str, bucket: int, *arguments: datetime) -> None:
    """After their sums: what the counts come to, in each hour. Where some came late, the hour is counted again."""
    if not spans.are_kept(kind):
        return
    await _count_hours(connection, kind, bucket, arguments[-1], await connection.fetch(statement, bucket, *arguments))


async def _count_hours(
    connection: Connection, kind: Kind, bucket: int, mark: datetime, doubtful: Sequence[Record]
) -> None:
    if doubtful:
        keys = ([row[name] for row in doubtful] for name in ("tenant_id", "device", "at"))
        await connection.execute(spans.hours(kind), bucket, mark, *keys)


async def count_again(connection: Connection, kind: Kind, bucket: int, *, hot: bool = False) -> bool:
    """Count some of what is packed again where something came late; whether more may be to come. The bucket is held.

    Until then readers take its readings. `hot`: also hours that a release before rolled up.
    """
    if not spans.are_kept(kind) or not await connection.fetchval(_IS_HERE, bucket):
        return False  # in a move nothing is changed that it has carried
    if not await is_rolled(connection, kind, bucket):
        return False
    mark = (await connection.fetch(_KNOWN, bucket, kind.name))[0]["rolled_until"]
    hours = await connection.fetch(spans.unknown_hours(kind, hot=hot), bucket)
    await _count_hours(connection, kind, bucket, mark, hours)
    is_behind = len(hours) == spans.HOURS
    if await connection.fetchval(spans.unknown_days(kind), bucket):
        await connection.execute(spans.give_up(kind), bucket)
        is_behind |= await connection.execute(spans.days(kind), bucket, mark) == f"UPDATE {spans.DAYS}"
    return is_behind


async def _make_anew(connection: Connection, kind: Kind, bucket: int, mark: datetime, at: Watch) -> int:
    """All of a bucket, a day at a time. Until the end readers take none of it, and whoever comes next begins anew.

    But for what is sealed: its sums stay, as its readings may not be there.
    """
    known = (await connection.fetch(_KNOWN, bucket, kind.name))[0]
    since: datetime = max(known["sealed_until"], known["summed_since"])
    async with transaction(connection):
        await connection.execute(_FORGOTTEN, bucket, kind.name)
        for statement in rollups.forget(kind):
            await connection.execute(statement, bucket, since)
    total = 0
    for record in await connection.fetch(rollups.days(kind), bucket, since):
        day: datetime = record["day"]
        added, registers = await _add(connection, rollups.fill(kind), bucket, mark, day, day + DAY)
        total += added
        if registers and spans.are_kept(kind):  # nothing of the day was there: no hour is in doubt
            await connection.execute(spans.fill(kind), bucket, mark, day, day + DAY)
        await at("inside roll")
        # Each day by itself, and before the next one is there: nobody reads them yet.
        await _fold(connection, kind, bucket, min(day + DAY, whole_until(known["packed_until"])))
    async with transaction(connection):
        # What ends sealed time to the instant belongs to its last hour: of such, what came since the last mark.
        last, _ = await _add(connection, rollups.roll_instant(kind), bucket, known["rolled_until"], mark, since)
        await connection.execute(_ROLLED, bucket, kind.name, mark, rollups.roles(kind))
    return total + last


def whole_until(packed_until: datetime) -> datetime:
    """The last hour that is packed may still hold a reading that is not: of its last instant."""
    return packed_until - HOUR if packed_until > NEVER else NEVER


async def _fold(connection: Connection, kind: Kind, bucket: int, until: datetime) -> None:
    if until > NEVER:
        await connection.execute(rollups.fold(kind), bucket, until)


async def fold(connection: Connection, kind: Kind, bucket: int, packed_until: datetime) -> None:
    """Fold the hours of a bucket that are packed, if it has rollups."""
    if await is_rolled(connection, kind, bucket):
        await _fold(connection, kind, bucket, whole_until(packed_until))


async def drop_old(connection: Connection, kind: Kind, bucket: int, before: datetime) -> int:
    """Remove rollups of a bucket from before a day; how many rows. The bucket is held.

    First nobody believes them any more; then they go, some at a time.
    """
    if not await connection.fetchval(_IS_HERE, bucket):
        return 0
    await connection.execute(_SUMMED_SINCE, bucket, kind.name, before)
    count = 0
    for statement in rollups.drop_old(kind):
        while gone := int((await connection.execute(statement, bucket, before)).rpartition(" ")[2]):
            count += gone
    return count


async def check_known(connection: Connection, bucket: int, name: str, kind: Kind | None) -> None:
    """In a transaction that packs readings of a kind: rollups of other columns would miss them, and are none."""
    await connection.execute(_OF_OTHERS, bucket, name, "" if kind is None else rollups.roles(kind))


async def is_rolled(connection: Connection, kind: Kind, bucket: int) -> bool:
    """Whether the rollups of a bucket are what they should be."""
    return bool(await connection.fetchval(_IS_ROLLED, bucket, kind.name, rollups.roles(kind)))


async def take(
    connection: Connection, kind: Kind, bucket: int, packed_until: datetime, tables: tuple[str, str]
) -> None:
    """In the transaction that packs readings that were nowhere: their sums, from two tables like rollups."""
    until = whole_until(packed_until)
    folding, hours, minutes = rollups.staged(kind, *tables)
    await connection.execute(folding, bucket, until)
    await connection.execute(hours, until)
    await connection.execute(minutes)


async def add_rows(connection: Connection, kind: Kind, bucket: int, table: str) -> None:
    """In the transaction that packs readings that were nowhere: all of a table."""
    if await is_rolled(connection, kind, bucket):
        await connection.execute(rollups.add_all(kind, table))


async def add_leaf(connection: Connection, kind: Kind, bucket: int, table: str) -> None:
    """In the transaction that publishes a leaf as packed: what of it was not counted yet is, from now on."""
    if await is_rolled(connection, kind, bucket):
        await connection.execute(rollups.add_rest(kind, table), bucket)


async def check_leaf(connection: Connection, kind: Kind, bucket: int, leaf: Leaf, devices: tuple[str, str]) -> None:
    """Where hours of a frozen leaf are not the sums of its readings, the bucket's rollups are none until made anew.

    `devices`: those behind the first ID, up to the other.
    """
    bounds = (leaf.lower or NEVER, leaf.upper)
    statement = rollups.differing(kind, quote_identifier(leaf.name))
    if await connection.fetchval(statement, bucket, *bounds, *devices):
        await connection.execute(_FORGOTTEN, bucket, kind.name)


async def add_late(connection: Connection, kind: Kind, bucket: int, which: str, *keys: object) -> None:
    """In the transaction that merges the late readings `which` (SQL, from $2 on): those that were not counted yet."""
    if await is_rolled(connection, kind, bucket):
        await connection.execute(rollups.add_rest(kind, quote_identifier(kind.late), which), bucket, *keys)
