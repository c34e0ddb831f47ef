"""Charts of one field: of a device by interval, or as points; of all devices of a kind by interval."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from router.reads import calendar
from router.reads.charting import Fill, Values, downsampled, filled, merged, percentile
from router.reads.devices import find_status, unknown
from router.reads.fanout import Merged, fan_out
from router.reads.merge import union_of
from router.reads.scope import Scope
from router.wire.charts import ChartPoints, FleetSeries, FleetSeriesInterval, Point, Series, SeriesInterval
from router.wire.parameters import Step, window
from router.wire.problems import invalid
from router.wire.queries import FleetSeriesQuery, PointsQuery, SeriesQuery
from shards.kinds import Field, Kind, Type
from shards.storage import charts, tiers
from shards.storage.charts import PERCENTILES
from shards.storage.rows import Reader, Record, Rows

HOURS: Final = Step(1, "h")


def _field(kind: Kind, name: str) -> Field:
    """422 for what is no field of the kind, or has no numbers."""
    numbers = [each for each in kind.stored if each.type is not Type.TEXT]
    for each in numbers:
        if each.name == name:
            return each
    listed = ", ".join(each.name for each in numbers)
    raise invalid("field", f"a {kind} has no numbers of that name; it has {listed}", "unknown_field")


async def series(scope: Scope, kind: Kind, query: SeriesQuery) -> Series:
    """A device by interval; 404 when it is unknown, 503 when its shard does not answer, 409 for archived time."""
    field = _field(kind, query.field)
    period = window(query.start, query.end, scope.now)
    bounds = calendar.bounds(period, query.interval or HOURS, query.tz)
    place = (scope.cluster.map.bucket(scope.tenant, query.id), query.id)

    async def ask(reader: Reader, _buckets: list[int]) -> Iterable[Rows]:
        return [await charts.device(reader, kind, field, place, bounds)]

    rows = _rows(await fan_out(scope, ask, buckets=[place[0]]))
    await _check_known(scope, kind, query.id, rows)
    found = {
        row["bin"]: Values(
            row["readings"],
            row["lowest"],
            row["highest"],
            row["mean"],
            row["weighted"],
            row["last"],
            percentiles=tuple(row["percentiles"]),
        )
        for row in rows
    }
    every = filled(found, len(bounds) - 1, Fill(query.fill or Fill.NONE))
    items = [_interval(bounds, at, values) for at, values in sorted(every.items())]
    return Series(query.id, field.name, field.unit, period.start, period.end, items, _tiers(rows))


def _interval(bounds: Sequence[datetime], at: int, values: Values) -> SeriesInterval:
    return SeriesInterval(
        bounds[at - 1],
        bounds[at],
        values.readings,
        values.lowest,
        values.highest,
        values.mean,
        values.weighted,
        values.last,
        *values.percentiles,
    )


async def points(scope: Scope, kind: Kind, query: PointsQuery) -> ChartPoints:
    """A device as points that show its shape; 404, 503 and 409 as above."""
    field = _field(kind, query.field)
    period = window(query.start, query.end, scope.now)
    place = (scope.cluster.map.bucket(scope.tenant, query.id), query.id)

    async def ask(reader: Reader, _buckets: list[int]) -> Iterable[Rows]:
        return [await charts.points(reader, kind, field, place, period, query.points)]

    rows = _rows(await fan_out(scope, ask, buckets=[place[0]]))
    row = rows[0]
    await _check_known(scope, kind, query.id, [row] if row["readings"] else [])
    times, values = row["times"] or (), row["values"] or ()
    chosen = downsampled(times, values, query.points)
    shown = [Point(datetime.fromtimestamp(times[at], UTC), values[at]) for at in chosen]
    return ChartPoints(
        query.id, field.name, field.unit, period.start, period.end, row["readings"], shown, tiers.names(row["tiers"])
    )


async def fleet(scope: Scope, kind: Kind, query: FleetSeriesQuery) -> FleetSeries:
    """All devices of a kind by interval; 503 when a shard does not answer, unless `partial` allows that."""
    field = _field(kind, query.field)
    period = window(query.start, query.end, scope.now)
    bounds = calendar.bounds(period, query.interval or HOURS, query.tz)

    async def ask(reader: Reader, buckets: list[int]) -> Iterable[Rows]:
        return [await charts.fleet(reader, kind, field, buckets, bounds)]

    answers = await fan_out(scope, ask, partial=query.partial == "allow")
    rows = _rows(answers)
    by_interval: dict[int, list[Record]] = {}
    for row in rows:
        by_interval.setdefault(row["bin"], []).append(row)
    found = {at: _together(parts) for at, parts in by_interval.items()}
    every = filled(found, len(bounds) - 1, Fill(query.fill or Fill.NONE))
    items = [_fleet_interval(bounds, at, values) for at, values in sorted(every.items())]
    names = (kind.name, field.name, field.unit, period.start, period.end)
    return FleetSeries(*names, items, _tiers(rows), answers.is_partial, answers.shards())


def _together(parts: Sequence[Record]) -> Values:
    """What shards say of one interval."""
    readings, total = sum(row["readings"] for row in parts), sum(row["total"] for row in parts)
    sketch = merged((row["keys"], row["counts"]) for row in parts)
    lowest, highest = min(row["lowest"] for row in parts), max(row["highest"] for row in parts)
    shares = (min(max(percentile(sketch, share), lowest), highest) for share in PERCENTILES)
    return Values(readings, lowest, highest, total / readings, total=total, percentiles=tuple(shares))


def _fleet_interval(bounds: Sequence[datetime], at: int, values: Values) -> FleetSeriesInterval:
    return FleetSeriesInterval(
        bounds[at - 1],
        bounds[at],
        values.readings,
        values.total,
        values.lowest,
        values.highest,
        values.mean,
        *values.percentiles,
    )


def _rows(answers: Merged[Rows]) -> list[Record]:
    return [row for part in answers.parts for row in part.rows]


def _tiers(rows: Iterable[Record]) -> list[Any]:
    return tiers.names(union_of(row["tiers"] for row in rows))


async def _check_known(scope: Scope, kind: Kind, device_id: str, rows: Sequence[Record]) -> None:
    """404 for a device that has nothing there because there is none."""
    if not rows and await find_status(scope, kind, device_id) is None:
        raise unknown(kind, device_id)
