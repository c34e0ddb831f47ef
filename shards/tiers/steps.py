"""The steps of the lifecycle, each for one kind of a bucket, and resumable: whoever comes next looks at the shard.

    open -freeze-> frozen -pack, verify-> frozen -publish-> packed, leaf attached -old snapshots gone-> dropped

The caller holds the bucket (see runner): no other step and no move begins meanwhile. Here the order of statements is
safety; each line says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from shards.errors import ClusterError
from shards.kinds import Kind
from shards.postgres.connections import Connection
from shards.postgres.sql import LOCK_TIMEOUT, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage import late
from shards.storage.packing import Shape, differing, packed_rows, readings
from shards.tiers import rolling
from shards.tiers.due import Leaf, Tiers
from shards.tiers.state import shape_on
from shards.tiers.watching import Watch, watch_nothing

CHUNK_READINGS: Final = 30_000  # in a transaction: a long one would keep statuses from being pruned
CHUNK_DEVICES: Final = 100
DEAD_SHARE: Final = 0.1  # of a month's packed days
MERGED_DAYS: Final = 16  # in a transaction: late writers of the bucket wait for it
_IN_ORDER: Final = "SET LOCAL enable_hashagg = off"  # see packed_rows
_TABLES: Final = "SELECT make_tier_tables($1, $2::smallint, '')"
_FREEZE: Final = "SELECT freeze_until($1, $2::smallint, $3::timestamptz)"
_MONTH: Final = "SELECT make_packed_month($1, $2::smallint, $3::date)"
_OF_LEAF: Final = "bucket = $1 AND day >= coalesce($2::date, '-infinity') AND day < $3::date"
_PUBLISH: Final = """
UPDATE tier SET packed_until = $3, packed_at = clock_timestamp(), packed_readings = packed_readings + $4
WHERE bucket = $1 AND kind = $2 AND packed_until < $3 AND frozen_until >= $3
"""
_HAS_TRIGGER: Final = """
SELECT EXISTS (
    SELECT FROM pg_trigger AS t
    WHERE t.tgrelid = to_regclass(format('public.%I', $1::text)) AND t.tgname = 'frozen' AND t.tgenabled <> 'D'
)
"""
_UNDROPPED: Final = """
INSERT INTO packed_leaf (table_oid, bucket, kind, name) SELECT to_regclass(format('public.%I', $3::text)), $1, $2, $3
"""
# Snapshots that may be older than the leaf's publishing; also a replica's, and what a slot keeps for one.
_LEFT: Final = """
SELECT p.table_oid, c.relname::text AS name, b.name AS parent, i.inhdetachpending AS pending,
    EXISTS (
        SELECT FROM pg_stat_activity AS a
        WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()
            AND (a.datname = current_database() OR a.datname IS NULL) AND age(a.backend_xmin) >= age(p.xmin)
    ) OR EXISTS (
        SELECT FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL AND age(s.xmin) >= age(p.xmin)
    ) AS seen
FROM packed_leaf AS p
LEFT JOIN pg_class AS c ON c.oid = p.table_oid
LEFT JOIN pg_inherits AS i ON i.inhrelid = p.table_oid
LEFT JOIN bucket_table AS b ON b.table_oid = i.inhparent
WHERE p.bucket = $1 AND p.kind = $2 ORDER BY p.published_at
"""
_FLUSH: Final = "SELECT pg_stat_force_next_flush()"
_MUCH_DEAD: Final = """
SELECT l.name FROM bucket_table AS b CROSS JOIN LATERAL leaves_of(b.name) AS l
WHERE b.bucket = $1 AND b.kind = $2 AND b.role = 'packed'
    AND pg_stat_get_dead_tuples(l.leaf_oid)
    > $3::float8 * (pg_stat_get_live_tuples(l.leaf_oid) + pg_stat_get_dead_tuples(l.leaf_oid))
