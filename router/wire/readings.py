"""The wire types of readings, and msgspec's complaints about them in our words. Pure."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from shards.kinds import METER, VEHICLE, Kind, Row

ID_PATTERN: Final = "^[A-Za-z0-9._:*+|@=-]+$"  # what OCPP allows in its identifiers, and the colon
ENERGY_MAX_KWH: Final = 1_000_000.0
REGISTER_MAX_KWH: Final = 1e10
VOLTAGE_MAX_V: Final = 1_000_000.0

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
Energy = Annotated[float, Meta(ge=0, le=ENERGY_MAX_KWH, description="kWh of the interval that ends at `timestamp`")]
Register = Annotated[
    float,
    Meta(ge=0, le=REGISTER_MAX_KWH, description="cumulative count in kWh at `timestamp`, instead of kwhConsumedAc"),
]
Voltage = Annotated[float, Meta(ge=0, le=VOLTAGE_MAX_V, description="volts")]
Soc = Annotated[float, Meta(ge=0, le=100, description="state of charge, percent")]
BatteryTemp = Annotated[float, Meta(ge=-60, le=150, description="degrees Celsius")]
Timestamp = Annotated[datetime, Meta(tz=True, description="RFC 3339 with offset; the end of the reading's interval")]


class MeterReading(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One interval of a smart meter (AC side): its energy, or the meter's count at its end; exactly one of them."""

    meter_id: DeviceId
    timestamp: Timestamp
    kwh_consumed_ac: Energy | None = None
    register_kwh: Register | None = None
    voltage: Voltage | None = None


class VehicleReading(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One minute of a vehicle (DC side)."""

    vehicle_id: DeviceId
    soc: Soc
    kwh_delivered_dc: Energy
    battery_temp: BatteryTemp
    timestamp: Timestamp


class MixedReading(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Either kind, for decoding a mixed batch in one pass; `kind_of` tells whether it is whole."""

    timestamp: Timestamp
    meter_id: DeviceId | UnsetType = UNSET
    kwh_consumed_ac: Energy | None = None
    register_kwh: Register | None = None
    voltage: Voltage | None = None
    vehicle_id: DeviceId | UnsetType = UNSET
    soc: Soc | UnsetType = UNSET
    kwh_delivered_dc: Energy | UnsetType = UNSET
    battery_temp: BatteryTemp | UnsetType = UNSET


Reading: TypeAlias = MeterReading | VehicleReading | MixedReading


class ItemError(Struct, frozen=True):
    """Why one reading was not stored. `pointer` is a JSON Pointer into the item; `index` counts from 0."""

    index: int
    pointer: str
    code: str
    detail: str


def kind_of(reading: MixedReading) -> Kind | None:
    """The kind of a mixed item that has all fields of one kind and none of the other; None otherwise."""
    vehicle = (reading.vehicle_id, reading.soc, reading.kwh_delivered_dc, reading.battery_temp)
    if reading.meter_id is not UNSET:
        return METER if vehicle == (UNSET, UNSET, UNSET, UNSET) else None
    meter = (reading.kwh_consumed_ac, reading.register_kwh, reading.voltage)
    return VEHICLE if UNSET not in vehicle and meter == (None, None, None) else None


def energy_error(index: int, reading: MeterReading | MixedReading) -> ItemError:
    """What is wrong with a meter's reading that has not exactly one of energy and register."""
    if reading.kwh_consumed_ac is None:
        return ItemError(index, "/kwhConsumedAc", "missing_field", "is required, or registerKwh in its place")
    detail = "is given beside kwhConsumedAc: a reading has one of them"
    return ItemError(index, "/registerKwh", "ambiguous_energy", detail)


def meter_row(reading: MeterReading, bucket: int, tenant: int) -> Row:
    """Row of a meter reading."""
    return (
        bucket,
        tenant,
        reading.meter_id,
        reading.timestamp,
        reading.kwh_consumed_ac,
        reading.voltage,
        reading.register_kwh,
    )


def vehicle_row(reading: VehicleReading, bucket: int, tenant: int) -> Row:
    """Row of a vehicle reading."""
    return (
        bucket,
        tenant,
        reading.vehicle_id,
        reading.timestamp,
        reading.soc,
        reading.kwh_delivered_dc,
        reading.battery_temp,
    )


_COMPLAINT: Final = re.compile(r"(?P<text>.*?)(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_BOUND: Final = re.compile(r"Expected `float` (>=|<=) (\S+)")

_Parsed: TypeAlias = tuple[str, str, str]  # pointer, code, detail
_TEXTS: Final[list[tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[str, str]]]]] = [
    (_BOUND, lambda m: ("out_of_range", f"must be {m[1]} {float(m[2]):g}")),
    (re.compile("Number out of range"), lambda _: ("out_of_range", "must be a finite number")),
    (re.compile("Expected `datetime` with a timezone"), lambda _: ("no_offset", "must have an offset, as in ...Z")),
    (re.compile("Invalid RFC3339"), lambda _: ("invalid_timestamp", "must be RFC 3339, as in 2026-05-01T12:00:00Z")),
    (
        re.compile("Expected `str` matching regex .*A-Za"),
        lambda _: ("invalid_id", "may hold only A-Z a-z 0-9 . _ : * + | @ = -"),
    ),
    (re.compile("Expected `str` matching regex"), lambda _: ("invalid_text", "may hold no control characters")),
    (
        re.compile("Expected `str` of length (>=|<=) ([0-9]+)"),
        lambda m: ("invalid_length", f"must have at {'least' if m[1] == '>=' else 'most'} {m[2]} characters"),
    ),
    (re.compile("Expected `(.*)`, got `(.*)`"), lambda m: ("wrong_type", f"must be {_article(m[1])}, not {m[2]}")),
]


def _article(type_name: str) -> str:
    names = {"float": "a number", "str": "a string", "datetime": "a string with a timestamp", "object": "an object"}
    return names.get(type_name, type_name)


def _field(name: str) -> str:
    shown = name if len(name) <= 64 else name[:64] + "..."
    return "/" + shown.replace("~", "~0").replace("/", "~1")


def explain(message: str) -> _Parsed:
    """(pointer, code, detail) of a msgspec complaint about one item. No value of the item is repeated."""
    message = message.encode("utf-8", "replace").decode()
    if unknown := _UNKNOWN.search(message):
        return _field(unknown[1]), "unknown_field", "is not a field of this reading"
    if missing := _MISSING.search(message):
        return _field(missing[1]), "missing_field", "is required"
    parts = _COMPLAINT.fullmatch(message)
    text, path = (parts["text"], parts["path"] or "") if parts else (message, "")
    pointer = path.replace(".", "/")
    for pattern, describe in _TEXTS:
        if match := pattern.search(text):
            code, detail = describe(match)
            return pointer, code, detail
    return pointer, "invalid", text


METER_ARRAY: Final = msgspec.json.Decoder(list[MeterReading])
VEHICLE_ARRAY: Final = msgspec.json.Decoder(list[VehicleReading])
MIXED_ARRAY: Final = msgspec.json.Decoder(list[MixedReading])
METER_ONE: Final = msgspec.json.Decoder(MeterReading)
VEHICLE_ONE: Final = msgspec.json.Decoder(VehicleReading)
MIXED_ONE: Final = msgspec.json.Decoder(MixedReading)
