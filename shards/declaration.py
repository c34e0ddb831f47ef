"""A kind or a field as somebody declares it: read from what a file holds, and refused when it could not work. Pure."""

import keyword
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from shards.errors import InvalidArgument, Refused
from shards.kinds import Direction, Field, Kind, Role, Side, Type

FIELDS_MAX: Final = 64
CHOICES_MAX: Final = 64
_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,19}")
_NAME: Final = re.compile(r"[a-z][A-Za-z0-9]{0,39}")
_COLUMN: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_PATH: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
_CHOICE: Final = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
# Paths of /v1 that are something else's, and what metrics call a batch of several kinds.
_TAKEN_KINDS: Final = frozenset({"mixed", "unknown"})
_TAKEN_PATHS: Final = frozenset({
    "analytics", "batch", "defaults", "events", "export", "feed", "graphql", "ingest", "keys", "kinds", "live", "moves",
    "pairings", "problems", "rebalance", "replicas", "shards", "tenants", "usage",
})  # fmt: skip
_TAKEN_NAMES: Final = frozenset({
    "timestamp", "ingestedAt", "lastUpdated", "createdAt", "kind", "deviceId", "valueTimes"
})  # fmt: skip
_TAKEN_COLUMNS: Final = frozenset({
    "bucket", "covered", "created", "created_at", "device", "device_id", "ingested_at", "kind", "last_updated",
    "newest", "served", "tenant_id", "timestamp", "value_times", "cmax", "cmin", "ctid", "tableoid", "xmax", "xmin",
})  # fmt: skip
_ONCE: Final = frozenset({Role.ENERGY, Role.REGISTER})  # sums would not know which one is meant
_NUMBERS: Final = frozenset({Type.FLOAT8, Type.FLOAT4, Type.INT})
# What a type can hold: the limits of a field that has none.
RANGES: Final[Mapping[Type, tuple[float, float]]] = {
    Type.FLOAT4: (-3.4e38, 3.4e38),
    Type.INT: (-(2**31), 2**31 - 1),
}
_NEEDED_TYPES: Final[Mapping[Role, frozenset[Type]]] = {
    Role.ENERGY: frozenset({Type.FLOAT8}),  # sums of float4 would lose what they add
    Role.REGISTER: frozenset({Type.FLOAT8}),
    Role.LEVEL: _NUMBERS,
    Role.TEMPERATURE: frozenset({Type.FLOAT8, Type.FLOAT4}),
    Role.POWER: _NUMBERS,
    Role.POSITION: frozenset({Type.FLOAT8}),
}


class FieldDeclaration(Struct, forbid_unknown_fields=True):
    """One field, as a file or a command line says it. `column`: by default the name in snake case."""

    name: str
    type: Type = Type.FLOAT8
    unit: Annotated[str, Meta(max_length=32)] = ""
    min: float | None = None
    max: float | None = None
    choices: list[str] = []
    role: Role = Role.NONE
    direction: Direction = Direction.IN
    required: bool = False
    status: bool = True
    column: str = ""
    description: Annotated[str, Meta(max_length=300)] = ""

    def field(self) -> Field:
        """As readings have it. InvalidArgument when it could not be stored, or nothing could be sent."""
        low, high = RANGES.get(self.type, (None, None))
        made = Field(
            self.name,
            self.column or snake_case(self.name),
            self.description or f"{self.name}{f' in {self.unit}' if self.unit else ''}",
            self.type,
            self.role,
            low if self.min is None else _number(self.type, self.min),
            high if self.max is None else _number(self.type, self.max),
            tuple(self.choices),
            self.required,
            self.unit,
            self.direction,
            kept=self.status and not self.required,
            in_status=self.status,
        )
        check_field(made)
        return made


class KindDeclaration(Struct, forbid_unknown_fields=True):
    """One kind, as a file says it. `id`: the name of a device's ID in JSON, NAMEId by default."""

    name: str
    fields: Annotated[list[FieldDeclaration], Meta(min_length=1, max_length=FIELDS_MAX)]
    id: str = ""
    path: str = ""
    plural: str = ""
    interval_s: Annotated[float, Meta(ge=1, le=86_400 * 31)] = 60.0
    side: Side | None = None
    description: Annotated[str, Meta(max_length=300)] = ""

    def kind(self) -> Kind:
        """As routers know it. InvalidArgument when it could not work."""
        id_name = self.id or f"{camel_case(self.name)}Id"
        made = Kind(
            self.name,
            id_name,
            snake_case(id_name),
            self.description or f"One interval of a {self.name}.",
            tuple(each.field() for each in self.fields),
            self.interval_s,
            self.side,
            path=self.path or self.name.replace("_", "-"),
            plural=self.plural,
        )
        check_kind(made)
        return made


