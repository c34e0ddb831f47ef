"""Which tables serve a bucket, read from PostgreSQL's own tree of partitions: the one place in Python that asks."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shards.postgres.connections import Connection
from shards.postgres.sessions import MOVER
from shards.postgres.sql import quote_identifier
from shards.storage.roots import StoredKind, stored_kinds

BRIN_OF: Final = """
SELECT i.indexrelid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
WHERE i.indrelid = to_regclass(format('public.%I', $1::text)) AND a.amname = 'brin'
"""
_LEAVES: Final = """
SELECT c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bound, pg_stat_get_live_tuples(c.oid) AS rows,
    pg_relation_size(c.oid) AS size_bytes
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass(format('public.%I', $1::text)) AND NOT i.inhdetachpending
ORDER BY c.relname
"""
_BUCKET_TABLES: Final = "SELECT root, name FROM bucket_table WHERE bucket = $1 AND NOT detaching"
_BUCKET_OF_TABLE: Final = "SELECT bucket FROM bucket_table WHERE name = $1"
_SIZE: Final = """
SELECT coalesce(sum(pg_total_relation_size(t.relid)), 0)::bigint
FROM bucket_table AS b, pg_partition_tree(b.table_oid) AS t WHERE b.bucket = $1
"""
_LOADS: Final = """
SELECT b.bucket,
    coalesce(sum(pg_stat_get_live_tuples(t.relid)) FILTER (WHERE b.role IN ('history', 'late')), 0)::bigint
        + (SELECT coalesce(sum(packed_readings), 0) FROM tier WHERE tier.bucket = b.bucket)::bigint AS rows,
    sum(pg_total_relation_size(t.relid))::bigint AS size_bytes,
    coalesce(sum(pg_stat_get_tuples_inserted(t.relid)) FILTER (WHERE b.role IN ('history', 'late')), 0)::bigint
        AS inserted
FROM bucket_table AS b, pg_partition_tree(b.table_oid) AS t
WHERE b.bucket IS NOT NULL AND t.isleaf
GROUP BY b.bucket
"""
# Owned buckets of which some table is not among those that nobody keeps writers out of. The other way round than one
# would ask, because reading a bound waits for the very lock that is looked for.
_LOCKED: Final = """
WITH child AS MATERIALIZED (
    SELECT r.root, i.inhrelid AS oid
    FROM root_table AS r JOIN pg_inherits AS i ON i.inhparent = to_regclass('public.' || r.root)
), member AS MATERIALIZED (
    SELECT root, oid, oid AS member FROM child
    UNION ALL SELECT c.root, c.oid, i.inhrelid FROM child AS c JOIN pg_inherits AS i ON i.inhparent = c.oid
), locked AS MATERIALIZED (
    SELECT DISTINCT m.oid FROM member AS m JOIN pg_locks AS l ON l.relation = m.member
    WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
), free AS MATERIALIZED (
    SELECT c.root, bucket_of_bound(pg_get_expr(k.relpartbound, k.oid)) AS bucket
    FROM child AS c JOIN pg_class AS k ON k.oid = c.oid WHERE c.oid NOT IN (SELECT oid FROM locked)
)
SELECT DISTINCT o.bucket FROM owned_bucket AS o CROSS JOIN root_table AS r
WHERE o.bucket = ANY($1::smallint[]) AND EXISTS (SELECT FROM locked)
    AND NOT EXISTS (SELECT FROM free AS f WHERE f.root = r.root AND f.bucket = o.bucket)