"""
_DAY: Final = "(timestamp AT TIME ZONE 'UTC')::date"
_FORGET: Final = "DELETE FROM packed_leaf WHERE table_oid = $1"


class PackingFailed(ClusterError):
    """What was packed is not what is in the leaf. Nothing was published, and the leaf stays."""


@dataclass(frozen=True)
class Kept:
    """One kind of a bucket, in a session that holds it."""

    connection: Connection
    tiers: Tiers
    shape: Shape
    at: Watch = watch_nothing
    summed: Kind | None = None  # as which it has rollups

    @classmethod
    async def of(
        cls, connection: Connection, tiers: Tiers, watch: Watch = watch_nothing, summed: Kind | None = None
    ) -> "Kept":
        """With the columns that the shard has now."""
        return cls(connection, tiers, await shape_on(connection, tiers.kind), watch, summed)

    @property
    def place(self) -> tuple[int, str]:
        return self.tiers.bucket, self.tiers.kind

    def root(self, role: str) -> str:
        """A root of the kind, quoted."""
        return quote_identifier(f"{self.tiers.kind}_telemetry_{role}")


async def freeze(kept: Kept, leaf: Leaf) -> None:
    """The leaf takes nothing more: whoever writes to it now is waited for 150 ms at most, then it is tried again."""
    bucket, kind = kept.place
    await kept.connection.execute(_TABLES, kind, bucket)
    async with transaction(kept.connection):
        await kept.connection.execute(LOCK_TIMEOUT)
        # Triggers and horizon become visible together: a writer that is refused finds its late tier there.
        await kept.connection.execute(_FREEZE, kind, bucket, leaf.upper)
        await kept.at("inside freeze")
    await kept.at("after freeze")


async def next_devices(kept: Kept, leaf: Leaf, last: str) -> tuple[str, int]:
    """The last of the devices behind `last` for one transaction, and how many readings of theirs a leaf has."""
    table, key = quote_identifier(leaf.name), kept.shape.key
    counted = await kept.connection.fetch(
        f"SELECT {key}, count(*) FROM {table} WHERE {key} > $1 GROUP BY 1 ORDER BY 1 LIMIT {CHUNK_DEVICES}", last
    )
    upto, total = last, 0
    for device, count in counted:
        if total and total + count > CHUNK_READINGS:
            break
        upto, total = device, total + count
    return upto, total


async def pack_some(kept: Kept, leaf: Leaf) -> int:
    """Pack the next devices of a frozen leaf, and compare them bit by bit; 0 when there is none left.

    PackingFailed when they differ. Nobody reads what is packed before it is published.
    """
    connection, shape, (bucket, kind) = kept.connection, kept.shape, kept.place
    table, key = quote_identifier(leaf.name), shape.key
    days = (bucket, *_days(leaf))
    # Devices are packed in the order of their IDs, a transaction for some of them: the last one tells how far it came.
    last = await connection.fetchval(f"SELECT max({key}) FROM {kept.root('packed')} WHERE {_OF_LEAF}", *days)
    upto, total = await next_devices(kept, leaf, last or "")
    if not total:
        return 0
    which = f"{key} > $1 AND {key} <= $2"
    months = f"SELECT DISTINCT date_trunc('month', timestamp AT TIME ZONE 'UTC')::date FROM {table} WHERE {which}"
    for (month,) in await connection.fetch(months, last or "", upto):
        await connection.execute(_MONTH, kind, bucket, month)
    async with transaction(connection):
        await connection.execute(_IN_ORDER)
        rows = packed_rows(shape, table, which)
        await connection.execute(
            f"INSERT INTO {kept.root('packed')} ({shape.listed}) {rows} ON CONFLICT DO NOTHING", last or "", upto
        )
        packed = f"(SELECT * FROM {kept.root('packed')} WHERE {_shifted(_OF_LEAF)} AND {which})"
        query = differing(shape, f"(SELECT * FROM {table} WHERE {which})", f"({readings(shape, packed)})")
        if wrong := await connection.fetchval(query, last or "", upto, *days):
            raise PackingFailed(
                f"{leaf.name}: {wrong} packed readings of devices up to {upto} are not those of the leaf"
            )
        if kept.summed is not None:
            await rolling.check_leaf(connection, kept.summed, bucket, leaf, (last or "", upto))
        await kept.at("inside pack")
    await kept.at("after pack")
    return total


async def publish(kept: Kept, leaf: Leaf) -> None:
    """From this COMMIT on, readers take the leaf's time from packed days. PackingFailed when not all of it is there."""
    connection, bucket = kept.connection, kept.tiers.bucket
    packed = f"SELECT coalesce(sum(n), 0)::bigint FROM {kept.root('packed')} WHERE {_OF_LEAF}"
    async with transaction(connection):
        if not await connection.fetchval(_HAS_TRIGGER, leaf.name):
            raise PackingFailed(f"{leaf.name} is not frozen: it has no trigger")
        count = await connection.fetchval(packed, bucket, *_days(leaf))
        there = await connection.fetchval(f"SELECT count(*) FROM {quote_identifier(leaf.name)}")
        if count == there:
            await _announce(kept, leaf, count)
            await kept.at("inside publish")
    if count != there:  # a move healed the leaf after a part of it was packed, say: it is packed anew
        await connection.execute(f"DELETE FROM {kept.root('packed')} WHERE {_OF_LEAF}", bucket, *_days(leaf))
        raise PackingFailed(f"{leaf.name} has {there} readings, and {count} were packed: it is packed anew")
    await kept.at("after publish")


