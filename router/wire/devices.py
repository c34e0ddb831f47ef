"""The wire types of devices: what they sent, what is known of them, and how they are paired."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from router.wire.answers import Answer
from router.wire.readings import DeviceId, Timestamp
from shards.kinds import REGISTER_MAX_KWH


class PairingBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A meter feeds a vehicle during (validFrom, validTo]; null: until further notice."""

    vehicle_id: DeviceId
    meter_id: DeviceId
    valid_from: Timestamp
    valid_to: Timestamp | None = None


IntervalS = Annotated[float, Meta(ge=1, le=86_400 * 31, description="seconds between two readings; default 60")]
PowerKw = Annotated[
    float, Meta(ge=0.001, le=1_000_000, description="largest power; more energy than it allows is suspect")
]
RegisterMax = Annotated[
    float, Meta(ge=1, le=REGISTER_MAX_KWH, description="count at which the register begins again at 0")
]
BatteryKwh = Annotated[float, Meta(ge=0.1, le=100_000, description="capacity of the battery when it was new")]
Label = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)", description="what people call it")]


class MeterDefaults(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What is expected of every meter of which nothing else is known."""

    interval_s: IntervalS | None = None
    power_max_kw: PowerKw | None = None
    register_max_kwh: RegisterMax | None = None


class VehicleDefaults(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What is expected of every vehicle of which nothing else is known."""

    interval_s: IntervalS | None = None
    power_max_kw: PowerKw | None = None


class MeterBody(MeterDefaults, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What a meter is. Null: not known, then the default holds."""

    label: Label | None = None


class VehicleBody(VehicleDefaults, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What a vehicle is. Null: not known, then the default holds."""

    battery_kwh: BatteryKwh | None = None
    label: Label | None = None


class Meter(Answer, frozen=True):
    """What is known of a meter, beside what it sends."""

    meter_id: str
    interval_s: float | None
    power_max_kw: float | None
    register_max_kwh: float | None
    label: str | None
    updated_at: datetime | None


class Vehicle(Answer, frozen=True):
    """What is known of a vehicle, beside what it sends."""

    vehicle_id: str
    interval_s: float | None
    power_max_kw: float | None
    battery_kwh: float | None
    label: str | None
    updated_at: datetime | None