"""
_HELD_BY_MOVES: Final = """
SELECT coalesce(bool_and(starts_with(a.application_name, $1)), false)
FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
# What voltroute did not make, or would have made otherwise. A table inside the tree can strand a bucket: a DEFAULT with
# one row keeps another partition from being attached.
_FOREIGN: Final = """
WITH attached AS MATERIALIZED (SELECT * FROM bucket_table),
mine AS MATERIALIZED (
    SELECT * FROM attached WHERE bucket = $1::smallint OR $1::smallint IS NULL AND bucket IS NOT NULL
),
tree AS MATERIALIZED (
    SELECT b.bucket, b.root, t.relid::oid AS relid, c.relname::text AS name, c.relowner
    FROM mine AS b CROSS JOIN LATERAL pg_partition_tree(b.table_oid) AS t JOIN pg_class AS c ON c.oid = t.relid
),
columns AS MATERIALIZED (
    SELECT r.root, a.attname, a.atttypid FROM every_root AS r
    JOIN pg_attribute AS a ON a.attrelid = to_regclass('public.' || r.root)
    WHERE a.attnum > 0 AND NOT a.attisdropped
)
SELECT NULL::smallint AS bucket, format('%s is attached to %s %s', name, root, bound) AS what
FROM attached WHERE bucket IS NULL
UNION ALL
SELECT b.bucket, format('%s is attached to %s %s', c.relname, b.name, pg_get_expr(c.relpartbound, c.oid))
FROM mine AS b JOIN pg_inherits AS i ON i.inhparent = b.table_oid JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE b.role = 'history' AND pg_get_expr(c.relpartbound, c.oid) NOT LIKE 'FOR VALUES FROM %'
UNION ALL
SELECT p.bucket, format('%s has the trigger %s', p.name, t.tgname)
FROM tree AS p JOIN pg_trigger AS t ON t.tgrelid = p.relid
WHERE NOT t.tgisinternal AND t.tgname NOT IN ('fence', 'frozen')
UNION ALL
SELECT p.bucket, format('%s has the column %s', p.name, a.attname)
FROM tree AS p JOIN pg_attribute AS a ON a.attrelid = p.relid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN columns AS r ON r.root = p.root AND r.attname = a.attname AND r.atttypid = a.atttypid
WHERE r.root IS NULL
UNION ALL
SELECT bucket, format('%s belongs to %s', name, pg_get_userbyid(relowner)) FROM tree
WHERE relowner <> (SELECT relowner FROM pg_class WHERE oid = 'public.owned_bucket'::regclass)
UNION ALL
SELECT o.bucket, format('bucket %s has no table in %s', o.bucket, r.root)
FROM owned_bucket AS o CROSS JOIN root_table AS r
LEFT JOIN attached AS b ON b.bucket = o.bucket AND b.root = r.root AND NOT b.detaching
WHERE b.root IS NULL AND (o.bucket = $1::smallint OR $1::smallint IS NULL)
ORDER BY 1, 2
"""
# Tables that look like a bucket's, but hang nowhere and belong to no move. Only their names tell.
_LOOSE: Final = r"""
SELECT c.relname::text AS name FROM pg_class AS c
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
    AND c.relname ~ '^[a-z][a-z0-9_]*_(telemetry_(history|late|packed)|current_status)_b\d{4,5}(_|$)'
    AND NOT EXISTS (SELECT FROM packed_leaf AS p WHERE p.table_oid = c.oid)
    AND NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid)
    AND NOT EXISTS (SELECT FROM move_table AS m WHERE m.table_oid = c.oid)
ORDER BY 1
"""
_STRAY: Final = """
SELECT DISTINCT bucket FROM {table} AS s
WHERE NOT EXISTS (SELECT FROM owned_bucket AS o WHERE o.bucket = s.bucket)
    AND NOT EXISTS (SELECT FROM bucket_move AS m WHERE m.bucket = s.bucket)
ORDER BY bucket
"""
_WITHOUT_LEAF: Final = """
SELECT o.bucket FROM owned_bucket AS o CROSS JOIN root_table AS r
WHERE r.role = 'history' AND NOT EXISTS (
    SELECT FROM leaf AS l JOIN bucket_table AS b ON b.table_oid = l.parent_oid
    WHERE b.bucket = o.bucket AND b.root = r.root AND leaf_range(l.bound) @> $1::timestamptz
)
GROUP BY 1 ORDER BY 1
"""
_BOUND: Final = re.compile(r"FOR VALUES FROM \((.*)\) TO \((.*)\)")