async def _announce(kept: Kept, leaf: Leaf, count: int) -> None:
    # One transaction: a snapshot has the horizon and leaves the leaf out, or neither; and the sums of all of it.
    bucket, kind = kept.place
    await rolling.check_known(kept.connection, bucket, kind, kept.summed)
    if kept.summed is not None:
        await rolling.add_leaf(kept.connection, kept.summed, bucket, quote_identifier(leaf.name))
        await rolling.fold(kept.connection, kept.summed, bucket, leaf.upper)
    if await kept.connection.execute(_PUBLISH, bucket, kind, leaf.upper, count) != "UPDATE 1":
        raise PackingFailed(f"{leaf.name} is not frozen")
    await kept.connection.execute(_UNDROPPED, bucket, kind, leaf.name)


async def pass_gap(kept: Kept) -> None:
    """The horizon follows where a frozen leaf is gone: a bucket without its table came from an older copy, say."""
    bucket, kind = kept.place
    await kept.connection.execute(_PUBLISH, bucket, kind, kept.tiers.frozen_until, 0)


async def drop(kept: Kept) -> tuple[int, int]:
    """Drop the leaves whose days are published; returns how many went, and how many somebody may still read.

    A statement that began before the publishing has their rows in its snapshot: dropped under it, they would be missing
    from its answer, and nobody would be told.
    """
    connection, gone, seen = kept.connection, 0, 0
    for record in await connection.fetch(_LEFT, *kept.place):
        if record["seen"]:
            seen += 1
            continue
        if record["name"] is not None:
            name = quote_identifier(record["name"])
            if record["pending"] is not None:
                how = "FINALIZE" if record["pending"] else "CONCURRENTLY"
                parent = quote_identifier(record["parent"])
                await connection.execute(f"ALTER TABLE {parent} DETACH PARTITION {name} {how}")
                await kept.at("after detach")
            async with transaction(connection):
                await connection.execute(f"DROP TABLE {name}")
                await connection.execute(_FORGET, record["table_oid"])
        else:
            await connection.execute(_FORGET, record["table_oid"])
        await kept.at("after drop")
        gone += 1
    return gone, seen


