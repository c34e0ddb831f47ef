"""/v1/meters, /v1/vehicles, and so on for every kind: devices, status and history of one."""

from collections.abc import Iterable

import msgspec
from starlette.responses import Response

from router.http.endpoint import Call, Endpoint, Handler
from router.reads import charts, devices
from router.wire.answers import DeviceList, HistoryPage, encoded_response
from router.wire.charts import ChartPoints, FleetSeries, Series
from router.wire.openapi import Operation
from router.wire.queries import DeviceQuery, DevicesQuery, FleetSeriesQuery, HistoryQuery, PointsQuery, SeriesQuery
from router.wire.stored import history_type, status_type
from shards.declaration import camel_case
from shards.kinds import Kind


def _status(kind: Kind) -> Handler:
    async def handle(call: Call) -> msgspec.Struct | Response:
        scope, statuses = call.scope_for(call.query.id), call.router.statuses
        if statuses is None:
            return await devices.status(scope, kind, call.query.id)
        return encoded_response(await devices.status_kept(scope, statuses, kind, call.query.id))

    return handle


def _history(kind: Kind) -> Handler:
    async def handle(call: Call) -> msgspec.Struct:
        return await devices.history(call.scope_for(call.query.id), kind, call.query)

    return handle


def _devices(kind: Kind) -> Handler:
    async def handle(call: Call) -> msgspec.Struct:
        return await devices.devices(call.scope_for(call.query.prefix or ""), kind, call.query)

    return handle


def _endpoints(kind: Kind) -> list[Endpoint]:
    base, name = f"/v1/{kind.plural}/{{id}}", camel_case(kind.name)
    status_of, reading_of = status_type(kind), history_type(kind)
    all_ = Operation(
        "get",
        f"/v1/{kind.plural}",
        f"{name}s",
        "Devices by ID, with their newest readings",
        "devices",
        DeviceList[status_of],  # type: ignore[valid-type]
        query=DevicesQuery,
    )
    status = Operation(
        "get", f"{base}/status", f"{name}Status", "Newest reading", "devices", status_of, query=DeviceQuery
    )
    history = Operation(
        "get",
        f"{base}/history",
        f"{name}History",
        "Readings, newest first",
        "devices",
        HistoryPage[reading_of],  # type: ignore[valid-type]
        query=HistoryQuery,
    )
    return [
        Endpoint(all_, _devices(kind)),
        Endpoint(status, _status(kind)),
        Endpoint(history, _history(kind)),
        *_charts(kind),
    ]


def _charts(kind: Kind) -> list[Endpoint]:
    base, name = f"/v1/{kind.plural}/{{id}}", camel_case(kind.name)

    async def series(call: Call) -> msgspec.Struct:
        return await charts.series(call.scope_for(call.query.id), kind, call.query)

    async def points(call: Call) -> msgspec.Struct:
        return await charts.points(call.scope_for(call.query.id), kind, call.query)

    async def fleet(call: Call) -> msgspec.Struct:
        return await charts.fleet(call.scope_for(), kind, call.query)

    told = (
        (f"{base}/series", f"{name}Series", "One field by interval", Series, SeriesQuery, series),
        (f"{base}/points", f"{name}Points", "One field as points for a chart", ChartPoints, PointsQuery, points),
        (f"/v1/{kind.plural}/series", f"{name}sSeries", "One field of all of them by interval", FleetSeries,
         FleetSeriesQuery, fleet),
    )  # fmt: skip
    return [
        Endpoint(Operation("get", path, name, what, "charts", answer, query=query), handler)
        for path, name, what, answer, query, handler in told
    ]


def endpoints(kinds: Iterable[Kind]) -> list[Endpoint]:
    """Those of all kinds."""
    return [endpoint for kind in kinds for endpoint in _endpoints(kind)]
