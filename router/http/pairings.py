"""/v1/pairings: which meter feeds which vehicle, and from when to when."""

from typing import Final

from starlette.responses import Response

from router.http.bodies import read_object
from router.http.endpoint import Call, Endpoint
from router.wire.answers import Page, json_response
from router.wire.devices import PairingBody
from router.wire.openapi import Operation
from router.wire.parameters import decode_cursor, encode_cursor, in_utc, read_device, read_moment
from router.wire.problems import CONFLICT, NOT_FOUND, ProblemError, invalid
from router.wire.queries import PairingKey, PairingsQuery
from shards.catalog import pairings
from shards.catalog.pairings import Pairing, PairingConflict


def _wire(pairing: Pairing) -> PairingBody:
    return PairingBody(pairing.vehicle_id, pairing.meter_id, pairing.valid_from, pairing.valid_to)


async def _put(call: Call) -> Response:
    """Make a pairing, or change its end: 201 when new, 200 when changed or unchanged."""
    router, body = call.router, await read_object(call, PairingBody)
    tenant = call.tenant_for(body.vehicle_id, body.meter_id)
    start = in_utc(body.valid_from, "/validFrom")
    end = None if body.valid_to is None else in_utc(body.valid_to, "/validTo")
    if end is not None and end <= start:
        raise invalid("/validTo", "must be after validFrom", "out_of_range")
    pairing = Pairing(body.vehicle_id, body.meter_id, start, end)
    try:
        created = await pairings.put(router.cluster.catalog, tenant, pairing, router.query_deadline())
    except PairingConflict as conflict:
        # With a prefix, the other vehicle may be one of which the key must not know.
        known = call.caller.prefix is None
        detail = str(conflict) if known else f"meter {pairing.meter_id} already feeds a vehicle at that time"
        raise ProblemError(CONFLICT, detail) from None
    return json_response(_wire(pairing), 201 if created else 200)


async def _list(call: Call) -> Page[PairingBody]:
    """Pairings by vehicle, meter and start; optionally of one vehicle or meter."""
    query: PairingsQuery = call.query
    cursor = decode_cursor(query.cursor, 3)
    after = None
    if cursor is not None:
        vehicle, meter = (read_device(part, "cursor") for part in cursor[:2])
        after = Pairing(vehicle, meter, read_moment(cursor[2], "cursor"), None)
    catalog, deadline = call.router.cluster.catalog, call.router.query_deadline()
    named = [device for device in (query.vehicle_id, query.meter_id) if device is not None]
    tenant = call.tenant_for(*named)
    of = (query.vehicle_id, query.meter_id)
    found = await pairings.page(catalog, tenant, of, after, query.limit + 1, deadline)
    page = found[: query.limit]
    following = None
    if len(found) > query.limit:
        last = page[-1]
        following = encode_cursor(last.vehicle_id, last.meter_id, last.valid_from.isoformat())
    prefix = call.caller.prefix or ""
    seen = [each for each in page if each.vehicle_id.startswith(prefix) and each.meter_id.startswith(prefix)]
    return Page([_wire(pairing) for pairing in seen], following)


async def _delete(call: Call) -> Response:
    """Remove one pairing: 204, or 404 when there is none."""
    key: PairingKey = call.query
    tenant = call.tenant_for(key.vehicle_id, key.meter_id)
    catalog, deadline = call.router.cluster.catalog, call.router.query_deadline()
    if not await pairings.delete(catalog, tenant, key.vehicle_id, key.meter_id, key.valid_from, deadline):
        raise ProblemError(NOT_FOUND, "there is no such pairing")
    return Response(status_code=204)


ENDPOINTS: Final = (
    Endpoint(
        Operation(
            "put",
            "/v1/pairings",
            "putPairing",
            "Pair a meter with a vehicle, or change the end",
            "pairings",
            PairingBody,
            body=(PairingBody,),
            also=(201,),
            problems=(CONFLICT,),
        ),
        _put,
    ),
    Endpoint(
        Operation(
            "get",
            "/v1/pairings",
            "listPairings",
            "Pairings by vehicle, meter, start",
            "pairings",
            Page[PairingBody],
            query=PairingsQuery,
        ),
        _list,
    ),
    Endpoint(
        Operation(
            "delete", "/v1/pairings", "deletePairing", "Remove a pairing", "pairings", status=204, query=PairingKey
        ),
        _delete,
    ),
)
