"""A vehicle's AC, DC and efficiency over a period."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from router.reads import merge
from router.reads.devices import find_status
from router.reads.efficiency import coverage, health, ratio
from router.reads.fanout import Merged, Tagged, fan_out
from router.reads.scope import Scope
from router.wire.answers import Performance
from router.wire.parameters import window
from router.wire.problems import NOT_FOUND, ProblemError
from router.wire.queries import PerformanceQuery
from shards.catalog import devices, pairings
from shards.kinds import Kind
from shards.ratings import Ratings
from shards.storage import sums, tiers
from shards.storage.rows import Reader
from shards.storage.sums import DeviceSums
from shards.window import Window, union

_DeviceSums: TypeAlias = Tagged[tuple[Kind, str], DeviceSums]


async def performance(scope: Scope, query: PerformanceQuery) -> Performance:
    """ProblemError 404 when the vehicle was never heard of, 503 when a shard that is needed does not answer.

    `ratings` are those of the vehicle and then of its meters, by their kinds as they were when the request came.
    """
    period = window(query.start, query.end, scope.now)
    catalog, kinds = scope.cluster.catalog, scope.cluster.kinds
    paired = await pairings.of_vehicle(catalog, scope.tenant, query.id, period, scope.deadline)
    meters: dict[str, list[Window]] = {}
    for pairing in paired:
        meters.setdefault(pairing.meter_id, []).append(pairing.clipped(period))
    ratings = {
        each: await devices.ratings_of(catalog, scope.tenant, each, ids, scope.deadline)
        for each, ids in ((kinds.vehicle, [query.id]), (kinds.meter, sorted(meters)))
    }
    merged = await _sums(scope, query, meters, (period, ratings))
    if not paired and not any(each.part.readings for each in merged.parts) and not merged.is_partial:
        await _check_known(scope, query.id)
    return _performance(scope, query, (period, ratings), sorted(meters), merged)


async def _check_known(scope: Scope, vehicle_id: str) -> None:
    """404 unless the vehicle was ever heard of; only asked when a period holds nothing of it."""
    if await find_status(scope, scope.cluster.kinds.vehicle, vehicle_id) is not None:
        return
    if await pairings.known(scope.cluster.catalog, scope.tenant, vehicle_id, scope.deadline):
        return
    detail = f"vehicle {vehicle_id} has never sent a reading and was never paired with a meter"
    raise ProblemError(NOT_FOUND, detail)


async def _sums(
    scope: Scope,
    query: PerformanceQuery,
    meters: Mapping[str, Sequence[Window]],
    over: tuple[Window, Mapping[Kind, Ratings]],
) -> Merged[_DeviceSums]:
    shard_map, (period, ratings) = scope.cluster.map, over
    vehicle_kind, meter_kind = ratings
    together = union([each for windows in meters.values() for each in windows])
    asked = [(shard_map.bucket(scope.tenant, query.id), vehicle_kind, query.id, together)]
    asked += [(shard_map.bucket(scope.tenant, meter), meter_kind, meter, union(own)) for meter, own in meters.items()]

    async def ask(reader: Reader, buckets: list[int]) -> Iterable[_DeviceSums]:
        return [
            Tagged((kind, device), await sums.device(reader, kind, (bucket, device), period, windows, ratings[kind]))
            for bucket, kind, device, windows in asked
            if bucket in buckets
        ]

    wanted = {bucket for bucket, *_ in asked}
    return await fan_out(scope, ask, buckets=wanted, partial=query.partial == "allow")


def _performance(
    scope: Scope,
    query: PerformanceQuery,
    over: tuple[Window, Mapping[Kind, Ratings]],
    meter_ids: list[str],
    merged: Merged[_DeviceSums],
) -> Performance:
    period, ratings = over
    vehicle_kind, meter_kind = ratings
    vehicle, meter = ([each.part for each in merged.parts if each.tag[0] is kind] for kind in ratings)
    every = query.include == "suspect"
    readings = sum(part.readings for part in vehicle)
    meter_readings = sum(part.paired_readings for part in meter)
    consumed, delivered = (
        sum(part.paired_energy + every * part.paired_suspect_energy for part in parts) for parts in (meter, vehicle)
    )
    efficiency = ratio(consumed, delivered, meter_readings, sum(part.paired_readings for part in vehicle))
    per_minute = 60 / ratings[vehicle_kind].interval_s(query.id)
    return Performance(
        vehicle_id=query.id,
        from_=period.start,
        to=period.end,
        total_energy_consumed_ac=consumed if meter_readings else None,
        total_energy_delivered_dc=sum(part.energy + every * part.suspect_energy for part in vehicle)
        if readings
        else None,
        efficiency_ratio=efficiency,
        avg_battery_temp=merge.mean(
            sum(part.temperature for part in vehicle), sum(part.temperatures for part in vehicle)
        ),
        data_points=readings,
        meter_data_points=meter_readings,
        suspect=sum(part.suspect for part in vehicle) + sum(part.paired_suspect for part in meter),
        coverage=coverage(sum(part.slots for part in vehicle), per_minute, period),
        meter_ids=meter_ids,
        mixed_meter_ids=sorted(
            each.tag[1]
            for each in merged.parts
            if each.tag[0] is meter_kind and each.part.paired_registers and each.part.paired_intervals
        ),
        health_status=health(efficiency, delivered, meter_readings, readings, scope.warning, scope.critical),
        tiers=tiers.names(merge.union_of(each.part.tiers for each in merged.parts)),
        is_partial=merged.is_partial,
        shards=merged.shards(),
    )
