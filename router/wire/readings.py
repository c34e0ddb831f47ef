"""The wire types of readings, made of what their kinds declare. Pure."""

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from router.wire.complaints import ItemError
from shards.kinds import Field, Kind, Role, Type

ID_PATTERN: Final = "^[A-Za-z0-9._:*+|@=-]+$"  # what OCPP allows in its identifiers, and the colon

# The look-ahead keeps Python's `$` from matching before a final line feed; the schema shows the plain pattern.
DeviceId = Annotated[
    str,
    Meta(
        pattern=ID_PATTERN + r"(?!\n)",
        min_length=1,
        max_length=64,
        extra_json_schema={"pattern": ID_PATTERN},
    ),
]
_LETTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:*+|@=-"
_AnyId = Annotated[str, Meta(min_length=1, max_length=64)]
Timestamp = Annotated[datetime, Meta(tz=True, description="RFC 3339 with offset; the end of the reading's interval")]

# As it was decoded: its attributes have the names that its fields have in JSON.
Reading: TypeAlias = Struct
# As its row has it: device ID, timestamp, and the values in the order of its kind's.
Cells: TypeAlias = tuple[Any, ...]
PYTHON_TYPES: Final[dict[Type, Any]] = {
    Type.FLOAT8: float,
    Type.FLOAT4: float,
    Type.INT: int,
    Type.BOOL: bool,
    Type.TEXT: str,
}


def annotation(field: Field) -> Any:
    """The type of a field's values, with its limits, as msgspec checks them."""
    base = Literal[field.choices] if field.type is Type.TEXT else PYTHON_TYPES[field.type]
    return Annotated[base, Meta(ge=field.minimum, le=field.maximum, description=field.description)]


def title(kind: Kind) -> str:
    """As a type is called: BusDepot of bus_depot."""
    return "".join(part.capitalize() for part in kind.name.split("_"))


def foreign_letters(ids: Iterable[str]) -> bytes:
    """What these IDs hold that is not an ID's. The pattern takes 0.7 us for each, this 0.03. UnicodeEncodeError too."""
    return "".join(ids).encode("ascii").translate(None, _LETTERS)


@cache
def reading_type(kind: Kind, *, trusting: bool = False) -> type[Reading]:
    """The struct of a kind's readings; its fields are in the order of a row's cells.

    `trusting`: the letters of IDs are looked at elsewhere.
    """
    device_id = _AnyId if trusting else DeviceId
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [(kind.id_name, device_id), ("timestamp", Timestamp)]
    for field in kind.fields:
        known = annotation(field)
        fields.append((field.name, known) if field.required else (field.name, known | None, None))
    return _defined(f"{title(kind)}Reading", fields, kind.description)


def _defined(name: str, fields: Iterable[Any], doc: str) -> type[Reading]:
    return msgspec.defstruct(
        name, fields, namespace={"__doc__": doc}, frozen=True, forbid_unknown_fields=True, kw_only=True
    )


def energy_error(kind: Kind, index: int, *, has_energy: bool) -> ItemError:
    """What is wrong with a reading that has both an energy and a register, or neither."""
    energy, register = kind.named(Role.ENERGY), kind.named(Role.REGISTER)
    if not has_energy:
        return ItemError(index, f"/{energy}", "missing_field", f"is required, or {register} in its place")
    return ItemError(index, f"/{register}", "ambiguous_energy", f"is given beside {energy}: a reading has one of them")
