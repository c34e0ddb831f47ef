"""All devices over a period: totals, and a series."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeAlias

from router.reads import calendar, merge
from router.reads.efficiency import coverage, health, ratio
from router.reads.fanout import Merged, Tagged, fan_out
from router.reads.merge import Sums
from router.reads.scope import Scope
from router.wire.answers import Fleet, FleetInterval, FleetTotals
from router.wire.parameters import window
from router.wire.queries import FleetQuery
from shards.buckets import BucketRange
from shards.catalog import devices, pairings
from shards.catalog.pairings import Pairing
from shards.kinds import Kind, Kinds, Side
from shards.ratings import Ratings
from shards.storage import registers, sums, tiers
from shards.storage.rows import Reader, Record, Rows
from shards.window import Window, union

PAIRED_AT_ONCE: Final = 2_000  # windows in a statement: encoding more would hold up other requests
_Part: TypeAlias = Tagged[tuple[Kind, str], Rows]
_Entry: TypeAlias = tuple[int, str, Window]
_Windows: TypeAlias = Mapping[Kind, Mapping[int, Sequence[_Entry]]]


@dataclass(frozen=True)
class _Asked:
    """What all shards are asked for. `bounds` of the series' intervals, None without one."""

    period: Window
    bounds: list[datetime] | None
    kinds: Kinds
    ratings: Mapping[Kind, Ratings]
    windows: _Windows
    pairing_count: int
    all_energy: bool


async def fleet(scope: Scope, query: FleetQuery) -> Fleet:
    """ProblemError 503 when a shard does not answer, unless `partial` allows that."""
    period = window(query.start, query.end, scope.now)
    bounds = None if query.interval is None else calendar.bounds(period, query.interval, query.tz)
    catalog, kinds = scope.cluster.catalog, scope.cluster.kinds
    counted = (*kinds.on(Side.AC), *kinds.on(Side.DC))
    ratings = {kind: await devices.ratings(catalog, scope.tenant, kind, scope.deadline) for kind in counted}
    paired = await pairings.in_window(catalog, scope.tenant, period, scope.deadline)
    buckets_of_tenant = scope.cluster.map.range_of(scope.tenant)
    if len(paired) > PAIRED_AT_ONCE:
        windows = await asyncio.to_thread(paired_windows, kinds, buckets_of_tenant, paired, period)
    else:
        windows = paired_windows(kinds, buckets_of_tenant, paired, period)
    asked = _Asked(period, bounds, kinds, ratings, windows, len(paired), query.include == "suspect")

    async def ask(reader: Reader, buckets: list[int]) -> Iterable[_Part]:
        return [part for kind in ratings for part in await _of_kind(reader, kind, buckets, asked)]

    merged = await fan_out(scope, ask, partial=query.partial == "allow")
    return _fleet(scope, asked, merged)


async def _of_kind(reader: Reader, kind: Kind, buckets: list[int], asked: _Asked) -> list[_Part]:
    """All sums of one kind on one shard; those of registers only where there are any in the period."""
    period, ratings = asked.period, asked.ratings[kind]
    found = await sums.fleet(reader, kind, buckets, period, ratings)
    parts = [Tagged((kind, "sums"), rows) for rows in found.rows]
    windows = asked.windows.get(kind, {})
    mine = [entry for bucket in buckets for entry in windows.get(bucket, ())]
    for start in range(0, len(mine), PAIRED_AT_ONCE):
        some = mine[start : start + PAIRED_AT_ONCE]
        rows = await sums.paired(reader, kind, buckets, period, some, ratings, from_rollups=found.rolled)
        parts.append(Tagged((kind, "paired"), rows))
        if found.has_registers:
            rows = await registers.paired(reader, kind, buckets, period, some, ratings, from_rollups=found.rolled)
            parts.append(Tagged((kind, "paired"), rows))
    if (bounds := asked.bounds) is not None:
        rows = await sums.series(reader, kind, buckets, bounds, ratings, from_rollups=found.rolled)
        parts.append(Tagged((kind, "series"), rows))
        if found.has_registers:
            rows = await registers.series(reader, kind, buckets, bounds, ratings, from_rollups=found.rolled)
            parts.append(Tagged((kind, "series"), rows))
    return parts


