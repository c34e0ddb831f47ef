"""The wire types of stored readings, made of what their kinds declare: newest ones, histories, all kinds together."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from router.wire.answers import Answer, Dated, Shards, Tiers
from router.wire.readings import PYTHON_TYPES, title
from shards.kinds import Field, Kind

_TIMES: Final = {"timestamp": "timestamp", "ingested_at": "ingestedAt"}
_VALUE_TIMES: Final = "value_times"
_STATUS_TIMES: Final = {"last_updated": "lastUpdated", "created_at": "createdAt"}


@cache
def status_type(kind: Kind) -> type[Answer]:
    """The newest reading of a device: its attributes are the columns of its row."""
    doc = f"The newest reading of a {kind}."
    name, fields, names = f"{title(kind)}Status", _values(kind, kind.in_status), _names(kind, kind.in_status)
    if kind.kept:
        doc += (
            " Values that it lacks are those of earlier ones, and `valueTimes` says of when; without it, all are its."
        )
    fields += [(column, datetime) for column in _STATUS_TIMES]
    if kind.kept:
        times = Annotated[dict[str, datetime], Meta(description="field -> when it was measured")]
        fields.append((_VALUE_TIMES, times | UnsetType, UNSET))
    return _defined(name, fields, {**names, **_STATUS_TIMES, _VALUE_TIMES: "valueTimes"}, doc)


def status_of(kind: Kind, row: Mapping[str, Any]) -> Answer:
    """A status, of its row."""
    if not kind.kept:
        return status_type(kind)(**row)
    times = {field.name: row[field.time_column] for field in kind.kept}
    values = {column: value for column, value in row.items() if column not in _time_columns(kind)}
    older = {name: at for name, at in times.items() if at is not None and at != row["last_updated"]}
    return status_type(kind)(**values, **({_VALUE_TIMES: older} if older else {}))


@cache
def _time_columns(kind: Kind) -> frozenset[str]:
    return frozenset(field.time_column for field in kind.kept)


@cache
def history_type(kind: Kind) -> type[Answer]:
    """A reading of a device: its attributes are the columns of its row."""
    doc = "A reading and when it was stored; `ingestedAt` is null once it is packed."
    if kind.alternatives is not None:
        energy = next(each.name for each in kind.fields if each.column == kind.energy)
        doc += f" Of a register, `{energy}` is the energy since the count before."
    fields = [*_values(kind, kind.stored), ("timestamp", datetime), ("ingested_at", datetime | None)]
    return _defined(f"Stored{title(kind)}Reading", fields, {**_names(kind, kind.stored), **_TIMES}, doc)


@cache
def export_type(kind: Kind) -> type[Answer]:
    """A reading as it was sent: what it did not have is left out, so that it can be posted again."""
    fields: list[tuple[Any, ...]] = [(kind.id_column, str), ("timestamp", datetime)]
    fields += [(each.column, PYTHON_TYPES[each.type] | None, None) for each in kind.stored]
    names = {**_names(kind, kind.stored), "timestamp": "timestamp"}
    doc = f"A {kind} as it was sent."
    return msgspec.defstruct(  # type: ignore[return-value]
        f"Exported{title(kind)}", fields, bases=(Answer,), namespace={"__doc__": doc}, frozen=True, rename=names,
        omit_defaults=True,
    )  # fmt: skip


@cache
def activity_type(kinds: tuple[Kind, ...]) -> type[Answer]:
    """A recent reading of any of these kinds: its attributes are the names that its fields have in JSON.

    A name that kinds have with different types may hold any of them.
    """
    fields: list[tuple[Any, ...]] = [
        ("kind", str),
        ("deviceId", str),
        ("timestamp", datetime),
        ("ingestedAt", datetime | None),
    ]
    held: dict[str, Any] = {}
    for field in (field for kind in kinds for field in kind.stored):
        known = PYTHON_TYPES[field.type] | None
        held[field.name] = held[field.name] | known if field.name in held else known
    fields += [(name, known, None) for name, known in held.items()]
    return _defined("ActivityItem", fields, {}, "A recent reading of some kind; the fields of other kinds are null.")


@cache
def activity_list(kinds: tuple[Kind, ...]) -> type[Answer]:
    """The answer with such readings; its attributes are those of a list over all shards."""
    fields: list[tuple[str, Any]] = [("items", list[activity_type(kinds)]), ("next", str | None)]  # type: ignore[misc]
    fields += [("tiers", Tiers), ("is_partial", bool), ("shards", Shards)]
    names = {"is_partial": "isPartial"}
    return _defined("Activity", fields, names, "The newest readings over all shards, newest first.", Dated)


def _values(kind: Kind, fields: Iterable[Field]) -> list[tuple[Any, ...]]:
    return [(kind.id_column, str), *((each.column, _held(each)) for each in fields)]


def _names(kind: Kind, fields: Iterable[Field]) -> dict[str, str]:
    return {kind.id_column: kind.id_name, **{each.column: each.name for each in fields}}


def _held(field: Field) -> Any:
    """What is required was always there: fields that are added later are not."""
    known = PYTHON_TYPES[field.type]
    return known if field.required and field.retired is None else known | None


def _defined(
    name: str, fields: Iterable[Any], names: dict[str, str], doc: str, base: type[Answer] = Answer
) -> type[Answer]:
    return msgspec.defstruct(  # type: ignore[return-value]
        name, fields, bases=(base,), namespace={"__doc__": doc}, frozen=True, rename=names
    )
