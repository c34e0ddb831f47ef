"""/v1/meters/{id}, /v1/vehicles/{id}, /v1/defaults: what is known of devices beside what they send."""

from typing import Any, Final

import msgspec
from starlette.responses import Response

from router.http.bodies import read_object
from router.http.endpoint import Call, Endpoint, Handler
from router.reads.devices import find_status
from router.wire import devices as wire
from router.wire.answers import json_response
from router.wire.openapi import Operation
from router.wire.problems import NOT_FOUND, ProblemError
from router.wire.queries import DeviceQuery
from shards.catalog import devices
from shards.catalog.devices import ALL, DeviceSetting
from shards.kinds import METER, VEHICLE, Kind

_ANSWERS: Final[dict[Kind, Any]] = {METER: wire.Meter, VEHICLE: wire.Vehicle}


def _answer(kind: Kind, device_id: str, setting: DeviceSetting) -> msgspec.Struct:
    fields = {field.name for field in msgspec.structs.fields(_ANSWERS[kind])} - {kind.id_column}
    answer: msgspec.Struct = _ANSWERS[kind](device_id, **{name: getattr(setting, name) for name in fields})
    return answer


def _put(kind: Kind, body_type: type[msgspec.Struct]) -> Handler:
    async def handle(call: Call) -> Response:
        """201 when nothing was known of the device before, 200 otherwise; null and left out say the same."""
        router, device_id = call.router, call.query.id
        tenant = call.tenant_for(device_id)
        setting = DeviceSetting(**msgspec.structs.asdict(await read_object(call, body_type)))
        at, created = await devices.put(
            router.cluster.catalog, tenant, kind, device_id, setting, router.query_deadline()
        )
        stored = DeviceSetting(**{**vars(setting), "updated_at": at})
        return json_response(_answer(kind, device_id, stored), 201 if created else 200)

    return handle


def _get(kind: Kind) -> Handler:
    async def handle(call: Call) -> msgspec.Struct:
        """404 when nothing is known of the device, and it has never sent a reading."""
        device_id = call.query.id
        scope = call.scope_for(device_id)
        setting = await devices.get(scope.cluster.catalog, scope.tenant, kind, device_id, scope.deadline)
        if setting is None and await find_status(scope, kind, device_id) is None:
            raise ProblemError(
                NOT_FOUND, f"nothing is known of {kind.name} {device_id}, and it has never sent a reading"
            )
        return _answer(kind, device_id, setting or DeviceSetting())

    return handle


def _delete(kind: Kind) -> Handler:
    async def handle(call: Call) -> Response:
        router, tenant = call.router, call.tenant_for(call.query.id)
        if not await devices.delete(router.cluster.catalog, tenant, kind, call.query.id, router.query_deadline()):
            raise ProblemError(NOT_FOUND, f"nothing is known of {kind.name} {call.query.id}")
        return Response(status_code=204)

    return handle


def _put_defaults(kind: Kind, body_type: type[msgspec.Struct]) -> Handler:
    async def handle(call: Call) -> msgspec.Struct:
        router, tenant = call.router, call.tenant_for()
        body = await read_object(call, body_type)
        setting = DeviceSetting(**msgspec.structs.asdict(body))
        await devices.put(router.cluster.catalog, tenant, kind, ALL, setting, router.query_deadline())
        return body

    return handle


def _get_defaults(kind: Kind, body_type: type[msgspec.Struct]) -> Handler:
    async def handle(call: Call) -> msgspec.Struct:
        router, tenant = call.router, call.tenant_for()
        found = await devices.get(router.cluster.catalog, tenant, kind, ALL, router.query_deadline())
        setting = found or DeviceSetting()
        return body_type(**{name: getattr(setting, name) for name in body_type.__struct_fields__})

    return handle


def _endpoints(kind: Kind, body_type: Any, defaults_type: Any) -> list[Endpoint]:
    name, path = kind.name, f"/v1/{kind.name}s/{{id}}"
    title, every = name.capitalize(), f"/v1/defaults/{name}s"

    def operation(method: str, called: str, summary: str, **more: Any) -> Operation:
        return Operation(method, path, called, summary, "devices", query=DeviceQuery, **more)

    answer = _ANSWERS[kind]
    return [
        Endpoint(operation("get", name, f"What is known of a {name}", answer=answer), _get(kind)),
        Endpoint(
            operation("put", f"put{title}", f"Say what a {name} is", answer=answer, body=(body_type,), also=(201,)),
            _put(kind, body_type),
        ),
        Endpoint(operation("delete", f"delete{title}", f"Forget what a {name} is", status=204), _delete(kind)),
        Endpoint(
            Operation("get", every, f"{name}Defaults", f"What is expected of every {name}", "devices", defaults_type),
            _get_defaults(kind, defaults_type),
        ),
        Endpoint(
            Operation(
                "put",
                every,
                f"put{title}Defaults",
                f"Say what is expected of every {name}",
                "devices",
                defaults_type,
                body=(defaults_type,),
            ),
            _put_defaults(kind, defaults_type),
        ),
    ]


ENDPOINTS: Final = (
    *_endpoints(METER, wire.MeterBody, wire.MeterDefaults),
    *_endpoints(VEHICLE, wire.VehicleBody, wire.VehicleDefaults),
)
