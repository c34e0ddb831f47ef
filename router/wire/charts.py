"""The answers of charts."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from router.wire.answers import Answer, Count, Dated, Shards, Tiers

Unit = Annotated[str, Meta(description="of the field, as it was declared; empty: none")]


class SeriesInterval(Answer, frozen=True):
    """One interval (from, to] of a device's series; null without readings, or as `fill` says."""

    from_: datetime = msgspec.field(name="from")
    to: datetime
    readings: Count
    min: float | None
    max: float | None
    mean: float | None
    time_weighted_mean: Annotated[
        float | None, Meta(description="each value weighs as long as it held: until the device's next one")
    ]
    last: float | None
    p50: float | None
    p90: float | None
    p99: float | None


class Series(Dated, frozen=True):
    """One field of a device over (from, to], by interval."""

    device_id: str
    field: str
    unit: Unit
    from_: datetime = msgspec.field(name="from")
    to: datetime
    items: list[SeriesInterval]
    tiers: Tiers


class Point(Answer, frozen=True):
    """A reading's value."""

    timestamp: datetime
    value: float


class ChartPoints(Dated, frozen=True):
    """One field of a device over (from, to]: of its `readings`, those points that show the shape of them all."""

    device_id: str
    field: str
    unit: Unit
    from_: datetime = msgspec.field(name="from")
    to: datetime
    readings: Count
    points: list[Point]
    tiers: Tiers


class FleetSeriesInterval(Answer, frozen=True):
    """One interval (from, to] over all devices; percentiles are within 1 % of a value that was there."""

    from_: datetime = msgspec.field(name="from")
    to: datetime
    readings: Count
    sum: float | None
    min: float | None
    max: float | None
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


class FleetSeries(Dated, frozen=True):
    """One field of all devices of a kind over (from, to], by interval."""

    kind: str
    field: str
    unit: Unit
    from_: datetime = msgspec.field(name="from")
    to: datetime
    items: list[FleetSeriesInterval]
    tiers: Tiers
    is_partial: bool
    shards: Shards
