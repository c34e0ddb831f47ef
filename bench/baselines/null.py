"""The HTTP floor: read the body, decode it with orjson, answer. Stores nothing, checks nothing."""

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.baselines.serving import run


async def ingest(request: Request) -> Response:
    """One JSON object, or NDJSON."""
    body = await request.body()
    readings = [orjson.loads(line) for line in body.split(b"\n")]
    answer = {"accepted": len(readings), "duplicates": 0, "rejected": 0, "errors": []}
    return Response(orjson.dumps(answer), media_type="application/json")


async def empty(_request: Request) -> Response:
    """What a GET costs that asks for nothing."""
    return Response(b"{}", media_type="application/json")


if __name__ == "__main__":
    run(Starlette(routes=[Route("/v1/ingest/vehicle", ingest, methods=["POST"]), Route("/empty", empty)]))
