"""Performance of a vehicle, efficiency of the fleet, recent activity: fan-out, merge, verdict."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from router import merge
from router.answers import (
    Activity,
    ActivityItem,
    Fleet,
    FleetInterval,
    FleetTotals,
    Performance,
    json_response,
)
from router.context import Router, now, router_of
from router.devices import find_status
from router.efficiency import health, ratio
from router.fanout import Merged, Tagged, fan_out
from router.merge import Sums
from router.parameters import check_device_id, check_known, choice, interval, limit, optional_moment, window
from router.problems import NOT_FOUND, ProblemError
from shards import pairings, queries
from shards.kinds import KINDS, METER, VEHICLE, Kind
from shards.pools import Connection
from shards.queries import DeviceSums, Item, Rows, Window

_MINUTE: Final = timedelta(minutes=1)
ACTIVITY_PERIOD: Final = timedelta(hours=1)
_DeviceSums: TypeAlias = Tagged[Kind, DeviceSums]
_FleetPart: TypeAlias = Tagged[tuple[Kind, str], Rows]


def _partial_allowed(request: Request) -> bool:
    return choice(request, "partial", ("allow", "deny")) == "allow"


async def performance(request: Request) -> Response:
    """A vehicle's AC, DC and efficiency over a period."""
    router = router_of(request)
    deadline = router.query_deadline()
    vehicle_id = check_device_id(request.path_params["id"], "vehicleId")
    check_known(request, ("from", "to", "partial"))
    period, partial = window(request, now()), _partial_allowed(request)
    paired = await pairings.of_vehicle(router.cluster.catalog, vehicle_id, period, deadline)
    meters: dict[str, list[Window]] = {}
    for pairing in paired:
        meters.setdefault(pairing.meter_id, []).append(pairing.clipped(period))
    merged = await _device_sums(router, vehicle_id, meters, period, deadline, partial=partial)
    if not paired and not any(each.part.readings for each in merged.parts) and not merged.is_partial:
        await _check_known_vehicle(router, vehicle_id, deadline)
    return json_response(_performance(router, vehicle_id, period, sorted(meters), merged))


async def _check_known_vehicle(router: Router, vehicle_id: str, deadline: float) -> None:
    """404 unless the vehicle was ever heard of; only asked when a period holds nothing of it."""
    if await find_status(router, VEHICLE, vehicle_id, deadline) is not None:
        return
    if await pairings.known(router.cluster.catalog, vehicle_id, deadline):
        return
    detail = f"vehicle {vehicle_id} has never sent a reading and was never paired with a meter"
    raise ProblemError(NOT_FOUND, detail)


async def _device_sums(
    router: Router,
    vehicle_id: str,
    meters: Mapping[str, Sequence[Window]],
    period: Window,
    deadline: float,
    *,
    partial: bool,
) -> Merged[_DeviceSums]:
    shard_map = router.cluster.map
    union = pairings.union([each for windows in meters.values() for each in windows])
    devices = [(shard_map.bucket(vehicle_id), VEHICLE, vehicle_id, union)]
    devices += [(shard_map.bucket(meter), METER, meter, pairings.union(own)) for meter, own in meters.items()]

    async def ask(connection: Connection, buckets: list[int]) -> Iterable[_DeviceSums]:
        return [
            Tagged(kind, await queries.device_sums(connection, kind, bucket, device, period, windows))
            for bucket, kind, device, windows in devices
            if bucket in buckets
        ]

    return await fan_out(router.cluster, ask, deadline, buckets={bucket for bucket, *_ in devices}, partial=partial)


def _performance(
    router: Router, vehicle_id: str, period: Window, meter_ids: list[str], merged: Merged[_DeviceSums]
) -> Performance:
    vehicle = [each.part for each in merged.parts if each.tag is VEHICLE]
    meter = [each.part for each in merged.parts if each.tag is METER]
    readings = sum(part.readings for part in vehicle)
    meter_readings = sum(part.paired_readings for part in meter)
    consumed = sum(part.paired_energy for part in meter)
    paired_readings = sum(part.paired_readings for part in vehicle)
    delivered = sum(part.paired_energy for part in vehicle)
    efficiency = ratio(consumed, delivered, meter_readings, paired_readings)
    settings = router.settings
    return Performance(
        vehicle_id=vehicle_id,
        from_=period.start,
        to=period.end,
        total_energy_consumed_ac=consumed if meter_readings else None,
        total_energy_delivered_dc=sum(part.energy for part in vehicle),
        efficiency_ratio=efficiency,
        avg_battery_temp=merge.mean(sum(part.temperature for part in vehicle), readings),
        data_points=readings,
        meter_data_points=meter_readings,
        coverage=_coverage(sum(part.minutes for part in vehicle), 1, period),
        meter_ids=meter_ids,
        health_status=health(
            efficiency,
            delivered,
            meter_readings,
            readings,
            settings.efficiency_warning,
            settings.efficiency_critical,
        ),
        is_partial=merged.is_partial,
        shards=merged.shards(),
    )


