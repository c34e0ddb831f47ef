"""What a shard has of each tier, read from its catalogue."""

from collections.abc import Mapping
from typing import Any, Final

from shards.kinds import Type
from shards.postgres.pools import Connection
from shards.postgres.sql import quote_identifier
from shards.storage.packing import Column, Shape
from shards.tiers.due import NEVER, Leaf, Tiers

# A bucket in a move is left alone; a move leaves one alone in which a step is under way (see LIFECYCLE_XACT).
_LEAVES: Final = """
SELECT b.bucket, b.kind, l.name, lower(l.span) AS lower, upper(l.span) AS upper,
    EXISTS (SELECT FROM packed_leaf AS p WHERE p.table_oid = l.leaf_oid) AS published,
    coalesce(t.frozen_until, $2) AS frozen_until, coalesce(t.packed_until, $2) AS packed_until,
    coalesce(t.packed_readings, 0) AS packed_readings,
    (SELECT count(*) FROM packed_leaf AS p WHERE p.bucket = b.bucket AND p.kind = b.kind) AS undropped
FROM bucket_table AS b
JOIN owned_bucket AS o ON o.bucket = b.bucket
LEFT JOIN tier AS t ON t.bucket = b.bucket AND t.kind = b.kind
LEFT JOIN LATERAL leaves_of(b.name) AS l ON true
WHERE b.role = 'history' AND NOT b.detaching AND (b.bucket = $1::smallint OR $1 IS NULL)
    AND NOT EXISTS (SELECT FROM bucket_move AS m WHERE m.bucket = b.bucket)
ORDER BY b.bucket, b.lock_order, lower(l.span) NULLS FIRST
"""
_LATE: Final = """
SELECT l.bucket, count(*) AS late, min(l.ingested_at) AS late_since
FROM {late} AS l JOIN tier AS t ON t.bucket = l.bucket AND t.kind = $2
WHERE l.timestamp < t.packed_until AND (l.bucket = $1::smallint OR $1 IS NULL) GROUP BY 1
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
    columns = tuple(Column(record["name"], _TYPES[record["type"]]) for record in records)
    return Shape(str(records[0]["id_column"]), columns)


async def look(connection: Connection, kinds: Mapping[str, str], bucket: int | None = None) -> list[Tiers]:
    """The tiers of `kinds` (name -> root of late readings) in one bucket, or all, but for those in a move."""
    found: dict[tuple[int, str], list[Any]] = {}
    for record in await connection.fetch(_LEAVES, bucket, NEVER):
        if record["kind"] in kinds:
            found.setdefault((record["bucket"], record["kind"]), []).append(record)
    late: dict[tuple[int, str], Any] = {}
    for kind, root in kinds.items():
        for record in await connection.fetch(_LATE.format(late=quote_identifier(root)), bucket, kind):
            late[record["bucket"], kind] = record
    return [_tiers(key, records, late.get(key)) for key, records in found.items()]


def _tiers(key: tuple[int, str], records: list[Any], late: Any) -> Tiers:
    first = records[0]
    leaves = [
        Leaf(record["name"], record["lower"], record["upper"], record["published"])
        for record in records
        if record["upper"] is not None
    ]
    return Tiers(
        *key,
        leaves=[leaf for leaf in leaves if not leaf.published],
        frozen_until=first["frozen_until"],
        packed_until=first["packed_until"],
        packed_readings=first["packed_readings"],
        undropped=first["undropped"],
        late=late["late"] if late else 0,
        late_since=late["late_since"] if late else None,
    )
