"""Making kinds and fields on one shard, as its owner: every step can be repeated, and waits for no lock for long."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final

from shards.kinds import Field, Kind, Type
from shards.postgres.connections import Connection
from shards.postgres.sessions import MOVER
from shards.postgres.transactions import transaction

BUCKETS_AT_ONCE: Final = 8  # a transaction: each table takes an entry of the lock table until the commit
_ROOTS: Final = "SELECT make_roots($1::smallint, $2, $3, $4::jsonb)"
_POLICIES: Final = "SELECT copy_policies($1)"
_ATTACH: Final = "SELECT attach_kind($1, $2::integer, $3::date[])"
_FINISH: Final = "SELECT finish_kind($1, $2::date, $3::date[])"
_ADD: Final = "SELECT add_column($1, $2, $3, $4::boolean, $5::boolean)"
_GRANT: Final = "SELECT grant_kind($1, $2, $3, $4)"
_END_MOVERS: Final = "SELECT end_movers($1)"
_SHAPES: Final = """
SELECT r.kind, r.role, r.ready, r.id_column, a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type
FROM every_root AS r JOIN pg_attribute AS a ON a.attrelid = to_regclass('public.' || r.root)
WHERE r.role IN ('history', 'status') AND a.attnum > 0 AND NOT a.attisdropped
"""
_TABLES: Final = """
SELECT count(*) AS tables,
    current_setting('max_locks_per_transaction')::bigint
        * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) AS locks
FROM every_root AS r
CROSS JOIN LATERAL pg_partition_tree(to_regclass('public.' || r.root)) AS t
WHERE r.kind = $1
"""
# How PostgreSQL writes the types of columns.
COLUMN_TYPES: Final[Mapping[Type, str]] = {
    Type.FLOAT8: "double precision",
    Type.FLOAT4: "real",
    Type.INT: "integer",
    Type.BOOL: "boolean",
    Type.TEXT: "character varying(64)",
}
_TIME: Final = "timestamp with time zone"


@dataclass(frozen=True)
class Names:
    """The logins that a kind's tables are given to; `reader`: of routers before there were tenants."""

    writer: str
    query: str
    reader: str | None


@dataclass(frozen=True)
class Shape:
    """What a shard has of one kind: column -> type, of both roots. `ready`: routers may write to it."""

    ready: bool
    id_column: str
    history: Mapping[str, str]
    status: Mapping[str, str]

    def lacks(self, kind: Kind) -> list[str]:
        """What a kind declares and the shard does not have, or has otherwise."""
        wanted = {("history", field.column): COLUMN_TYPES[field.type] for field in kind.stored}
        wanted |= {("status", field.column): COLUMN_TYPES[field.type] for field in kind.in_status}
        wanted |= {("status", field.time_column): _TIME for field in kind.kept}
        there = {"history": self.history, "status": self.status}
        found = [
            f"{kind}.{column} of its {role} is {there[role].get(column, 'missing')}"
            for (role, column), type_ in wanted.items()
            if there[role].get(column) != type_
        ]
        if self.id_column != kind.id_column:
            found.append(f"{kind} is told apart by {self.id_column}, not {kind.id_column}")
        return found if self.ready else [f"{kind} is being made", *found]


def _columns(kind: Kind) -> str:
    columns = [
        {"name": field.column, "type": field.type.value, "in_status": field.in_status, "kept": field.kept}
        for field in kind.stored
    ]
    return json.dumps(columns)


async def make_kind(
    connection: Connection, kind_id: int, kind: Kind, names: Names, leaves: tuple[date, list[date]]
) -> None:
    """Roots, rights, and tables for every bucket that the shard owns or is being given; moves begin their step anew.

    `leaves`: the cluster's first month, and those to make partitions for.
    """
    _, ahead = leaves
    async with transaction(connection):
        await connection.execute(_ROOTS, kind_id, kind.name, kind.id_column, _columns(kind))
        await connection.execute(_POLICIES, kind.name)
        await _grant(connection, kind, names)
    while await connection.fetchval(_ATTACH, kind.name, BUCKETS_AT_ONCE, ahead):
        pass
    await connection.execute(_FINISH, kind.name, *leaves)
    await end_movers(connection)


async def add_fields(connection: Connection, kind: Kind, fields: Iterable[Field], names: Names) -> None:
    """A column for each field in all tables of the kind; movers begin their step anew, as they know the old ones."""
    async with transaction(connection):
        for field in fields:
            flags = (field.in_status, field.kept)
            await connection.execute(_ADD, kind.name, field.column, field.type.value, *flags)
        await _grant(connection, kind, names)
    await end_movers(connection)


async def end_movers(connection: Connection) -> None:
    """End the sessions of movers on this shard: they know the columns as they were."""
    await connection.execute(_END_MOVERS, MOVER)


async def _grant(connection: Connection, kind: Kind, names: Names) -> None:
    await connection.execute(_GRANT, kind.name, names.writer, names.query, names.reader)


async def shapes(connection: Connection) -> dict[str, Shape]:
    """What the shard has, by kind."""
    found: dict[str, Shape] = {}
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for record in await connection.fetch(_SHAPES):
        for role in ("history", "status"):
            columns.setdefault((record["kind"], role), {})
        columns[record["kind"], record["role"]][record["name"]] = record["type"]
        own = (columns[record["kind"], role] for role in ("history", "status"))
        found[record["kind"]] = Shape(record["ready"], record["id_column"], *own)
    return found


async def tables_and_locks(connection: Connection, kind: Kind) -> tuple[int, int]:
    """How many tables a kind has on the shard, and how many locks its server can hold at a time."""
    record = (await connection.fetch(_TABLES, kind.name))[0]
    return record["tables"], record["locks"]
