"""What a shard has of each tier, read from its catalogue."""

from collections.abc import Mapping
from typing import Any, Final

from shards.errors import ClusterError
from shards.kinds import Type
from shards.postgres.connections import Connection
from shards.postgres.sql import quote_identifier
from shards.storage.packing import Column, Shape
from shards.tiers.due import NEVER, Leaf, Tiers

# A bucket in a move is left alone; a move leaves one alone in which a step is under way (see LIFECYCLE_XACT).
_LEAVES: Final = """
SELECT b.bucket, b.kind, b.table_oid, l.name, lower(l.span) AS lower, upper(l.span) AS upper,
    EXISTS (SELECT FROM packed_leaf AS p WHERE p.table_oid = l.leaf_oid) AS published,
    coalesce((
        SELECT s.spcname::text FROM pg_class AS c JOIN pg_database AS d ON d.datname = current_database()
        JOIN pg_tablespace AS s ON s.oid = coalesce(nullif(c.reltablespace, 0), d.dattablespace)
        WHERE c.oid = l.leaf_oid
    ), '') AS tablespace,
    coalesce(t.frozen_until, $1) AS frozen_until, coalesce(t.packed_until, $1) AS packed_until,
    coalesce(t.packed_readings, 0) AS packed_readings,
    (SELECT count(*) FROM packed_leaf AS p WHERE p.bucket = b.bucket AND p.kind = b.kind) AS undropped
FROM {tables} AS b
JOIN owned_bucket AS o ON o.bucket = b.bucket
LEFT JOIN tier AS t ON t.bucket = b.bucket AND t.kind = b.kind
LEFT JOIN LATERAL leaves_of(b.name) AS l ON true
WHERE b.role = 'history' AND NOT b.detaching
    AND NOT EXISTS (SELECT FROM bucket_move AS m WHERE m.bucket = b.bucket)
ORDER BY b.bucket, b.lock_order, lower(l.span) NULLS FIRST
"""
# The view by one table: of a thousand buckets it would look at every bound.
_ONE_TABLE: Final = """(
    SELECT r.lock_order, r.kind, r.role, c.oid AS table_oid, c.relname::text AS name, i.inhdetachpending AS detaching,
        bucket_of_bound(pg_get_expr(c.relpartbound, c.oid)) AS bucket
    FROM every_root AS r
    JOIN pg_inherits AS i ON i.inhparent = to_regclass('public.' || r.root) AND i.inhrelid = $2
    JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE r.ready
)"""
_LATE: Final = """
SELECT l.bucket, count(*) AS late, min(l.ingested_at) AS late_since
FROM {late} AS l JOIN tier AS t ON t.bucket = l.bucket AND t.kind = $1
WHERE l.timestamp < t.packed_until{which} GROUP BY 1
"""
_COLUMNS: Final = """
SELECT k.id_column, c.name, split_part(c.type, '(', 1) AS type
FROM stored_kind AS k CROSS JOIN LATERAL value_columns(k.name) AS c WHERE k.name = $1 ORDER BY c.place
"""
_TYPES: Final = {
    "double precision": Type.FLOAT8,
    "real": Type.FLOAT4,
    "integer": Type.INT,
    "boolean": Type.BOOL,
    "character varying": Type.TEXT,
}


async def shape_on(connection: Connection, kind: str) -> Shape:
    """What the shard packs of a kind: all columns that its history has."""
    records = await connection.fetch(_COLUMNS, kind)
    if strange := [record["name"] for record in records if record["type"] not in _TYPES]:
        message = f"{kind} has columns that voltroute did not make: {', '.join(strange)}"
        raise ClusterError(message)
    columns = tuple(Column(record["name"], _TYPES[record["type"]]) for record in records)
    return Shape(str(records[0]["id_column"]), columns)


async def look(connection: Connection, kinds: Mapping[str, str]) -> list[Tiers]:
    """The tiers of `kinds` (name -> root of late readings) in every bucket, but for those in a move."""
    found: dict[tuple[int, str], list[Any]] = {}
    for record in await connection.fetch(_LEAVES.format(tables="bucket_table"), NEVER):
        if record["kind"] in kinds:
            found.setdefault((record["bucket"], record["kind"]), []).append(record)
    late: dict[tuple[int, str], Any] = {}
    for kind, root in kinds.items():
        for record in await connection.fetch(_LATE.format(late=quote_identifier(root), which=""), kind):
            late[record["bucket"], kind] = record
    return [_tiers(key, records, late.get(key)) for key, records in found.items()]


async def look_again(connection: Connection, tiers: Tiers, late: str) -> list[Tiers]:
    """The same kind of the same bucket as it is now; none when it is in a move, or not here any more."""
    records = await connection.fetch(_LEAVES.format(tables=_ONE_TABLE), NEVER, tiers.table_oid)
    if not records:
        return []
    which = _LATE.format(late=quote_identifier(late), which=" AND l.bucket = $2::smallint")
    waiting = await connection.fetch(which, tiers.kind, tiers.bucket)
    return [_tiers((tiers.bucket, tiers.kind), records, waiting[0] if waiting else None)]


def _tiers(key: tuple[int, str], records: list[Any], late: Any) -> Tiers:
    first = records[0]
    leaves = [
        Leaf(*(record[name] for name in ("name", "lower", "upper", "published", "tablespace")))
        for record in records
        if record["upper"] is not None
    ]
    return Tiers(
        *key,
        leaves=[leaf for leaf in leaves if not leaf.published],
        frozen_until=first["frozen_until"],
        packed_until=first["packed_until"],
        table_oid=first["table_oid"],
        packed_readings=first["packed_readings"],
        undropped=first["undropped"],
        late=late["late"] if late else 0,
        late_since=late["late_since"] if late else None,
    )
