"""/v1/pairings: which meter feeds which vehicle."""

import msgspec
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response

from router.answers import Page, PairingBody, json_response
from router.body import decompress, is_ndjson, read_body
from router.context import router_of
from router.parameters import check_device_id, check_known, decode_cursor, encode_cursor, in_utc, limit, moment
from router.problems import (
    CONFLICT,
    MALFORMED_BODY,
    NOT_FOUND,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
    invalid,
)
from router.readings import explain
from shards import pairings
from shards.pairings import Pairing, PairingConflict


def _wire(pairing: Pairing) -> PairingBody:
    return PairingBody(pairing.vehicle_id, pairing.meter_id, pairing.valid_from, pairing.valid_to)


async def _put(request: Request) -> Response:
    """Make a pairing, or change its end: 201 when new, 200 when changed or unchanged."""
    router = router_of(request)
    deadline = router.query_deadline()
    check_known(request, ())
    headers = dict(request.scope["headers"])
    if is_ndjson(headers):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "a pairing is one JSON object: application/json")
    received = await read_body(headers, request.receive, router, deadline)
    try:
        body = _parse(decompress(received, headers, router.settings.body_bytes_max))
    finally:
        router.body_bytes -= len(received)
    start = in_utc(body.valid_from, "/validFrom")
    end = None if body.valid_to is None else in_utc(body.valid_to, "/validTo")
    if end is not None and end <= start:
        raise invalid("/validTo", "must be after validFrom", "out_of_range")
    pairing = Pairing(body.vehicle_id, body.meter_id, start, end)
    try:
        created = await pairings.put(router.cluster.catalog, pairing, deadline)
    except PairingConflict as conflict:
        raise ProblemError(CONFLICT, str(conflict)) from None
    return json_response(_wire(pairing), 201 if created else 200)


def _parse(content: bytes) -> PairingBody:
    try:
        return msgspec.json.decode(content, type=PairingBody)
    except msgspec.ValidationError as error:
        pointer, code, detail = explain(str(error))
        raise invalid(pointer, detail, code) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(MALFORMED_BODY, str(error)) from None


async def _list(request: Request) -> Response:
    """Pairings by vehicle, meter and start; optionally of one vehicle or meter."""
    router = router_of(request)
    check_known(request, ("vehicleId", "meterId", "limit", "cursor"))
    vehicle, meter = (request.query_params.get(name) for name in ("vehicleId", "meterId"))
    vehicle = None if vehicle is None else check_device_id(vehicle, "vehicleId")
    meter = None if meter is None else check_device_id(meter, "meterId")
    count = limit(request)
    cursor = decode_cursor(request, 3)
    after = None
    if cursor is not None:
        after = Pairing(
            check_device_id(cursor[0], "cursor"),
            check_device_id(cursor[1], "cursor"),
            moment(cursor[2], "cursor"),
            None,
        )
    found = await pairings.page(router.cluster.catalog, vehicle, meter, after, count + 1, router.query_deadline())
    page = found[:count]
    following = None
    if len(found) > count:
        last = page[-1]
        following = encode_cursor(last.vehicle_id, last.meter_id, last.valid_from.isoformat())
    return json_response(Page([_wire(pairing) for pairing in page], following))


async def _delete(request: Request) -> Response:
    """Remove one pairing: 204, or 404 when there is none."""
    router = router_of(request)
    check_known(request, ("vehicleId", "meterId", "validFrom"))
    values = [request.query_params.get(name) for name in ("vehicleId", "meterId", "validFrom")]
    for name, value in zip(("vehicleId", "meterId", "validFrom"), values, strict=True):
        if value is None:
            raise invalid(name, "is required", "missing_parameter")
    vehicle, meter = check_device_id(values[0] or "", "vehicleId"), check_device_id(values[1] or "", "meterId")
    start = moment(values[2] or "", "validFrom")
    if not await pairings.delete(router.cluster.catalog, vehicle, meter, start, router.query_deadline()):
        raise ProblemError(NOT_FOUND, "there is no such pairing")
    return Response(status_code=204)


class Pairings(HTTPEndpoint):
    """The methods of /v1/pairings."""

    async def put(self, request: Request) -> Response:
        """Make or change one."""
        return await _put(request)

    async def get(self, request: Request) -> Response:
        """List them."""
        return await _list(request)

    async def delete(self, request: Request) -> Response:
        """Remove one."""
        return await _delete(request)
