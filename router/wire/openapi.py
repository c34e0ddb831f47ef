"""/openapi.json, generated from the wire types, and /docs, which needs no internet."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Final

import msgspec
import orjson
from msgspec.structs import FieldInfo

from router.wire import answers as wire
from router.wire import problems
from router.wire.parameters import metas
from router.wire.problems import Problem
from router.wire.queries import NoQuery
from shards.kinds import METER, VEHICLE, Field, Kind, Type

NO_KEY: Final = ""
_JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{name}"
_COMMON: Final = (problems.NOT_FOUND, problems.METHOD_NOT_ALLOWED, problems.INVALID_REQUEST, problems.NOT_READY)
_BODY: Final = (
    problems.MALFORMED_BODY,
    problems.CONTENT_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.TOO_SLOW,
    problems.OVERLOADED,
)


_ENCODING: Final = {
    "name": "Content-Encoding",
    "in": "header",
    "required": False,
    "description": "How the body is compressed.",
    "schema": {"type": "string", "enum": ["gzip", "zstd", "identity"]},
}
_KEY: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `voltroute key create`, vr_...; a cluster that has never had one asks for none.",
}
_AT: Final = "2026-05-01T12:00:00Z"
_EXAMPLES: Final[dict[Kind, dict[str, Any]]] = {
    METER: {"meterId": "METER-1", "kwhConsumedAc": 0.25, "voltage": 230.1, "timestamp": _AT},
    VEHICLE: {
        "vehicleId": "EV-1",
        "soc": 64,
        "kwhDeliveredDc": 0.22,
        "batteryTemp": 24.5,
        "timestamp": _AT,
    },
}


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
    query: type[msgspec.Struct] = NoQuery
    body: tuple[Any, ...] = ()
    examples: tuple[dict[str, Any], ...] = ()  # one of each type of `body`
    batch: str = ""  # what a batch may be: then the body may also be an array of them
    media_type: str = _JSON
    also: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()
    right: str | None = None  # the scope that a key needs; NO_KEY: the path is open to everybody

    @property
    def needs(self) -> str:
        """The scope that a key needs: to read, or to write, unless something else is said."""
        if self.right is not None:
            return self.right
        return "read" if self.method == "get" else "ingest"


def example(kind: Kind) -> dict[str, Any]:
    """A reading as it could be sent."""
    if kind in _EXAMPLES:
        return _EXAMPLES[kind]
    values = {field.name: _likely(field) for field in kind.fields}
    return {kind.id_name: f"{kind.name.upper()}-1", **values, "timestamp": _AT}


def _likely(field: Field) -> float | str:
    """A value that a field may have."""
    if field.type is Type.TEXT:
        return field.choices[0]
    if field.type is Type.BOOL:
        return True
    lowest, highest = field.minimum or 0.0, field.maximum
    value = lowest + 1 if highest is None else (lowest + highest) / 2
    return int(value) if field.type is Type.INT else value


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of some operations."""
    types = [op.answer for op in operations if op.answer] + [each for op in operations for each in op.body]
    _, schemas = msgspec.json.schema_components([*types, wire.ProblemBody], ref_template=_REF)
    for schema in schemas.values():
        _without_null_defaults(schema)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
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
        "components": {"schemas": schemas, "securitySchemes": {"key": _KEY}},
    }


def _without_null_defaults(schema: dict[str, Any]) -> None:
    """A default makes generators of clients think that a field is always there."""
    for field in schema.get("properties", {}).values():
        if field.get("default", "") is None:
            del field["default"]


@cache
def _schema(wire_type: Any) -> dict[str, Any]:
    """What refers to a type. Found once: most operations share their problems and parameters."""
    (schema,), _ = msgspec.json.schema_components([wire_type], ref_template=_REF)
    return schema


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(operation),
    }
    parameters = [
        _parameter(field, "path" if f"{{{field.encode_name}}}" in operation.path else "query")
        for field in msgspec.structs.fields(operation.query)
    ]
    if operation.batch:
        parameters.append(_ENCODING)
    if parameters:
        described["parameters"] = parameters
    if operation.needs != NO_KEY:
        described["security"] = [{"key": []}, {}]
    if operation.batch:
        described["description"] = operation.batch
    if operation.body:
        described["requestBody"] = {"required": True, "content": _request_content(operation)}
    return described


def _parameter(field: FieldInfo, place: str) -> dict[str, Any]:
    described: dict[str, Any] = {"name": field.encode_name, "in": place, "required": field.required}
    schema = _parameter_schema(field.type)
    if text := schema.pop("description", None):
        described["description"] = text
    if field.default is not msgspec.NODEFAULT and field.default is not None:
        schema["default"] = field.default
    return {**described, "schema": schema}


def _parameter_schema(annotation: Any) -> dict[str, Any]:
    """What its Meta says outright, where the text is not what the type is written as; else the type's own."""
    for meta in metas(annotation):
        if meta.extra_json_schema:
            described = {"description": meta.description} if meta.description else {}
            return {**meta.extra_json_schema, **described}
    return _without_null(_schema(annotation))


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is absent, never null."""
    choices = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    kept = {**schema, **choices[0]} if len(choices) == 1 else dict(schema)
    kept.pop("anyOf", None)
    if "enum" in kept:
        kept["enum"] = [each for each in kept["enum"] if each is not None]
        kept["type"] = "string"
    return kept


def _request_content(operation: Operation) -> dict[str, Any]:
    schemas = [_schema(wire_type) for wire_type in operation.body]
    one = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if not operation.batch:
        return {_JSON: {"schema": one}}
    many = {"type": "array", "items": one, "minItems": 1}
    named = zip(operation.body, operation.examples, strict=True)
    examples = {wire_type.__name__: {"value": each} for wire_type, each in named}
    lines = "\n".join(orjson.dumps(each).decode() for each in operation.examples)
    return {
        _JSON: {"schema": {"anyOf": [one, many]}, "examples": examples},
        "application/x-ndjson": {
            "schema": {**one, "description": "a line; the body has one such object a line"},
            "examples": {"lines": {"value": lines}},
        },
    }


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
    if operation.needs != NO_KEY:
        found += [problems.UNAUTHORIZED, problems.FORBIDDEN]
    if operation.body:
        found += _BODY
    return [*found, *operation.problems]


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


PAGE: Final = """<!doctype html>
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


def encoded_document(operations: Sequence[Operation]) -> bytes:
    """The document as JSON, made once when the router starts."""
    return orjson.dumps(document(operations))
