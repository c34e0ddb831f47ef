"""Kinds of device: what their readings hold, and what their tables are called. Declarations and constants only."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime
from enum import StrEnum
from functools import cached_property
from typing import Final, TypeAlias

# What a reading's field may hold. None: it is not there.
Value: TypeAlias = float | str | bool | None
# (bucket, tenant, device id, timestamp, value, ...): the values in the order of Kind.values.
Row: TypeAlias = tuple[int, int, str, datetime, *tuple[Value, ...]]
VALUES_AT: Final = 4  # where a row's values begin
INTERVAL_S: Final = 60.0
# How the names of root tables end.
HISTORY: Final = "_telemetry_history"
LATE: Final = "_telemetry_late"
PACKED: Final = "_telemetry_packed"
HOURLY: Final = "_telemetry_hourly"
MINUTELY: Final = "_telemetry_minutely"
DAILY: Final = "_telemetry_daily"
STATUS: Final = "_current_status"


class Type(StrEnum):
    """What a field's values are, as PostgreSQL calls it."""

    FLOAT8 = "float8"
    FLOAT4 = "float4"
    INT = "int4"
    BOOL = "bool"
    TEXT = "text"


class Role(StrEnum):
    """What a field means to sums, efficiency and insights. ENERGY: of the reading's interval. REGISTER: a count."""

    ENERGY = "energy"
    REGISTER = "register"
    LEVEL = "level"
    TEMPERATURE = "temperature"
    POWER = "power"
    POSITION = "position"
    NONE = "none"


class Direction(StrEnum):
    """Of an energy: into the device or the vehicle that it serves, or out of it again."""

    IN = "in"
    OUT = "out"


class Side(StrEnum):
    """Of the fleet's efficiency: what is taken from the grid, and what arrives in vehicles."""

    AC = "ac"
    DC = "dc"


@dataclass(frozen=True)
class Field:
    """One value of a reading. `name` is its name in JSON, `column` in SQL; the limits are inclusive.

    `kept`: a status keeps the newest value when a newer reading has none. `retired`: since when it is refused.
    """

    name: str
    column: str
    description: str
    type: Type = Type.FLOAT8
    role: Role = Role.NONE
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    unit: str = ""
    direction: Direction = Direction.IN
    kept: bool = False
    in_status: bool = True
    retired: date | None = None

    @property
    def time_column(self) -> str:
        """Of a status: when its value was measured. NULL beside a value: with its newest reading."""
        return f"{self.column}_at"


@dataclass(frozen=True, eq=False)  # there is one object of each: compared and hashed by identity, often
class Kind:
    """What devices of a kind send. `id_name` is the device ID's name in JSON, `id_column` in SQL.

    `path`: /v1/ingest/PATH; `plural`: /v1/PLURAL. `retired`: fields that are stored, and taken no more.
    """

    name: str
    id_name: str
    id_column: str
    description: str
    fields: tuple[Field, ...]
    interval_s: float = INTERVAL_S
    side: Side | None = None
    retired: tuple[Field, ...] = ()
    path: str = ""
    plural: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path or self.name)
        object.__setattr__(self, "plural", self.plural or f"{self.path}s")

    def is_declared_as(self, other: "Kind") -> bool:
        """Whether nothing tells the two apart."""
        return all(getattr(self, each.name) == getattr(other, each.name) for each in fields(self))

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The columns of a reading's values, in the order of a row's."""
        return tuple(each.column for each in self.fields)

    @cached_property
    def optional(self) -> tuple[int, ...]:
        """Where in `fields` those are that a reading may leave out."""
        return tuple(at for at, each in enumerate(self.fields) if not each.required)

    @cached_property
    def stored(self) -> tuple[Field, ...]:
        """What a stored reading holds."""
        return self.fields + self.retired

    @cached_property
    def in_status(self) -> tuple[Field, ...]:
        """What a status holds."""
        return tuple(each for each in self.fields if each.in_status)

    @cached_property
    def kept(self) -> tuple[Field, ...]:
        """Fields of which a status keeps the newest value of each."""
        return tuple(each for each in self.in_status if each.kept)

    def column(self, role: Role) -> str | None:
        """The column of the first field with a role; of energies, of those that come in."""
        return next((each.column for each in self._of(role)), None)

    def named(self, role: Role) -> str:
        """The name in JSON of the field with a role that one field has."""
        return next(each.name for each in self._of(role))

    def _of(self, role: Role) -> Iterator[Field]:
        return (each for each in self.fields if each.role is role and each.direction is Direction.IN)

    @cached_property
    def energy(self) -> str | None:
        """The column of the kWh of a reading's interval."""
        return self.column(Role.ENERGY)

    @cached_property
    def register(self) -> str | None:
        """The column of the device's count in kWh, which it may send instead of an energy."""
        return self.column(Role.REGISTER)

    @cached_property
    def alternatives(self) -> tuple[str, str] | None:
        """The columns of energy and register where there are both: a reading has exactly one of them."""
        return (self.energy, self.register) if self.energy and self.register else None

    @cached_property
    def temperature(self) -> str | None:
        return self.column(Role.TEMPERATURE)

    @cached_property
    def history(self) -> str:
        return self.name + HISTORY

    @cached_property
    def late(self) -> str:
        return self.name + LATE

    @cached_property
    def packed(self) -> str:
        return self.name + PACKED

    @cached_property
    def hourly(self) -> str:
        return self.name + HOURLY

    @cached_property
    def minutely(self) -> str:
        return self.name + MINUTELY

    @cached_property
    def daily(self) -> str:
        return self.name + DAILY

    @cached_property
    def status(self) -> str:
        return self.name + STATUS

    def __str__(self) -> str:
        return self.name


