"""Kinds and fields in the catalog: what is declared, and how far each declaration is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from typing import Final

import asyncpg

from shards.catalog.database import Catalog
from shards.kinds import BUILT_IN, Direction, Field, Kind, Kinds, Role, Side, Type
from shards.postgres.connections import Connection


class FieldState(StrEnum):
    """ADDING: some shard may not have it yet. RETIRED: stored, and taken no more."""

    ADDING = "adding"
    ACTIVE = "active"
    RETIRED = "retired"


class KindState(StrEnum):
    """MAKING: some shard may not have it yet."""

    MAKING = "making"
    ACTIVE = "active"


# In one snapshot with the epoch: what is read belongs to it.
_ALL: Final = """
SELECT c.kinds_epoch, k.kind_id, k.name AS kind, k.id_name, k.id_column, k.path, k.plural, k.side, k.interval_s,
    k.description AS kind_description, k.built_in, k.state AS kind_state,
    f.name, f.column_name, f.description, f.type, f.role, f.minimum, f.maximum, f.choices, f.required, f.unit,
    f.direction, f.kept, f.in_status, f.retired_at, f.state
FROM cluster AS c
CROSS JOIN kind AS k
JOIN kind_field AS f USING (kind_id)
ORDER BY k.kind_id, f.position
"""
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('voltroute.kinds'))"
_INSERT_KIND: Final = """
INSERT INTO kind (name, path, plural, id_name, id_column, side, interval_s, description)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING kind_id
"""
_INSERT_FIELD: Final = """
INSERT INTO kind_field (kind_id, position, name, column_name, description, type, role, minimum, maximum, choices,
    required, unit, direction, kept, in_status, state)
SELECT $1, coalesce((SELECT max(position) FROM kind_field WHERE kind_id = $1), 0) + 1,
    $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15
"""
_KEEP: Final = "UPDATE kind_field SET kept = true WHERE kind_id = $1 AND name = ANY ($2) AND state = 'active'"
_ACTIVATE_KIND: Final = "UPDATE kind SET state = 'active' WHERE kind_id = $1 AND state = 'making'"
_ACTIVATE_FIELDS: Final = "UPDATE kind_field SET state = 'active' WHERE kind_id = $1 AND state = 'adding'"
_RETIRE: Final = """
UPDATE kind_field SET state = 'retired', retired_at = now() WHERE kind_id = $1 AND name = $2 AND state = 'active'
"""
_WITHDRAW: Final = "DELETE FROM kind_field WHERE kind_id = $1 AND name = $2 AND state = 'adding'"
_TAKE_AGAIN: Final = """
UPDATE kind_field
SET state = CASE WHEN kept OR NOT in_status THEN 'active' ELSE 'adding' END, kept = in_status, retired_at = NULL,
    description = $3, minimum = $4, maximum = $5, choices = $6, required = $7, unit = $8
WHERE kind_id = $1 AND name = $2 AND state = 'retired'
"""


@dataclass(frozen=True)
class Declared:
    """A kind as the catalog has it. `kind` holds what routers know: active fields, and retired ones.

    `whole`: with the fields that some shard may lack.
    """

    kind_id: int
    state: KindState
    built_in: bool
    kind: Kind
    whole: Kind
    adding: tuple[Field, ...]

    @property
    def is_open(self) -> bool:
        """Something of it was begun, and is not known to be on every shard."""
        return self.state is KindState.MAKING or bool(self.adding)


async def declared(catalog: Catalog, deadline: float) -> list[Declared]:
    """All kinds, in the order of their making."""
    async with catalog.pool.connection(deadline) as connection:
        return declared_in(await connection.fetch(_ALL))


async def known(catalog: Catalog, deadline: float) -> Kinds:
    """What routers take: kinds and fields that every shard has. The connection is the routers' own."""
    async with catalog.knowing.connection(deadline) as connection:
        records = await connection.fetch(_ALL)
    found = [each.kind for each in declared_in(records) if each.state is KindState.ACTIVE]
    return Kinds(found, records[0]["kinds_epoch"])


def declared_in(records: Sequence[asyncpg.Record]) -> list[Declared]:
    """Rows of kinds and fields, put together."""
    by_kind: dict[int, list[asyncpg.Record]] = {}
    for record in records:
        by_kind.setdefault(record["kind_id"], []).append(record)
    return [_declared(number, own) for number, own in by_kind.items()]


