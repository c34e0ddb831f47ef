"""A body of bytes into readings: one strict pass when all is well, item by item when something is wrong. Pure."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from router.wire import readings as wire
from router.wire.problems import CONTENT_TOO_LARGE, MALFORMED_BODY, ProblemError
from router.wire.readings import (
    ItemError,
    MeterReading,
    MixedReading,
    Reading,
    VehicleReading,
    energy_error,
    explain,
    kind_of,
)
from shards.kinds import METER, VEHICLE, Kind

_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_WHITESPACE: Final = b" \t\r\n"
_LEAP_SECOND: Final = re.compile(r"(.{10}[Tt ]..:..:)60((?:\.[0-9]{1,6})?(?:[Zz]|[+-]..:..))")
_VALUES_MAX: Final = 16  # of a reading, on average: what has more commas or lines than that is not looked at


@dataclass(slots=True)
class Decoded:
    """Valid readings by kind, each with its index in the request, and an error for each other item."""

    meters: list[tuple[int, MeterReading]] = field(default_factory=list)
    vehicles: list[tuple[int, VehicleReading]] = field(default_factory=list)
    errors: list[ItemError] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.meters) + len(self.vehicles) + len(self.errors)


@dataclass(frozen=True)
class Format:
    """What an endpoint takes: readings of one kind (None: both), and how to decode one, an array, or lines of them."""

    kind: Kind | None
    one: msgspec.json.Decoder[Any]
    array: msgspec.json.Decoder[Any]


METER_FORMAT: Final = Format(METER, wire.METER_ONE, wire.METER_ARRAY)
VEHICLE_FORMAT: Final = Format(VEHICLE, wire.VEHICLE_ONE, wire.VEHICLE_ARRAY)
MIXED_FORMAT: Final = Format(None, wire.MIXED_ONE, wire.MIXED_ARRAY)


def decode(body: bytes, shape: Format, *, ndjson: bool, readings_max: int) -> Decoded:
    """Readings of a body. ProblemError when it cannot be parsed at all, or holds more than `readings_max`."""
    _check_size(body, ndjson=ndjson, readings_max=readings_max)
    try:
        return _fast(body, shape, ndjson=ndjson, readings_max=readings_max)
    except _BROKEN:
        items = _lines(body) if ndjson else _elements(body)
        _check_count(len(items), readings_max)
        return _one_by_one(items, shape)


def _check_size(body: bytes, *, ndjson: bool, readings_max: int) -> None:
    """Refuse, before any of it becomes an object, a small body of very many values: `[0,0,...]`, or empty lines."""
    values = body.count(b",") + (body.count(b"\n") if ndjson else 0) + 1
    if values > readings_max * _VALUES_MAX:
        detail = (
            f"more than {readings_max * _VALUES_MAX} values in one request; at most {readings_max} readings are stored"
        )
        raise ProblemError(CONTENT_TOO_LARGE, detail)


def _check_count(count: int, readings_max: int) -> None:
    if count > readings_max:
        detail = f"{count} readings in one request; at most {readings_max} are stored"
        raise ProblemError(CONTENT_TOO_LARGE, detail)


def _fast(body: bytes, shape: Format, *, ndjson: bool, readings_max: int) -> Decoded:
    found: Sequence[Reading]
    if ndjson:
        found = shape.one.decode_lines(body)
    elif body.lstrip(_WHITESPACE)[:1] == b"[":
        found = shape.array.decode(body)
    else:
        found = [shape.one.decode(body)]
    _check_count(len(found), readings_max)
    decoded = Decoded()
    if shape.kind is METER:
        _sort_out_meters(found, decoded)  # type: ignore[arg-type]
    elif shape.kind is VEHICLE:
        decoded.vehicles = list(enumerate(found))  # type: ignore[arg-type]
    else:
        _sort_out(found, decoded)
    return decoded


def _sort_out_meters(found: Sequence[MeterReading], decoded: Decoded) -> None:
    decoded.meters = list(enumerate(found))
    energies = [reading.kwh_consumed_ac for reading in found]
    registers = [reading.register_kwh for reading in found]
    if None not in energies and registers.count(None) == len(registers):
        return
    pairs = enumerate(zip(energies, registers, strict=True))
    wrong = {at for at, (energy, register) in pairs if (energy is None) is (register is None)}
    if wrong:
        decoded.errors = [energy_error(at, found[at]) for at in sorted(wrong)]
        decoded.meters = [each for each in decoded.meters if each[0] not in wrong]


def _sort_out(found: Sequence[Any], decoded: Decoded) -> None:
    for index, reading in enumerate(found):
        kind = kind_of(reading)
        if kind is METER:
            if (reading.kwh_consumed_ac is None) is (reading.register_kwh is None):
                decoded.errors.append(energy_error(index, reading))
            else:
                decoded.meters.append((index, reading))
        elif kind is VEHICLE:
            decoded.vehicles.append((index, reading))
        else:
            decoded.errors.append(_incomplete(index, reading))


def keep_prefix(decoded: Decoded, prefix: str) -> None:
    """Readings of devices whose IDs do not begin so become errors: the key that sent them is not for these devices."""
    text = f"must begin with {prefix}: the key is for such devices alone"
    for index, meter in decoded.meters:
        if not meter.meter_id.startswith(prefix):
            decoded.errors.append(ItemError(index, "/meterId", "foreign_device", text))
    for index, vehicle in decoded.vehicles:
        if not vehicle.vehicle_id.startswith(prefix):
            decoded.errors.append(ItemError(index, "/vehicleId", "foreign_device", text))
    decoded.meters = [each for each in decoded.meters if each[1].meter_id.startswith(prefix)]
    decoded.vehicles = [each for each in decoded.vehicles if each[1].vehicle_id.startswith(prefix)]


def _incomplete(index: int, reading: MixedReading) -> ItemError:
    """What a mixed item lacks, or has too much of."""
    meter, vehicle = reading.meter_id is not msgspec.UNSET, reading.vehicle_id is not msgspec.UNSET
    if meter == vehicle:
        detail = "has both meterId and vehicleId" if meter else "has neither meterId nor vehicleId"
        return ItemError(index, "", "ambiguous_kind", detail)
    try:
        given = {name: value for name, value in msgspec.to_builtins(reading).items() if value is not None}
        msgspec.convert(given, MeterReading if meter else VehicleReading)
    except msgspec.ValidationError as error:
        return ItemError(index, *explain(str(error)))
    raise AssertionError  # kind_of() had found it complete


def _lines(body: bytes) -> list[bytes | object]:
    return [line for line in body.split(b"\n") if line.strip(_WHITESPACE)]


def _elements(body: bytes) -> list[bytes | object]:
    """The items of a JSON array, or the one JSON value, undecoded where possible."""
    try:
        if body.lstrip(_WHITESPACE)[:1] == b"[":
            return [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
        msgspec.json.decode(body)
    except _BROKEN as error:
        return _lenient(body, error)
    return [body]


def _lenient(body: bytes, error: Exception) -> list[bytes | object]:
    """Items of a body that is JSON but for NaN, Infinity, raw control characters or bad UTF-8.

    Python's parser lets these through, so that the answer can name the item and the field.
    """
    try:
        value = json.loads(body.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        detail = _broken_text(error) if body.strip(_WHITESPACE) else "the body is empty"
        raise ProblemError(MALFORMED_BODY, detail) from None
    return list(value) if isinstance(value, list) else [value]


def _broken_text(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8"
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    return str(error)


def _one_by_one(items: list[bytes | object], shape: Format) -> Decoded:
    decoded = Decoded()
    for index, item in enumerate(items):
        try:
            reading = _item(item, shape)
        except msgspec.ValidationError as error:
            decoded.errors.append(ItemError(index, *explain(str(error))))
        except ProblemError as error:
            decoded.errors.append(ItemError(index, "", "malformed", error.detail))
        except UnicodeError:  # half of a surrogate pair, written as an escape
            decoded.errors.append(ItemError(index, "", "malformed", "holds text that is not Unicode"))
        else:
            if isinstance(reading, ItemError):
                decoded.errors.append(msgspec.structs.replace(reading, index=index))
            elif isinstance(reading, MeterReading):
                decoded.meters.append((index, reading))
            else:
                decoded.vehicles.append((index, reading))
    return decoded


def _item(item: bytes | object, shape: Format) -> MeterReading | VehicleReading | ItemError:
    """One reading. ValidationError, or ProblemError when it is no JSON, or an ItemError for an unclear kind."""
    value = item
    if isinstance(item, bytes):
        try:
            value = msgspec.json.decode(item)
        except _BROKEN as error:
            found = _lenient(item, error)
            value = found[0] if len(found) == 1 else found
    if isinstance(value, dict):
        for name, number in value.items():
            if isinstance(number, float) and not math.isfinite(number):
                return ItemError(0, f"/{name}", "out_of_range", "must be a finite number")
        timestamp = value.get("timestamp")
        if isinstance(timestamp, str) and (leap := _LEAP_SECOND.fullmatch(timestamp)):
            value = {**value, "timestamp": _after_leap_second(leap[1] + "59" + leap[2])}
        if shape.kind is None:  # a null is a field that is not there, as in the fast pass
            value = {name: given for name, given in value.items() if given is not None}
    kind = shape.kind or _kind_of_object(value)
    if isinstance(kind, ItemError):
        return kind
    if kind is VEHICLE:
        return msgspec.convert(value, VehicleReading)
    meter = msgspec.convert(value, MeterReading)
    one_energy = (meter.kwh_consumed_ac is None) is not (meter.register_kwh is None)
    return meter if one_energy else energy_error(0, meter)


def _after_leap_second(second_before: str) -> str | datetime:
    """A leap second is stored as the second after it, as POSIX counts it: RFC 3339 allows it, PostgreSQL does too."""
    try:
        return datetime.fromisoformat(second_before.upper()) + timedelta(seconds=1)
    except (ValueError, OverflowError):
        return second_before


def _kind_of_object(value: object) -> Kind | ItemError:
    if not isinstance(value, dict):
        return ItemError(0, "", "wrong_type", "must be an object")
    if ("meterId" in value) == ("vehicleId" in value):
        detail = "has both meterId and vehicleId" if "meterId" in value else "has neither meterId nor vehicleId"
        return ItemError(0, "", "ambiguous_kind", detail)
    return METER if "meterId" in value else VEHICLE
