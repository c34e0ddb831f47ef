"""The typed queries of the endpoints: each gives the parameters, their refusal and their description in one place.

A field's type carries how its text is read (`Meta.extra["read"]`) and its JSON schema.
"""

from datetime import datetime, tzinfo
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from router.wire.parameters import (
    INTERVAL_PATTERN,
    LIMIT_DEFAULT,
    LIMIT_MAX,
    LINES_MAX,
    POINTS_DEFAULT,
    POINTS_MAX,
    POINTS_MIN,
    Step,
    read_choice,
    read_device,
    read_interval,
    read_limit,
    read_lines,
    read_moment,
    read_points,
    read_zone,
)
from router.wire.readings import ID_PATTERN

_ID_SCHEMA: Final = {"type": "string", "pattern": ID_PATTERN, "minLength": 1, "maxLength": 64}
_TIME_SCHEMA: Final = {"type": "string", "format": "date-time"}


def _device(description: str | None = None) -> Meta:
    return Meta(description=description, extra={"read": read_device}, extra_json_schema=_ID_SCHEMA)


def _moment(description: str) -> Meta:
    return Meta(description=description, extra={"read": read_moment}, extra_json_schema=_TIME_SCHEMA)


Device: TypeAlias = Annotated[str, _device()]
Vehicle: TypeAlias = Annotated[str, _device("Vehicle.")]
Meter: TypeAlias = Annotated[str, _device("Meter.")]
Prefix: TypeAlias = Annotated[str, _device("Only IDs that begin with this.")]
From: TypeAlias = Annotated[datetime, _moment("Start, exclusive. Default: the minute 24 h before `to`.")]
FromEver: TypeAlias = Annotated[datetime, _moment("Start, exclusive. Default: none, the newest ones however old.")]
To: TypeAlias = Annotated[datetime, _moment("End, inclusive. Default: now.")]
FromDay: TypeAlias = Annotated[datetime, _moment("A time in the first day. Default: 30 days before `to`.")]
ToDay: TypeAlias = Annotated[datetime, _moment("A time in the last day. Default: now.")]
Since: TypeAlias = Annotated[datetime, _moment("Only readings after this. Default: one hour ago.")]
Start: TypeAlias = Annotated[datetime, _moment("Start of the pairing.")]
Limit: TypeAlias = Annotated[
    int,
    Meta(
        description="Items at most.",
        extra={"read": read_limit},
        extra_json_schema={"type": "integer", "minimum": 1, "maximum": LIMIT_MAX},
    ),
]
Lines: TypeAlias = Annotated[
    int,
    Meta(
        description="Lines at most.",
        extra={"read": read_lines},
        extra_json_schema={"type": "integer", "minimum": 1, "maximum": LINES_MAX},
    ),
]
Cursor: TypeAlias = Annotated[str, Meta(description="`next` of the page before.")]
Interval: TypeAlias = Annotated[
    Step,
    Meta(
        description="Adds a series: 15m, 1h, 1d, ... from the start on, or the calendar's day, week or month.",
        extra={"read": read_interval},
        extra_json_schema={"type": "string", "pattern": INTERVAL_PATTERN},
    ),
]
Zone: TypeAlias = Annotated[
    tzinfo,
    Meta(
        description="Time zone of the series' days, weeks and months, as in Europe/Berlin. Default: UTC.",
        extra={"read": read_zone},
        extra_json_schema={"type": "string", "minLength": 1, "maxLength": 64},
    ),
]
FieldName: TypeAlias = Annotated[
    str,
    Meta(description="A field of the kind that has numbers, by its name.", extra_json_schema={"type": "string"}),
]
Filling: TypeAlias = Annotated[
    Literal["none", "null", "previous", "linear"],
    Meta(
        description="Intervals without readings: left out (none), null, the value before, or a line between.",
        extra={"read": read_choice("none", "null", "previous", "linear")},
    ),
]
PointCount: TypeAlias = Annotated[
    int,
    Meta(
        description="Points at most.",
        extra={"read": read_points},
        extra_json_schema={"type": "integer", "minimum": POINTS_MIN, "maximum": POINTS_MAX},
    ),
]
Include: TypeAlias = Annotated[
    Literal["suspect"],
    Meta(description="suspect: add up implausible energies, too.", extra={"read": read_choice("suspect")}),
]
Partial: TypeAlias = Annotated[
    Literal["allow", "deny"],
    Meta(description="allow: answer without shards that are down.", extra={"read": read_choice("allow", "deny")}),
]
Stale: TypeAlias = Annotated[
    Literal["allow", "deny"],
    Meta(
        description="allow: when a shard's primary is away, ask a replica, however far it is behind.",
        extra={"read": read_choice("allow", "deny")},
    ),
]
Strict: TypeAlias = Annotated[
    Literal["true", "false"],
    Meta(description="true: store nothing if any reading is invalid.", extra={"read": read_choice("true", "false")}),
]