@dataclass(frozen=True)
class Leaf:
    """A partition of one bucket's history. `suffix`: its name without its parent's; rows are PostgreSQL's estimate."""

    kind: StoredKind
    name: str
    suffix: str
    lower: str
    upper: str
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class Foreign:
    """Something in the tree of partitions that voltroute did not make. `bucket`: None when it concerns all."""

    bucket: int | None
    what: str


async def attached_tables(connection: Connection, bucket: int) -> Mapping[str, str]:
    """Root -> the table attached to it for `bucket`."""
    return {record["root"]: record["name"] for record in await connection.fetch(_BUCKET_TABLES, bucket)}


async def leaves(connection: Connection, tables: Mapping[str, str], kinds: Iterable[StoredKind]) -> list[Leaf]:
    """The leaves of a bucket's history tables (`tables`: root -> name), but for those that are no range of time."""
    found = []
    for kind in kinds:
        parent = tables[kind.history]
        for record in await connection.fetch(_LEAVES, parent):
            bound = _BOUND.fullmatch(record["bound"])
            if bound is not None:
                name = record["name"]
                suffix = name.removeprefix(parent) if name.startswith(parent + "_") else f"_{name}"[-20:]
                found.append(Leaf(kind, name, suffix, bound[1], bound[2], record["rows"], record["size_bytes"]))
    return found


async def size_of(connection: Connection, bucket: int) -> int:
    """Bytes that a bucket takes, indexes included."""
    return int(await connection.fetchval(_SIZE, bucket))


async def counts(connection: Connection) -> Mapping[int, tuple[int, int, int]]:
    """Bucket -> (rows, bytes, rows inserted since the statistics began), by PostgreSQL's own counts."""
    return {r["bucket"]: (r["rows"], r["size_bytes"], r["inserted"]) for r in await connection.fetch(_LOADS)}


async def locked(connection: Connection, buckets: Iterable[int], timeout_s: float) -> frozenset[int]:
    """Those of `buckets` on whose tables somebody holds a lock that keeps writers out."""
    found = await connection.fetch(_LOCKED, sorted(set(buckets)), timeout=timeout_s)
    return frozenset(record["bucket"] for record in found)


async def held_by_moves(connection: Connection, timeout_s: float) -> bool:
    """Whether all locks that keep writers out are of moves: a fence on its way, which is soon over."""
    return bool(await connection.fetchval(_HELD_BY_MOVES, MOVER, timeout=timeout_s))


async def bucket_of_table(connection: Connection, name: str | None, timeout_s: float) -> int | None:
    """The bucket whose table is called `name`; None when it is attached to no root."""
    found = await connection.fetchval(_BUCKET_OF_TABLE, name, timeout=timeout_s)
    return None if found is None else int(found)


async def foreign(connection: Connection, bucket: int | None = None) -> list[Foreign]:
    """What the tree of partitions has that it should not, and what it lacks; of one bucket and the roots, or of all."""
    return [Foreign(record["bucket"], record["what"]) for record in await connection.fetch(_FOREIGN, bucket)]


async def loose(connection: Connection) -> list[str]:
    """Tables that look like a bucket's and are attached nowhere."""
    return [record["name"] for record in await connection.fetch(_LOOSE)]


async def stray_statuses(connection: Connection) -> list[str]:
    """Statuses and horizons of buckets that the shard neither owns nor has in a move. Reads every status."""
    found = []
    for table in (*(kind.status for kind in await stored_kinds(connection)), "tier", "packed_leaf"):
        records = await connection.fetch(_STRAY.format(table=quote_identifier(table)))
        found += [f"bucket {record['bucket']} in {table}" for record in records]
    return found


async def buckets_without_leaf(connection: Connection, moment: datetime, timeout_s: float) -> list[int]:
    """Owned buckets that lack a partition for readings of `moment`."""
    return [record["bucket"] for record in await connection.fetch(_WITHOUT_LEAF, moment, timeout=timeout_s)]


async def leaf_width(connection: Connection) -> str:
    """How much time a new partition holds: day, week or month."""
    return str(await connection.fetchval("SELECT width FROM leaf_width"))