def _declared(kind_id: int, records: list[asyncpg.Record]) -> Declared:
    fields: dict[FieldState, list[Field]] = {state: [] for state in FieldState}
    for record in records:
        fields[FieldState(record["state"])].append(_field(record))
    adding = fields[FieldState.ADDING]
    first, state = records[0], KindState(records[0]["kind_state"])
    kind = _kind(first, fields[FieldState.ACTIVE], fields[FieldState.RETIRED])
    whole = _kind(first, fields[FieldState.ACTIVE] + adding, fields[FieldState.RETIRED])
    return Declared(kind_id, state, first["built_in"], kind, whole, tuple(adding))


def _kind(record: asyncpg.Record, active: Iterable[Field], retired: Iterable[Field]) -> Kind:
    return Kind(
        record["kind"],
        record["id_name"],
        record["id_column"],
        record["kind_description"],
        tuple(active),
        record["interval_s"],
        Side(record["side"]) if record["side"] else None,
        tuple(retired),
        record["path"],
        record["plural"],
    )


def _field(record: asyncpg.Record) -> Field:
    retired_at, type_ = record["retired_at"], Type(record["type"])
    limits = [record["minimum"], record["maximum"]]
    if type_ is Type.INT:
        limits = [None if each is None else int(each) for each in limits]
    return Field(
        record["name"],
        record["column_name"],
        record["description"],
        type_,
        Role(record["role"]),
        minimum=limits[0],
        maximum=limits[1],
        choices=tuple(record["choices"]),
        required=record["required"],
        unit=record["unit"],
        direction=Direction(record["direction"]),
        kept=record["kept"],
        in_status=record["in_status"],
        retired=None if retired_at is None else retired_at.astimezone(UTC).date(),
    )


async def lock(connection: Connection) -> None:
    """Until the transaction's end nobody else changes what is declared."""
    await connection.execute(_LOCK)


async def within(connection: Connection) -> list[Declared]:
    """All kinds, as a transaction sees them."""
    return declared_in(await connection.fetch(_ALL))


async def insert(connection: Connection, kind: Kind) -> None:
    """Declare a kind that no shard has yet."""
    side = None if kind.side is None else kind.side.value
    values = (kind.name, kind.path, kind.plural, kind.id_name, kind.id_column, side, kind.interval_s, kind.description)
    number = await connection.fetchval(_INSERT_KIND, *values)
    await _insert_fields(connection, number, kind.fields, FieldState.ACTIVE)


async def add(connection: Connection, kind_id: int, fields: Iterable[Field]) -> None:
    """Declare fields that some shard does not have yet."""
    await _insert_fields(connection, kind_id, fields, FieldState.ADDING)


async def _insert_fields(connection: Connection, kind_id: int, fields: Iterable[Field], state: FieldState) -> None:
    for field in fields:
        told = (field.name, field.column, field.description, field.type.value, field.role.value)
        limits = (field.minimum, field.maximum, list(field.choices), field.required)
        rest = (field.unit, field.direction.value, field.kept, field.in_status)
        await connection.execute(_INSERT_FIELD, kind_id, *told, *limits, *rest, state.value)


async def keep_built_in(connection: Connection) -> None:
    """Every shard has a place for the times of fields that statuses of built-in kinds keep: from now on they do."""
    for each in await within(connection):
        built_in = BUILT_IN.by_name.get(each.whole.name)
        names = {field.name for field in built_in.kept} if built_in is not None else set()
        if names - {field.name for field in each.whole.kept}:  # any UPDATE tells routers of a change
            await connection.execute(_KEEP, each.kind_id, sorted(names))


async def activate(connection: Connection, kind_id: int) -> None:
    """Every shard has all of it: from now on routers take it."""
    await connection.execute(_ACTIVATE_FIELDS, kind_id)
    await connection.execute(_ACTIVATE_KIND, kind_id)


async def retire(connection: Connection, kind_id: int, name: str) -> bool:
    """From now on routers refuse the field; False when it is not taken as it is."""
    return (await connection.execute(_RETIRE, kind_id, name)) == "UPDATE 1"


async def withdraw(connection: Connection, kind_id: int, name: str) -> None:
    """Forget a field that was being added."""
    await connection.execute(_WITHDRAW, kind_id, name)


async def take_again(connection: Connection, kind_id: int, field: Field) -> None:
    """A retired field is taken again, in other limits perhaps: at once, or when shards have its time in statuses."""
    limits = (field.minimum, field.maximum, list(field.choices), field.required, field.unit)
    await connection.execute(_TAKE_AGAIN, kind_id, field.name, field.description, *limits)