ENERGY_MAX_KWH: Final = 1_000_000.0
REGISTER_MAX_KWH: Final = 1e10
_ENERGY: Final = "kWh of the interval that ends at `timestamp`"

METER: Final = Kind(
    "meter",
    "meterId",
    "meter_id",
    "One interval of a smart meter (AC side): its energy, or the meter's count at its end; exactly one of them.",
    (
        Field(
            "kwhConsumedAc",
            "kwh_consumed_ac",
            _ENERGY,
            role=Role.ENERGY,
            minimum=0,
            maximum=ENERGY_MAX_KWH,
            unit="kWh",
        ),
        Field(
            "registerKwh",
            "register_kwh",
            "cumulative count in kWh at `timestamp`, instead of kwhConsumedAc",
            role=Role.REGISTER,
            minimum=0,
            maximum=REGISTER_MAX_KWH,
            unit="kWh",
        ),
        Field("voltage", "voltage", "volts", minimum=0, maximum=1_000_000, unit="V", kept=True),
    ),
    side=Side.AC,
)
VEHICLE: Final = Kind(
    "vehicle",
    "vehicleId",
    "vehicle_id",
    "One minute of a vehicle (DC side).",
    (
        Field(
            "soc",
            "soc",
            "state of charge, percent",
            role=Role.LEVEL,
            minimum=0,
            maximum=100,
            required=True,
            unit="%",
        ),
        Field(
            "kwhDeliveredDc",
            "kwh_delivered_dc",
            _ENERGY,
            role=Role.ENERGY,
            minimum=0,
            maximum=ENERGY_MAX_KWH,
            required=True,
            unit="kWh",
        ),
        Field(
            "batteryTemp",
            "battery_temp",
            "degrees Celsius",
            role=Role.TEMPERATURE,
            minimum=-60,
            maximum=150,
            required=True,
            unit="Cel",
        ),
    ),
    side=Side.DC,
)
KINDS: Final = (METER, VEHICLE)


class Kinds:
    """The kinds that a cluster has, in the order in which their tables are locked. `epoch`: of the catalog."""

    def __init__(self, kinds: Iterable[Kind], epoch: int = 0) -> None:
        self.all = tuple(kinds)
        self.epoch = epoch
        self.by_name: Mapping[str, Kind] = {kind.name: kind for kind in self.all}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self.all)

    def on(self, side: Side) -> tuple[Kind, ...]:
        """The kinds whose energy counts on one side of the fleet's efficiency."""
        return tuple(kind for kind in self.all if kind.side is side and kind.energy is not None)

    @property
    def meter(self) -> Kind:
        """The kind of the meters that are paired with vehicles."""
        return self.by_name[METER.name]

    @property
    def vehicle(self) -> Kind:
        """The kind of the vehicles that are paired with meters."""
        return self.by_name[VEHICLE.name]

    def keeping(self, known: "Kinds") -> "Kinds":
        """The same, with the objects of `known` for kinds that did not change: queues and types belong to them."""
        kept = (known.by_name.get(kind.name) for kind in self.all)
        pairs = zip(self.all, kept, strict=True)
        return Kinds((was if was is not None and was.is_declared_as(kind) else kind for kind, was in pairs), self.epoch)


BUILT_IN: Final = Kinds(KINDS, -1)  # before the catalog was asked