def paired_windows(kinds: Kinds, buckets: BucketRange, paired: Sequence[Pairing], period: Window) -> _Windows:
    """Kind -> bucket -> (bucket, device, window) of each device's pairings; a vehicle on two meters counts once."""
    by_device: dict[tuple[Kind, str], list[Window]] = {}
    for pairing in paired:
        clipped = pairing.clipped(period)
        by_device.setdefault((kinds.meter, pairing.meter_id), []).append(clipped)
        by_device.setdefault((kinds.vehicle, pairing.vehicle_id), []).append(clipped)
    entries: dict[Kind, dict[int, list[_Entry]]] = {kinds.meter: {}, kinds.vehicle: {}}
    for (kind, device), windows in by_device.items():
        bucket = buckets.bucket(device)
        mine = entries[kind].setdefault(bucket, [])
        mine += [(bucket, device, window) for window in union(windows)]
    return entries


def _rows(merged: Merged[_Part], kind: Kind, what: str) -> list[Record]:
    return [row for each in merged.parts if each.tag == (kind, what) for row in each.part.rows]


def _fleet(scope: Scope, asked: _Asked, merged: Merged[_Part]) -> Fleet:
    def add(side: Side, what: str) -> Sums:
        every = asked.all_energy
        parts = (
            merge.add(_rows(merged, kind, what), asked.ratings[kind], all_energy=every) for kind in asked.kinds.on(side)
        )
        return merge.together(parts)

    meter, vehicle = (add(side, "sums") for side in Side)
    paired_ac, paired_dc = (add(side, "paired") for side in Side)
    efficiency = _ratio(meter, vehicle)
    verdict = health(efficiency, vehicle.energy, meter.readings, vehicle.readings, scope.warning, scope.critical)
    return Fleet(
        from_=asked.period.start,
        to=asked.period.end,
        meters=meter.devices,
        vehicles=vehicle.devices,
        total_energy_consumed_ac=meter.energy if meter.readings else None,
        total_energy_delivered_dc=vehicle.energy if vehicle.readings else None,
        efficiency_ratio=efficiency,
        avg_battery_temp=merge.mean(vehicle.temperature, vehicle.temperatures),
        data_points=vehicle.readings,
        meter_data_points=meter.readings,
        suspect=meter.suspect + vehicle.suspect,
        mixed_meters=meter.mixed,
        coverage=coverage(vehicle.readings, vehicle.per_minute, asked.period),
        health_status=verdict,
        paired=FleetTotals(
            asked.pairing_count,
            paired_ac.energy if paired_ac.readings else None,
            paired_dc.energy if paired_dc.readings else None,
            _ratio(paired_ac, paired_dc),
        ),
        series=None if asked.bounds is None else _series(asked.bounds, asked, merged),
        tiers=tiers.names(meter.tiers | vehicle.tiers),
        is_partial=merged.is_partial,
        shards=merged.shards(),
    )


def _ratio(meter: Sums, vehicle: Sums) -> float | None:
    return ratio(meter.energy, vehicle.energy, meter.readings, vehicle.readings)


def _series(bounds: list[datetime], asked: _Asked, merged: Merged[_Part]) -> list[FleetInterval]:
    """Every interval of the period, also those without readings."""
    by_kind = {
        kind: merge.add_series(_rows(merged, kind, "series"), ratings, all_energy=asked.all_energy)
        for kind, ratings in asked.ratings.items()
    }
    series = []
    for at, (start, end) in enumerate(pairwise(bounds), 1):
        meter, vehicle = (
            merge.together(by_kind[kind].get(at, Sums()) for kind in asked.kinds.on(side)) for side in Side
        )
        series.append(
            FleetInterval(
                from_=start,
                to=end,
                total_energy_consumed_ac=meter.energy if meter.readings else None,
                total_energy_delivered_dc=vehicle.energy if vehicle.readings else None,
                efficiency_ratio=_ratio(meter, vehicle),
                avg_battery_temp=merge.mean(vehicle.temperature, vehicle.temperatures),
                data_points=vehicle.readings,
                meter_data_points=meter.readings,
                suspect=meter.suspect + vehicle.suspect,
            )
        )
    return series
