"""The kinds that a shard stores, by its own catalogue of roots: what a move carries is what is there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from shards.postgres.connections import Connection
from shards.postgres.sql import quote_identifier

# The device's ID is the first column of both primary keys.
_ROOTS: Final = """
SELECT r.kind, r.role, r.root,
    (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute AS a
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
    (SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') FROM pg_attribute AS a
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.attnotnull) AS nullable,
    (SELECT a.attname::text FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
     WHERE i.indrelid = c.oid AND i.indisprimary) AS id_column
FROM every_root AS r JOIN pg_class AS c ON c.oid = to_regclass('public.' || r.root)
WHERE r.ready ORDER BY r.lock_order
"""
_KEY: Final = ("bucket", "tenant_id")  # beside the device's ID


@dataclass(frozen=True)
class StoredKind:
    """A kind's root tables, and their columns. History has a table for each bucket, statuses are one table.

    `late` and `packed`: the roots of the other tiers; a bucket has tables there when something of it was frozen.
    `rollups`: tables of sums like that of statuses, each with its columns.
    """

    name: str
    id_column: str
    history: str
    status: str
    late: str
    packed: str
    columns: tuple[str, ...]
    status_columns: tuple[str, ...]
    packed_columns: tuple[str, ...]
    nullable: frozenset[str]
    rollups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def row(self) -> str:
        """A row `h` of its history as it is hashed."""
        return _row(self.columns, self.nullable)

    @property
    def status_row(self) -> str:
        """A row `h` of its statuses as it is hashed."""
        return _row(self.status_columns, self.nullable)

    @property
    def changing(self) -> tuple[str, ...]:
        """The columns of a status that a newer one replaces."""
        return tuple(each for each in self.status_columns if each not in {self.id_column, *_KEY})

    @property
    def kept(self) -> Iterator[tuple[str, str]]:
        """(column, its time) of the values of a status that it keeps whatever newer readings lack."""
        return ((each, f"{each}_at") for each in self.status_columns if f"{each}_at" in self.status_columns)

    @property
    def as_late(self) -> "StoredKind":
        """Its late readings, as if they were a history of their own: they are only inserted, too."""
        return replace(self, name=f"{self.name} late", history=self.late)

    @property
    def as_packed(self) -> "StoredKind":
        """Its packed days, likewise; they are copied and compared whole."""
        return replace(self, name=f"{self.name} packed", history=self.packed, columns=self.packed_columns)

    @property
    def as_rollups(self) -> tuple["StoredKind", ...]:
        """Its rollups, each as if it were the statuses of a kind of its own: copied by bucket, and compared whole."""
        return tuple(replace(self, name=root, status=root, status_columns=columns) for root, columns in self.rollups)

    def __str__(self) -> str:
        return self.name


async def stored_kinds(connection: Connection) -> tuple[StoredKind, ...]:
    """What the shard stores, in the order in which its tables are locked."""
    by_kind: dict[str, dict[str, Any]] = {}
    for record in await connection.fetch(_ROOTS):
        by_kind.setdefault(record["kind"], {})[record["role"]] = record
    return tuple(_stored(name, roles) for name, roles in by_kind.items())


def in_common(one: Iterable[StoredKind], other: Iterable[StoredKind]) -> tuple[StoredKind, ...]:
    """What two shards both store: kinds, and columns of them.

    What one of them lacks is being added, and nobody writes it before all have it; then movers begin anew.
    """
    theirs = {kind.name: kind for kind in other}
    found = []
    for kind in one:
        if (same := theirs.get(kind.name)) is not None:
            columns = tuple(each for each in kind.columns if each in same.columns)
            status = tuple(each for each in kind.status_columns if each in same.status_columns)
            packed = tuple(each for each in kind.packed_columns if each in same.packed_columns)
            nullable = kind.nullable | same.nullable
            found.append(
                replace(kind, columns=columns, status_columns=status, packed_columns=packed, nullable=nullable)
            )
    return tuple(found)


def _stored(name: str, roles: Mapping[str, Mapping[str, Any]]) -> StoredKind:
    history, status, packed = roles["history"], roles["status"], roles["packed"]
    return StoredKind(
        name,
        str(history["id_column"]),
        str(history["root"]),
        str(status["root"]),
        str(roles["late"]["root"]),
        str(packed["root"]),
        tuple(history["columns"]),
        tuple(status["columns"]),
        tuple(packed["columns"]),
        frozenset(name for role in roles.values() for name in role["nullable"]),
        tuple((str(roles[role]["root"]), tuple(roles[role]["columns"])) for role in ("hourly", "minutely", "daily")),
    )


def _row(columns: tuple[str, ...], nullable: frozenset[str]) -> str:
    """PostgreSQL's hash of NULL is that of 0: what is not there is told beside the values."""
    hashed = [f"h.{quote_identifier(name)}" for name in columns]
    hashed += [f"h.{quote_identifier(name)} IS NULL" for name in columns if name in nullable]
    return f"ROW({', '.join(hashed)})"