def _coverage(readings: int, devices: int, period: Window) -> float:
    """Share of the expected readings (one a minute and device) that are there."""
    expected = devices * max((period.end - period.start) / _MINUTE, 1)
    return min(readings / expected, 1.0) if expected else 0.0


async def fleet(request: Request) -> Response:
    """All devices: totals, and a series when `interval` is given."""
    router = router_of(request)
    deadline = router.query_deadline()
    check_known(request, ("from", "to", "interval", "partial"))
    period, partial = window(request, now()), _partial_allowed(request)
    step = interval(request, period)
    paired = await pairings.in_window(router.cluster.catalog, period, deadline)
    windows = _paired_windows(router, paired, period)

    async def ask(connection: Connection, buckets: list[int]) -> Iterable[_FleetPart]:
        parts = []
        for kind in KINDS:
            parts.append(Tagged((kind, "sums"), await queries.fleet(connection, kind, buckets, period)))
            mine = [entry for entry in windows[kind] if entry[0] in buckets]
            if mine:
                rows = await queries.fleet_paired(connection, kind, buckets, period, mine)
                parts.append(Tagged((kind, "paired"), rows))
            if step is not None:
                rows = await queries.fleet_series(connection, kind, buckets, period, step)
                parts.append(Tagged((kind, "series"), rows))
        return parts

    merged = await fan_out(router.cluster, ask, deadline, partial=partial)
    return json_response(_fleet(router, period, step, len(paired), merged))


def _paired_windows(
    router: Router, paired: Sequence[pairings.Pairing], period: Window
) -> Mapping[Kind, list[tuple[int, str, Window]]]:
    """(bucket, device, window) of each device's pairings; a vehicle on two meters at once counts once."""
    by_device: dict[tuple[Kind, str], list[Window]] = {}
    for pairing in paired:
        clipped = pairing.clipped(period)
        by_device.setdefault((METER, pairing.meter_id), []).append(clipped)
        by_device.setdefault((VEHICLE, pairing.vehicle_id), []).append(clipped)
    entries: dict[Kind, list[tuple[int, str, Window]]] = {kind: [] for kind in KINDS}
    for (kind, device), windows in by_device.items():
        bucket = router.cluster.map.bucket(device)
        entries[kind] += [(bucket, device, window) for window in pairings.union(windows)]
    return entries


def _items(merged: Merged[_FleetPart], kind: Kind, what: str) -> list[Item]:
    return [item for each in merged.parts if each.tag == (kind, what) for item in each.part.items]


def _fleet(
    router: Router, period: Window, step: timedelta | None, pairing_count: int, merged: Merged[_FleetPart]
) -> Fleet:
    meter, vehicle = (merge.add(_items(merged, kind, "sums")) for kind in KINDS)
    paired_ac, paired_dc = (merge.add(_items(merged, kind, "paired")) for kind in KINDS)
    efficiency = _ratio(meter, vehicle)
    settings = router.settings
    series = None
    if step is not None:
        by_kind = {kind: merge.add_series(_items(merged, kind, "series")) for kind in KINDS}
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
        coverage=_coverage(vehicle.readings, vehicle.devices, period),
        health_status=health(
            efficiency,
            vehicle.energy,
            meter.readings,
            vehicle.readings,
            settings.efficiency_warning,
            settings.efficiency_critical,
        ),
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


async def activity(request: Request) -> Response:
    """The newest readings of all devices."""
    router = router_of(request)
    deadline = router.query_deadline()
    check_known(request, ("since", "limit", "partial"))
    count, partial = limit(request), _partial_allowed(request)
    since = optional_moment(request, "since") or now() - ACTIVITY_PERIOD

    async def ask(connection: Connection, buckets: list[int]) -> Iterable[Rows]:
        return [_with_kind(kind, await queries.activity(connection, kind, buckets, since, count)) for kind in KINDS]

    merged = await fan_out(router.cluster, ask, deadline, partial=partial)
    items = merge.newest([part.items for part in merged.parts], count)
    answer = Activity([ActivityItem(**item) for item in items], None, merged.is_partial, merged.shards())
    return json_response(answer)


def _with_kind(kind: Kind, rows: Rows) -> Rows:
    for item in rows.items:
        item["kind"] = kind.name
        item["device_id"] = item.pop(kind.id_column)
    return rows
