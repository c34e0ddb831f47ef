"""One device: its current status and its history, from the shard that owns it."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from router.answers import (
    MeterStatus,
    Page,
    StoredMeterReading,
    StoredVehicleReading,
    VehicleStatus,
    json_response,
)
from router.context import Router, now, router_of
from router.fanout import fan_out
from router.parameters import (
    check_device_id,
    check_known,
    decode_cursor,
    encode_cursor,
    limit,
    moment,
    window,
)
from router.problems import NOT_FOUND, ProblemError
from shards import queries
from shards.kinds import METER, VEHICLE, Kind
from shards.pools import Connection
from shards.queries import Item, Rows, Window

RESOLUTION: Final = timedelta(microseconds=1)  # of PostgreSQL's timestamps


async def meter_status(request: Request) -> Response:
    """Current status of a meter."""
    return json_response(MeterStatus(**await _status(request, METER)))


async def vehicle_status(request: Request) -> Response:
    """Current status of a vehicle."""
    return json_response(VehicleStatus(**await _status(request, VEHICLE)))


async def meter_history(request: Request) -> Response:
    """Readings of a meter, newest first."""
    return json_response(await _history(request, METER, StoredMeterReading))


async def vehicle_history(request: Request) -> Response:
    """Readings of a vehicle, newest first."""
    return json_response(await _history(request, VEHICLE, StoredVehicleReading))


async def _status(request: Request, kind: Kind) -> Item:
    router = router_of(request)
    device_id = check_device_id(request.path_params["id"], "id")
    check_known(request, ())
    item = await find_status(router, kind, device_id, router.query_deadline())
    if item is None:
        detail = f"no {kind.name} {device_id} has ever sent a reading"
        raise ProblemError(NOT_FOUND, detail)
    return {name: value for name, value in item.items() if name not in {"bucket", "tenant_id"}}


async def find_status(router: Router, kind: Kind, device_id: str, deadline: float) -> Item | None:
    """The status row of a device, None when it is unknown. ProblemError 503 when its shard does not answer."""
    bucket = router.cluster.map.bucket(device_id)

    async def ask(connection: Connection, _buckets: list[int]) -> Iterable[Rows]:
        return [await queries.status(connection, kind, bucket, device_id)]

    merged = await fan_out(router.cluster, ask, deadline, buckets=[bucket])
    items = [item for part in merged.parts for item in part.items]
    return items[0] if items else None


async def _history(request: Request, kind: Kind, wire_type: type[Any]) -> Page[Any]:
    router = router_of(request)
    device_id = check_device_id(request.path_params["id"], "id")
    check_known(request, ("from", "to", "limit", "cursor"))
    period, count = window(request, now()), limit(request)
    cursor = decode_cursor(request, 1)
    if cursor is not None:
        # The cursor is the last timestamp of the page before: what follows is strictly older.
        period = Window(period.start, min(period.end, moment(cursor[0], "cursor") - RESOLUTION))
    bucket = router.cluster.map.bucket(device_id)

    async def ask(connection: Connection, _buckets: list[int]) -> Iterable[Rows]:
        return [await queries.history(connection, kind, bucket, device_id, period, count + 1)]

    merged = await fan_out(router.cluster, ask, router.query_deadline(), buckets=[bucket])
    items = [item for part in merged.parts for item in part.items]
    page, rest = items[:count], items[count:]
    following = encode_cursor(page[-1]["timestamp"].isoformat()) if rest else None
    return Page([wire_type(**item) for item in page], following)