def _number(type_: Type, value: float) -> float:
    """A limit as its type's values are."""
    return int(value) if type_ is Type.INT and value.is_integer() else value


def snake_case(name: str) -> str:
    """PowerKw -> power_kw."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def camel_case(name: str) -> str:
    """bus_depot -> busDepot."""
    first, *rest = name.split("_")
    return first + "".join(each.capitalize() for each in rest)


def read(declared: object) -> Kind:
    """The kind that an object (of a file) declares. InvalidArgument names what is wrong with it, and where."""
    try:
        return msgspec.convert(declared, KindDeclaration).kind()
    except msgspec.ValidationError as error:
        raise InvalidArgument(str(error).replace("`$.", "`").replace("`$`", "the declaration")) from None


def written(kind: Kind) -> dict[str, Any]:
    """A kind as a file says it; `read` gives it back."""
    told: dict[str, Any] = {"name": kind.name, "id": kind.id_name, "path": kind.path, "plural": kind.plural}
    told |= {"interval_s": kind.interval_s, "description": kind.description}
    if kind.side is not None:
        told["side"] = kind.side.value
    return {**told, "fields": [written_field(field) for field in kind.fields]}


def written_field(field: Field) -> dict[str, Any]:
    """A field as a file says it."""
    told: dict[str, Any] = {"name": field.name, "column": field.column, "type": field.type.value}
    told |= {"unit": field.unit, "min": field.minimum, "max": field.maximum, "role": field.role.value}
    told |= {"required": field.required, "status": field.in_status, "description": field.description}
    if field.choices:
        told["choices"] = list(field.choices)
    if field.direction is not Direction.IN:
        told["direction"] = field.direction.value
    return {name: value for name, value in told.items() if value is not None}


def check_field(field: Field) -> None:
    """InvalidArgument unless SQL and JSON can hold it, and its limits let something through."""
    name = field.name[:64]
    if not _NAME.fullmatch(field.name):
        raise InvalidArgument(f"field {name!r}: a name in JSON is lowerCamelCase, letters and digits, at most 40")
    if field.name in _TAKEN_NAMES or keyword.iskeyword(field.name):
        raise InvalidArgument(f"field {name}: that name is taken by voltroute itself")
    if not _COLUMN.fullmatch(field.column):
        raise InvalidArgument(f"field {name}: column {field.column[:64]!r} is not snake_case of at most 48 characters")
    if field.column in _TAKEN_COLUMNS or field.column.endswith("_at"):
        raise InvalidArgument(f"field {name}: column {field.column} is taken by voltroute itself (as is *_at)")
    needed = _NEEDED_TYPES.get(field.role)
    if needed is not None and field.type not in needed:
        raise InvalidArgument(f"field {name}: the role {field.role} needs the type {' or '.join(sorted(needed))}")
    if field.direction is Direction.OUT and field.role is not Role.ENERGY:
        raise InvalidArgument(f"field {name}: only an energy has a direction")
    _check_limits(field)
    _check_choices(field)


def _check_limits(field: Field) -> None:
    name, low, high = field.name, field.minimum, field.maximum
    if field.type not in _NUMBERS:
        if low is not None or high is not None:
            raise InvalidArgument(f"field {name}: a {field.type} has no limits")
        return
    least, most = RANGES.get(field.type, (-float("inf"), float("inf")))
    for limit in (low, high):
        if limit is not None and not math.isfinite(limit):
            raise InvalidArgument(f"field {name}: a limit is a finite number, or is left out")
        if limit is not None and not least <= limit <= most:
            raise InvalidArgument(f"field {name}: {limit:g} is more than a {field.type} can hold")
        if limit is not None and field.type is Type.INT and not isinstance(limit, int):
            raise InvalidArgument(f"field {name}: {limit:g} is no whole number")
    if low is not None and high is not None and low > high:
        raise InvalidArgument(f"field {name}: its limits are reversed: min {low:g} is above max {high:g}")
    if field.role in _ONCE and (low is None or low < 0):
        raise InvalidArgument(
            f"field {name}: the least {field.role} is 0 or more (min); what goes out is another field"
        )


def _check_choices(field: Field) -> None:
    name, choices = field.name, field.choices
    if (field.type is Type.TEXT) != bool(choices):
        raise InvalidArgument(f"field {name}: a text has a closed list of choices, and nothing else has one")
    if len(choices) > CHOICES_MAX or len(set(choices)) < len(choices):
        raise InvalidArgument(f"field {name}: at most {CHOICES_MAX} choices, each once")
    wrong = [each[:64] for each in choices if not _CHOICE.fullmatch(each)]
    if wrong:
        raise InvalidArgument(f"field {name}: {wrong[0]!r} is no choice: 1 to 64 characters, no control characters")


def check_kind(kind: Kind) -> None:
    """InvalidArgument unless it can work by itself."""
    name = kind.name[:64]
    if not _KIND.fullmatch(kind.name) or kind.name in _TAKEN_KINDS:
        raise InvalidArgument(f"kind {name!r}: a name is lower case, letters, digits and _, at most 20")
    for path in (kind.path, kind.plural):
        if not _PATH.fullmatch(path) or path in _TAKEN_PATHS:
            raise InvalidArgument(f"kind {name}: the path {path[:64]!r} is taken, or not lower case, digits and -")
    if kind.path == kind.plural:
        raise InvalidArgument(f"kind {name}: path and plural are both {kind.path}")
    if not _NAME.fullmatch(kind.id_name) or keyword.iskeyword(kind.id_name) or kind.id_name in _TAKEN_NAMES:
        raise InvalidArgument(f"kind {name}: {kind.id_name[:64]!r} cannot be the name of an ID in JSON")
    if kind.id_column in _TAKEN_COLUMNS or not _COLUMN.fullmatch(kind.id_column) or kind.id_column.endswith("_at"):
        raise InvalidArgument(f"kind {name}: the column {kind.id_column} is taken by voltroute itself")
    if not 0 < len(kind.fields) <= FIELDS_MAX:
        raise InvalidArgument(f"kind {name}: 1 to {FIELDS_MAX} fields are expected, not {len(kind.fields)}")
    if not kind.in_status:
        raise InvalidArgument(f"kind {name}: its status needs a field")
    if kind.side is not None and kind.energy is None:
        raise InvalidArgument(f"kind {name}: the {kind.side} side of an efficiency needs a field with the role energy")
    _check_together(kind)


def _check_together(kind: Kind) -> None:
    names, columns = [kind.id_name], [kind.id_column]
    roles: list[tuple[Role, Direction]] = []
    for field in kind.stored:
        if field.name in names or field.column in columns:
            raise InvalidArgument(f"kind {kind.name}: field {field.name} (column {field.column}) is there twice")
        names.append(field.name)
        columns.append(field.column)
    for field in kind.fields:
        role = (field.role, field.direction)
        if field.role in _ONCE and role in roles:
            raise InvalidArgument(f"kind {kind.name}: field {field.name}: the role {field.role} is there twice")
        roles.append(role)
    if kind.alternatives and any(field.required for field in kind.fields if field.column in kind.alternatives):
        raise InvalidArgument(f"kind {kind.name}: of energy and register a reading has one: neither is required")


def check_beside(kind: Kind, others: Iterable[Kind]) -> None:
    """Refused when a reading, a path or a table could be of two kinds."""
    for other in others:
        if other.name == kind.name:
            continue
        if {kind.path, kind.plural} & {other.path, other.plural}:
            raise Refused(f"kind {kind.name}: a path of it is one of kind {other.name}")
        if kind.id_name == other.id_name:
            raise Refused(f"kind {kind.name}: {kind.id_name} is the ID of kind {other.name}")
        for one, two in ((kind, other), (other, kind)):
            if any(field.name == two.id_name for field in one.stored):
                raise Refused(f"kind {one.name}: its field {two.id_name} is the ID of kind {two.name}")


def with_fields(kind: Kind, added: Iterable[Field]) -> Kind:
    """The kind with fields more. InvalidArgument when one may not be there: a name or a role twice, one too many."""
    made = replace(kind, fields=(*kind.fields, *added))
    check_kind(made)
    return made
