"""All devices over a period: totals, and a series."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from router.reads import merge
from router.reads.efficiency import coverage, health, ratio
from router.reads.fanout import Merged, Tagged, fan_out
from router.reads.merge import Sums
from router.reads.scope import Scope
from router.wire.answers import Fleet, FleetInterval, FleetTotals
from router.wire.parameters import check_interval, window
from router.wire.queries import FleetQuery
from shards.catalog import pairings
from shards.catalog.pairings import Pairing
from shards.catalog.shard_map import ShardMap
from shards.kinds import KINDS, METER, VEHICLE, Kind
from shards.postgres.pools import Connection
from shards.storage import read
from shards.storage.read import Record, Rows
from shards.window import Window, union

PAIRED_AT_ONCE: Final = 2_000  # windows in a statement: encoding more would hold up other requests
_Part: TypeAlias = Tagged[tuple[Kind, str], Rows]
_Entry: TypeAlias = tuple[int, str, Window]
_Windows: TypeAlias = Mapping[Kind, Mapping[int, Sequence[_Entry]]]


async def fleet(scope: Scope, query: FleetQuery) -> Fleet:
    """ProblemError 503 when a shard does not answer, unless `partial` allows that."""
    period = window(query.start, query.end, scope.now)
    check_interval(query.interval, period)
    paired = await pairings.in_window(scope.cluster.catalog, period, scope.deadline)
    if len(paired) > PAIRED_AT_ONCE:
        windows = await asyncio.to_thread(paired_windows, scope.cluster.map, paired, period)
    else:
        windows = paired_windows(scope.cluster.map, paired, period)

    async def ask(connection: Connection, buckets: list[int]) -> Iterable[_Part]:
        parts = []
        for kind in KINDS:
            parts.append(Tagged((kind, "sums"), await read.fleet(connection, kind, buckets, period)))
            mine = [entry for bucket in buckets for entry in windows[kind].get(bucket, ())]
            for start in range(0, len(mine), PAIRED_AT_ONCE):
                some = mine[start : start + PAIRED_AT_ONCE]
                rows = await read.fleet_paired(connection, kind, buckets, period, some)
                parts.append(Tagged((kind, "paired"), rows))
            if query.interval is not None:
                rows = await read.fleet_series(connection, kind, buckets, period, query.interval)
                parts.append(Tagged((kind, "series"), rows))
        return parts

    merged = await fan_out(scope.cluster, ask, scope.deadline, partial=query.partial == "allow")
    return _fleet(scope, period, query.interval, len(paired), merged)


def paired_windows(shard_map: ShardMap, paired: Sequence[Pairing], period: Window) -> _Windows:
    """Kind -> bucket -> (bucket, device, window) of each device's pairings; a vehicle on two meters counts once."""
    by_device: dict[tuple[Kind, str], list[Window]] = {}
    for pairing in paired:
        clipped = pairing.clipped(period)
        by_device.setdefault((METER, pairing.meter_id), []).append(clipped)
        by_device.setdefault((VEHICLE, pairing.vehicle_id), []).append(clipped)
    entries: dict[Kind, dict[int, list[_Entry]]] = {kind: {} for kind in KINDS}
    for (kind, device), windows in by_device.items():
        bucket = shard_map.bucket(device)
        mine = entries[kind].setdefault(bucket, [])
        mine += [(bucket, device, window) for window in union(windows)]
    return entries


def _rows(merged: Merged[_Part], kind: Kind, what: str) -> list[Record]:
    return [row for each in merged.parts if each.tag == (kind, what) for row in each.part.rows]


def _fleet(scope: Scope, period: Window, step: timedelta | None, pairing_count: int, merged: Merged[_Part]) -> Fleet:
    meter, vehicle = (merge.add(_rows(merged, kind, "sums")) for kind in KINDS)
    paired_ac, paired_dc = (merge.add(_rows(merged, kind, "paired")) for kind in KINDS)
    efficiency = _ratio(meter, vehicle)
    verdict = health(efficiency, vehicle.energy, meter.readings, vehicle.readings, scope.warning, scope.critical)
    series = None
    if step is not None:
        by_kind = {kind: merge.add_series(_rows(merged, kind, "series")) for kind in KINDS}
        series = _series(by_kind, period, step)
    return Fleet(
        from_=period.start,
        to=period.end,
        meters=meter.devices,
        vehicles=vehicle.devices,
        total_energy_consumed_ac=meter.energy if meter.readings else None,
        total_energy_delivered_dc=vehicle.energy,
        efficiency_ratio=efficiency,
        avg_battery_temp=merge.mean(vehicle.temperature, vehicle.readings),
        data_points=vehicle.readings,
        meter_data_points=meter.readings,
        coverage=coverage(vehicle.readings, vehicle.devices, period),
        health_status=verdict,
        paired=FleetTotals(pairing_count, paired_ac.energy, paired_dc.energy, _ratio(paired_ac, paired_dc)),
        series=series,
        is_partial=merged.is_partial,
        shards=merged.shards(),
    )


def _ratio(meter: Sums, vehicle: Sums) -> float | None:
    return ratio(meter.energy, vehicle.energy, meter.readings, vehicle.readings)


def _series(by_kind: Mapping[Kind, Mapping[datetime, Sums]], period: Window, step: timedelta) -> list[FleetInterval]:
    """Every interval of the period, also those without readings."""
    series = []
    start = period.start
    while start < period.end:
        end = min(start + step, period.end) if period.end - start > step else period.end
        meter = by_kind[METER].get(start, Sums())
        vehicle = by_kind[VEHICLE].get(start, Sums())
        series.append(
            FleetInterval(
                from_=start,
                to=end,
                total_energy_consumed_ac=meter.energy if meter.readings else None,
                total_energy_delivered_dc=vehicle.energy,
                efficiency_ratio=_ratio(meter, vehicle),
                avg_battery_temp=merge.mean(vehicle.temperature, vehicle.readings),
                data_points=vehicle.readings,
                meter_data_points=meter.readings,
            )
        )
        start = end
    return series