class NoQuery(Struct, frozen=True):
    """Takes no parameters."""


class IngestQuery(Struct, frozen=True):
    """Parameters of an ingest request."""

    strict: Strict | None = None


class DeviceQuery(Struct, frozen=True):
    """One device, by its path."""

    id: Device


class DevicesQuery(Struct, frozen=True):
    """Devices by ID, in pages."""

    prefix: Prefix | None = None
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | None = None
    partial: Partial | None = None


class HistoryQuery(Struct, frozen=True):
    """A device's readings in (from, to], in pages."""

    id: Device
    start: FromEver | None = msgspec.field(name="from", default=None)
    end: To | None = msgspec.field(name="to", default=None)
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | None = None
    stale: Stale | None = None


class ExportQuery(Struct, frozen=True):
    """Readings in (from, to] of one device, or of all, in parts."""

    device: Device | None = None
    start: FromEver | None = msgspec.field(name="from", default=None)
    end: To | None = msgspec.field(name="to", default=None)
    limit: Lines = LINES_MAX
    cursor: Cursor | None = None
    stale: Stale | None = None


class PerformanceQuery(Struct, frozen=True):
    """A vehicle's AC, DC and efficiency over (from, to]."""

    id: Device
    start: From | None = msgspec.field(name="from", default=None)
    end: To | None = msgspec.field(name="to", default=None)
    include: Include | None = None
    partial: Partial | None = None
    stale: Stale | None = None


class FleetQuery(Struct, frozen=True):
    """All devices over (from, to]."""

    start: From | None = msgspec.field(name="from", default=None)
    end: To | None = msgspec.field(name="to", default=None)
    interval: Interval | None = None
    tz: Zone | None = None
    include: Include | None = None
    partial: Partial | None = None
    stale: Stale | None = None


class SeriesQuery(Struct, frozen=True):
    """One field of a device over (from, to], by interval."""

    id: Device
    field: FieldName
    start: From | None = msgspec.field(name="from", default=None)
    end: To | None = msgspec.field(name="to", default=None)
    interval: Interval | None = None
    tz: Zone | None = None
    fill: Filling | None = None
    stale: Stale | None = None


class PointsQuery(Struct, frozen=True):
    """One field of a device over (from, to], as points."""

    id: Device
    field: FieldName
    start: From | None = msgspec.field(name="from", default=None)
    end: To | None = msgspec.field(name="to", default=None)
    points: PointCount = POINTS_DEFAULT
    stale: Stale | None = None


class FleetSeriesQuery(Struct, frozen=True):
    """One field of all devices of a kind over (from, to], by interval."""

    field: FieldName
    start: From | None = msgspec.field(name="from", default=None)
    end: To | None = msgspec.field(name="to", default=None)
    interval: Interval | None = None
    tz: Zone | None = None
    fill: Filling | None = None
    partial: Partial | None = None
    stale: Stale | None = None


class ActivityQuery(Struct, frozen=True):
    """The newest readings of all devices."""

    since: Since | None = None
    limit: Limit = LIMIT_DEFAULT
    partial: Partial | None = None
    stale: Stale | None = None


class UsageQuery(Struct, frozen=True):
    """What is stored, by day."""

    start: FromDay | None = msgspec.field(name="from", default=None)
    end: ToDay | None = msgspec.field(name="to", default=None)
    partial: Partial | None = None
    stale: Stale | None = None


class PairingsQuery(Struct, frozen=True):
    """Pairings, optionally of one vehicle or meter, in pages."""

    vehicle_id: Vehicle | None = msgspec.field(name="vehicleId", default=None)
    meter_id: Meter | None = msgspec.field(name="meterId", default=None)
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | None = None


class PairingKey(Struct, frozen=True):
    """One pairing."""

    vehicle_id: Vehicle = msgspec.field(name="vehicleId")
    meter_id: Meter = msgspec.field(name="meterId")
    valid_from: Start = msgspec.field(name="validFrom")


class ShardQuery(Struct, frozen=True):
    """One shard, by its path."""

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]{0,30}$")]


class ProblemQuery(Struct, frozen=True):
    """One type of problem, by its path."""

    slug: str
