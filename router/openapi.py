"""/openapi.json, generated from the wire types, and /docs, which needs no internet."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from router import answers as wire
from router import problems
from router.parameters import LIMIT_DEFAULT, LIMIT_MAX
from router.problems import Problem
from router.readings import ID_PATTERN, MeterReading, VehicleReading

_JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{name}"
_ID_SCHEMA: Final = {"type": "string", "pattern": ID_PATTERN, "minLength": 1, "maxLength": 64}
_TIME_SCHEMA: Final = {"type": "string", "format": "date-time"}
_LIMIT_SCHEMA: Final = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}

_QUERY: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "from": (_TIME_SCHEMA, "Start, exclusive. Default: 24 h before `to`."),
    "to": (_TIME_SCHEMA, "End, inclusive. Default: now."),
    "since": (_TIME_SCHEMA, "Only readings after this. Default: one hour ago."),
    "limit": (_LIMIT_SCHEMA, "Items at most."),
    "cursor": ({"type": "string"}, "`next` of the page before."),
    "interval": ({"type": "string", "pattern": "^[1-9][0-9]{0,5}[mhd]$"}, "Adds a series: 15m, 1h, 1d, ..."),
    "partial": ({"type": "string", "enum": ["allow", "deny"]}, "allow: answer without shards that are down."),
    "strict": ({"type": "string", "enum": ["true", "false"]}, "true: store nothing if any reading is invalid."),
    "vehicleId": (_ID_SCHEMA, "Vehicle."),
    "meterId": (_ID_SCHEMA, "Meter."),
    "validFrom": (_TIME_SCHEMA, "Start of the pairing."),
}
_COMMON: Final = (problems.NOT_FOUND, problems.METHOD_NOT_ALLOWED, problems.INVALID_REQUEST, problems.NOT_READY)
_BODY: Final = (
    problems.MALFORMED_BODY,
    problems.CONTENT_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.OVERLOADED,
)


@dataclass(frozen=True)
class Operation:
    """One method of one path, as the document describes it."""

    method: str
    path: str
    name: str
    summary: str
    tag: str
    answer: Any = None
    status: int = 200
    query: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    body: tuple[Any, ...] = ()
    batch: bool = False
    media_type: str = _JSON
    also: tuple[int, ...] = ()


_PERIOD: Final = ("from", "to")
_BATCH_TEXT: Final = (
    "One reading, an array of readings, or NDJSON (Content-Type application/x-ndjson: one reading a line). "
    "Content-Encoding gzip and zstd are taken. 200 means committed; sending the same again is safe and counts "
    "as duplicates. Invalid readings are listed by index and do not stop the others."
)
OPERATIONS: Final[Sequence[Operation]] = (
    Operation(
        "post", "/v1/ingest/meter", "ingestMeter", "Store readings of meters", "ingest", wire.IngestAnswer,
        query=("strict",), body=(MeterReading,), batch=True,
    ),
    Operation(
        "post", "/v1/ingest/vehicle", "ingestVehicle", "Store readings of vehicles", "ingest", wire.IngestAnswer,
        query=("strict",), body=(VehicleReading,), batch=True,
    ),
    Operation(
        "post", "/v1/ingest", "ingestMixed", "Store readings of both kinds", "ingest", wire.IngestAnswer,
        query=("strict",), body=(MeterReading, VehicleReading), batch=True,
    ),
    Operation("get", "/v1/meters/{id}/status", "meterStatus", "Newest reading", "devices", wire.MeterStatus),
    Operation("get", "/v1/vehicles/{id}/status", "vehicleStatus", "Newest reading", "devices", wire.VehicleStatus),
    Operation(
        "get", "/v1/meters/{id}/history", "meterHistory", "Readings, newest first", "devices",
        wire.Page[wire.StoredMeterReading], query=(*_PERIOD, "limit", "cursor"),
    ),
    Operation(
        "get", "/v1/vehicles/{id}/history", "vehicleHistory", "Readings, newest first", "devices",
        wire.Page[wire.StoredVehicleReading], query=(*_PERIOD, "limit", "cursor"),
    ),
    Operation(
        "get", "/v1/analytics/performance/{id}", "performance", "AC, DC and efficiency of a vehicle", "analytics",
        wire.Performance, query=(*_PERIOD, "partial"),
    ),
    Operation(
        "get", "/v1/analytics/fleet", "fleet", "AC, DC and efficiency of all devices", "analytics", wire.Fleet,
        query=(*_PERIOD, "interval", "partial"),
    ),
    Operation(
        "get", "/v1/analytics/activity", "activity", "Newest readings of all devices", "analytics", wire.Activity,
        query=("since", "limit", "partial"),
    ),
    Operation(
        "put", "/v1/pairings", "putPairing", "Pair a meter with a vehicle, or change the end", "pairings",
        wire.PairingBody, body=(wire.PairingBody,), also=(201,),
    ),
    Operation(
        "get", "/v1/pairings", "listPairings", "Pairings by vehicle, meter, start", "pairings",
        wire.Page[wire.PairingBody], query=("vehicleId", "meterId", "limit", "cursor"),
    ),
    Operation(
        "delete", "/v1/pairings", "deletePairing", "Remove a pairing", "pairings", status=204,
        query=("vehicleId", "meterId", "validFrom"), required=("vehicleId", "meterId", "validFrom"),
    ),
    Operation("get", "/v1/shards", "shards", "Shard map, sizes and health", "operations", wire.ShardList),
    Operation(
        "get", "/v1/rebalance", "rebalance", "Moves of buckets and their progress", "operations", wire.RebalanceStatus
    ),
    Operation("get", "/livez", "livez", "Whether the process answers", "operations", wire.Live),
    Operation("get", "/readyz", "readyz", "Whether to send requests here", "operations", wire.Ready),
    Operation("get", "/metrics", "metrics", "Prometheus metrics", "operations", media_type="text/plain"),
)  # fmt: skip


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    types = [op.answer for op in OPERATIONS if op.answer] + [MeterReading, VehicleReading, wire.PairingBody]
    _, schemas = msgspec.json.schema_components([*types, wire.ProblemBody], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "voltroute",
            "version": metadata.version("voltroute"),
            "description": "Readings of smart meters and vehicles in; status and analytics out. "
            "An answer to a POST means that the readings are committed. Every error is a problem (RFC 9457).",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _schema(wire_type: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([wire_type], ref_template=_REF)
    return schema


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(operation),
    }
    parameters = [_parameter(name, "query", required=name in operation.required) for name in operation.query]
    if "{id}" in operation.path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": _ID_SCHEMA})
    if parameters:
        described["parameters"] = parameters
    if operation.batch:
        described["description"] = _BATCH_TEXT
    if operation.body:
        described["requestBody"] = {"required": True, "content": _request_content(operation)}
    return described


def _parameter(name: str, place: str, *, required: bool) -> dict[str, Any]:
    schema, text = _QUERY[name]
    return {"name": name, "in": place, "required": required, "description": text, "schema": copy.deepcopy(schema)}


def _request_content(operation: Operation) -> dict[str, Any]:
    schemas = [_schema(wire_type) for wire_type in operation.body]
    one = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if not operation.batch:
        return {_JSON: {"schema": one}}
    many = {"type": "array", "items": one, "minItems": 1}
    return {_JSON: {"schema": {"anyOf": [one, many]}}}


def _responses(operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Done"}
    if operation.answer is not None:
        success["content"] = {_JSON: {"schema": _schema(operation.answer)}}
    elif operation.media_type != _JSON:
        success["content"] = {operation.media_type: {"schema": {"type": "string"}}}
    responses = {str(status): success for status in (operation.status, *operation.also)}
    for problem in _problems(operation):
        responses[str(problem.status)] = _problem_response(problem)
    return responses


def _problems(operation: Operation) -> list[Problem]:
    found = list(_COMMON)
    if operation.body:
        found += _BODY
    if operation.path == "/v1/pairings":
        found.append(problems.CONFLICT)
    return found


def _problem_response(problem: Problem) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": f"{problem.title}. {problem.remedy}",
        "content": {problems.MEDIA_TYPE: {"schema": _schema(wire.ProblemBody)}},
    }
    if problem.status in {429, 503}:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
        }
    return response


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>voltroute API</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
<link rel="icon" href="/docs/assets/favicon-32x32.png">
</head>
<body>
<div id="ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui", validatorUrl: null});</script>
</body>
</html>
"""


async def openapi_json(request: Request) -> Response:
    """The document."""
    content = request.app.state.openapi
    return Response(content, media_type=_JSON)


async def docs(_request: Request) -> Response:
    """The document for people."""
    return HTMLResponse(_PAGE)


def encoded_document() -> bytes:
    """The document as JSON, made once when the router starts."""
    return orjson.dumps(document())
