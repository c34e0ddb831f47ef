"""One JSON object as a request's body: read, unpacked and checked."""

from typing import TypeVar

import msgspec

from router.http.endpoint import Call
from router.ingest.body import decompress, is_ndjson, read_body
from router.wire.complaints import explain
from router.wire.problems import MALFORMED_BODY, UNSUPPORTED_MEDIA_TYPE, ProblemError, invalid

Body = TypeVar("Body", bound=msgspec.Struct)


async def read_object(call: Call, wire_type: type[Body]) -> Body:
    """The body as `wire_type`. ProblemError that names the field when it is not one."""
    headers, intake = dict(call.request.scope["headers"]), call.router.intake
    if is_ndjson(headers):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "this takes one JSON object: application/json")
    received = await read_body(headers, call.request.receive, intake.body, intake.budget)
    try:
        return _parse(decompress(received, headers, intake.body.bytes_max), wire_type)
    finally:
        intake.budget.held -= len(received)


def _parse(content: bytes, wire_type: type[Body]) -> Body:
    try:
        return msgspec.json.decode(content, type=wire_type)
    except msgspec.ValidationError as error:
        pointer, code, detail = explain(str(error))
        raise invalid(pointer, detail, code) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(MALFORMED_BODY, str(error)) from None