async def merge_some(kept: Kept) -> int:
    """Take late readings of some packed days into them; returns how many days. Late writers wait meanwhile."""
    connection, shape, (bucket, kind) = kept.connection, kept.shape, kept.place
    staged = quote_identifier(f"merging_{kind}")
    await connection.execute(
        f"CREATE TEMP TABLE IF NOT EXISTS {staged} ON COMMIT DELETE ROWS AS "
        f"SELECT {shape.reading} FROM {kept.root('history')} WITH NO DATA"
    )
    async with transaction(connection):
        await connection.execute(LOCK_TIMEOUT)
        await connection.execute(_IN_ORDER)
        # First alone: from here on no late reading is stored, and none was that the next statements do not see.
        await connection.execute(late.ALONE, bucket)
        some = await connection.fetch(
            f"SELECT {shape.key} AS device, tenant_id AS tenant, {_DAY} AS day, count(*) FROM {kept.root('late')} "
            f"WHERE bucket = $1 AND timestamp < $2 GROUP BY 1, 2, 3 ORDER BY 1, 3 LIMIT {MERGED_DAYS}",
            bucket,
            kept.tiers.packed_until,
        )
        if not some:
            return 0
        await _pack_with_late(kept, staged, some)
        count = sum(row["count"] for row in some)
        await connection.execute(
            "UPDATE tier SET packed_readings = packed_readings + $3 WHERE bucket = $1 AND kind = $2", *kept.place, count
        )
        await kept.at("inside merge")
    await kept.at("after merge")
    await _tidy(kept)
    return len(some)


async def _pack_with_late(kept: Kept, staged: str, some: Sequence[Any]) -> None:
    """Packed days of `some` (device, tenant, day) anew, with the late readings of theirs, which go. PackingFailed."""
    connection, shape, (bucket, kind) = kept.connection, kept.shape, kept.place
    packed, late_root = kept.root("packed"), kept.root("late")
    keys = ([row["device"] for row in some], [row["tenant"] for row in some], [row["day"] for row in some])
    wanted = f"({shape.key}, tenant_id, {{day}}) IN (SELECT * FROM unnest($2::varchar[], $3::smallint[], $4::date[]))"
    of_days, of_rows = wanted.replace("{day}", "day"), wanted.replace("{day}", _DAY)
    await rolling.check_known(connection, bucket, kind, kept.summed)
    if kept.summed is not None:  # while they are there, and nobody adds any
        await rolling.add_late(connection, kept.summed, bucket, of_rows, *keys)
        await rolling.fold(connection, kept.summed, bucket, kept.tiers.packed_until)
    known = readings(shape, f"(SELECT * FROM {packed} WHERE bucket = $1 AND {of_days})")
    taken = f"DELETE FROM {late_root} WHERE bucket = $1 AND {of_rows} RETURNING {shape.reading}"
    await connection.execute(
        f"WITH taken AS ({taken}), known AS ({known}) INSERT INTO {staged} ({shape.reading}) "
        f"SELECT {shape.reading} FROM known UNION ALL SELECT {shape.reading} FROM taken",
        bucket,
        *keys,
    )
    for month in {row["day"].replace(day=1) for row in some}:
        await connection.execute(_MONTH, kind, bucket, month)
    await connection.execute(f"DELETE FROM {packed} WHERE bucket = $1 AND {of_days}", bucket, *keys)
    await connection.execute(f"INSERT INTO {packed} ({shape.listed}) {packed_rows(shape, staged)}")
    again = readings(shape, f"(SELECT * FROM {packed} WHERE bucket = $1 AND {of_days})")
    if wrong := await connection.fetchval(differing(shape, staged, f"({again})"), bucket, *keys):
        raise PackingFailed(f"bucket {bucket} of {kind}: {wrong} merged readings are not those that were late")


async def _tidy(kept: Kept) -> None:
    """Make free what merges replaced, where it is much: a day that is packed anew often is too fast for autovacuum."""
    await kept.connection.execute(_FLUSH)
    for record in await kept.connection.fetch(_MUCH_DEAD, *kept.place, DEAD_SHARE):
        await kept.connection.execute(f"VACUUM (TRUNCATE false) {quote_identifier(record['name'])}")


def _days(leaf: Leaf) -> tuple[date | None, date]:
    """The days (UTC) of a leaf: from (None: all before), and up to, without the last. Leaves end at midnight."""
    return (None if leaf.lower is None else _day(leaf.lower)), _day(leaf.upper)


def _day(moment: datetime) -> date:
    return moment.date()  # asyncpg gives UTC


def _shifted(condition: str) -> str:
    return condition.replace("$3", "$5").replace("$2", "$4").replace("$1", "$3")
