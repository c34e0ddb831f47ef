"""/v1/meters and /v1/vehicles: status and history of one device."""

from typing import Final

import msgspec

from router.http.endpoint import Call, Endpoint, Handler
from router.reads import devices
from router.wire.answers import DeviceList, Page
from router.wire.openapi import Operation
from router.wire.queries import DeviceQuery, DevicesQuery, HistoryQuery
from router.wire.stored import history_type, status_type
from shards.kinds import KINDS, Kind


def _status(kind: Kind) -> Handler:
    async def handle(call: Call) -> msgspec.Struct:
        return await devices.status(call.scope_for(call.query.id), kind, call.query.id)

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
    base, name = f"/v1/{kind.name}s/{{id}}", kind.name
    status_of, reading_of = status_type(kind), history_type(kind)
    all_ = Operation(
        "get",
        f"/v1/{name}s",
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
        Page[reading_of],  # type: ignore[valid-type]
        query=HistoryQuery,
    )
    return [Endpoint(all_, _devices(kind)), Endpoint(status, _status(kind)), Endpoint(history, _history(kind))]


ENDPOINTS: Final = tuple(endpoint for kind in KINDS for endpoint in _endpoints(kind))
