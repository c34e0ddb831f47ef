"""The wire types of readings, made of what their kinds declare. Pure."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import astuple

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


@cache
def reading_type(kind: Kind) -> type[Reading]:
    """The struct of a kind's readings; its fields are in the order of a row's cells."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [(kind.id_name, DeviceId), ("timestamp", Timestamp)]
    for field in kind.fields:
        known = annotation(field)
        fields.append((field.name, known) if field.required else (field.name, known | None, None))
    return _defined(f"{kind.name.capitalize()}Reading", fields, kind.description)


def _defined(name: str, fields: Iterable[Any], doc: str) -> type[Reading]:
    return msgspec.defstruct(
        name, fields, namespace={"__doc__": doc}, frozen=True, forbid_unknown_fields=True, kw_only=True
    )


class Mixed:
    """Readings of any of these kinds, for decoding a mixed batch in one pass; the ID's name tells the kind.

    A name that two kinds have cannot be checked in that pass: `own` finds no reading of such kinds whole.
    """

    def __init__(self, kinds: Iterable[Kind]) -> None:
        kinds = tuple(kinds)
        uses = Counter(field.name for kind in kinds for field in kind.fields)
        fields: list[tuple[str, Any, Any]] = []
        places = []
        for kind in kinds:
            start = 1 + len(fields)
            fields.append((kind.id_name, DeviceId | UnsetType, UNSET))
            fields += [_optional(field) for field in kind.fields if uses[field.name] == 1]
            if all(uses[field.name] == 1 for field in kind.fields):
                places.append((kind, start, 1 + len(fields)))
        fields += [(name, Any, UNSET) for name, count in uses.items() if count > 1]
        self.type = _defined("MixedReading", [("timestamp", Timestamp), *fields], "A reading of some kind.")
        absent = (None, *(default for _, _, default in fields))
        # Where each kind's fields are, and what is before and behind them in a reading that has no others.
        self._places = [(kind, start, end, absent[1:start], absent[end:]) for kind, start, end in places]

    def own(self, reading: Reading) -> tuple[Kind, Cells] | None:
        """Kind and cells of a reading that has all fields of one kind and none of another; None otherwise."""
        values = astuple(reading)
        for kind, start, end, before, behind in self._places:
            if values[start] is not UNSET:
                mine = values[start:end]
                if UNSET in mine or values[1:start] != before or values[end:] != behind:
                    return None
                return kind, (mine[0], values[0]) + mine[1:]  # noqa: RUF005 - twice as fast as to unpack it
        return None


def _optional(field: Field) -> tuple[str, Any, Any]:
    known = annotation(field)
    return (field.name, known | UnsetType, UNSET) if field.required else (field.name, known | None, None)


def energy_error(kind: Kind, index: int, *, has_energy: bool) -> ItemError:
    """What is wrong with a reading that has both an energy and a register, or neither."""
    energy, register = kind.named(Role.ENERGY), kind.named(Role.REGISTER)
    if not has_energy:
        return ItemError(index, f"/{energy}", "missing_field", f"is required, or {register} in its place")
    return ItemError(index, f"/{register}", "ambiguous_energy", f"is given beside {energy}: a reading has one of them")
