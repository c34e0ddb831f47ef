"""/v1/meters/{id}, /v1/vehicles/{id}, ..., /v1/defaults: what is known of devices beside what they send."""

from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.responses import Response

from router.http.bodies import read_object
from router.http.endpoint import Call, Endpoint, Handler
from router.reads.devices import find_status
from router.wire import devices as wire
from router.wire import readings
from router.wire.answers import json_response
from router.wire.openapi import Operation
from router.wire.problems import NOT_FOUND, ProblemError
from router.wire.queries import DeviceQuery
from shards.catalog import devices
from shards.catalog.devices import ALL, DeviceSetting
from shards.declaration import camel_case
from shards.kinds import Kind


def _answer(kind: Kind, device_id: str, setting: DeviceSetting) -> msgspec.Struct:
    known, values = wire.answer_type(kind), [device_id]
    values += [getattr(setting, name) for name in known.__struct_fields__[1:]]
    return known(*values)


def _put(kind: Kind, body_type: type[msgspec.Struct]) -> Handler:
    async def handle(call: Call) -> Response:
        """201 when nothing was known of the device before, 200 otherwise; null and left out say the same."""
        router, device_id = call.router, call.query.id
        tenant = call.tenant_for(device_id)
        setting = DeviceSetting(**msgspec.structs.asdict(await read_object(call, body_type)))
        at, created = await devices.put(
            router.cluster.catalog, tenant, kind, device_id, setting, router.query_deadline()
        )
        saved = DeviceSetting(**{**vars(setting), "updated_at": at})
        return json_response(_answer(kind, device_id, saved), 201 if created else 200)

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


def _endpoints(kind: Kind) -> list[Endpoint]:
    body_type, defaults_type, answer = wire.body_type(kind), wire.defaults_type(kind), wire.answer_type(kind)
    name, path = camel_case(kind.name), f"/v1/{kind.plural}/{{id}}"
    title, every = readings.title(kind), f"/v1/defaults/{kind.plural}"

    def operation(method: str, called: str, summary: str, **more: Any) -> Operation:
        return Operation(method, path, called, summary, "devices", query=DeviceQuery, **more)

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


def endpoints(kinds: Iterable[Kind]) -> list[Endpoint]:
    """Those of all kinds."""
    return [endpoint for kind in kinds for endpoint in _endpoints(kind)]
