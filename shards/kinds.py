"""Kinds of device: what their readings hold, and what their tables are called. Declarations and constants only."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Final, TypeAlias

# What a reading's field may hold. None: it is not there.
Value: TypeAlias = float | str | None
# (bucket, tenant, device id, timestamp, value, ...): the values in the order of Kind.values.
Row: TypeAlias = tuple[int, int, str, datetime, *tuple[Value, ...]]
VALUES_AT: Final = 4  # where a row's values begin
INTERVAL_S: Final = 60.0
# How the names of root tables end.
HISTORY: Final = "_telemetry_history"
STATUS: Final = "_current_status"


class Type(StrEnum):
    """What a field's values are, as PostgreSQL calls it."""

    FLOAT8 = "float8"
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


@dataclass(frozen=True)
class Field:
    """One value of a reading. `name` is its name in JSON, `column` in SQL; the limits are inclusive."""

    name: str
    column: str
    description: str
    type: Type = Type.FLOAT8
    role: Role = Role.NONE
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, eq=False)  # there is one object of each: compared and hashed by identity, often
class Kind:
    """What devices of a kind send. `id_name` is the device ID's name in JSON, `id_column` in SQL."""

    name: str
    id_name: str
    id_column: str
    description: str
    fields: tuple[Field, ...]
    interval_s: float = INTERVAL_S

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The columns of a reading's values, in the order of a row's."""
        return tuple(each.column for each in self.fields)

    @cached_property
    def optional(self) -> tuple[int, ...]:
        """Where in `fields` those are that a reading may leave out."""
        return tuple(at for at, each in enumerate(self.fields) if not each.required)

    def column(self, role: Role) -> str | None:
        """The column of the field with a role that at most one field has."""
        return next((each.column for each in self.fields if each.role is role), None)

    def named(self, role: Role) -> str:
        """The name in JSON of the field with a role that one field has."""
        return next(each.name for each in self.fields if each.role is role)

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
        Field("kwhConsumedAc", "kwh_consumed_ac", _ENERGY, role=Role.ENERGY, minimum=0, maximum=ENERGY_MAX_KWH),
        Field(
            "registerKwh",
            "register_kwh",
            "cumulative count in kWh at `timestamp`, instead of kwhConsumedAc",
            role=Role.REGISTER,
            minimum=0,
            maximum=REGISTER_MAX_KWH,
        ),
        Field("voltage", "voltage", "volts", minimum=0, maximum=1_000_000),
    ),
)
VEHICLE: Final = Kind(
    "vehicle",
    "vehicleId",
    "vehicle_id",
    "One minute of a vehicle (DC side).",
    (
        Field("soc", "soc", "state of charge, percent", role=Role.LEVEL, minimum=0, maximum=100, required=True),
        Field(
            "kwhDeliveredDc",
            "kwh_delivered_dc",
            _ENERGY,
            role=Role.ENERGY,
            minimum=0,
            maximum=ENERGY_MAX_KWH,
            required=True,
        ),
        Field(
            "batteryTemp",
            "battery_temp",
            "degrees Celsius",
            role=Role.TEMPERATURE,
            minimum=-60,
            maximum=150,
            required=True,
        ),
    ),
)
KINDS: Final = (METER, VEHICLE)
