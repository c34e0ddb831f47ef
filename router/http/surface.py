"""What a router answers: routes and document, made of the kinds that it knows."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from router.http import analytics, devices, export, health, pairings, rebalance, settings, shards
from router.http.endpoint import COMPRESSED, Endpoint, routes_of
from router.ingest import endpoint as ingest
from router.ingest.endpoint import IngestEndpoint
from router.wire import openapi
from shards.kinds import Kinds

_ASSETS: Final = Mount("/docs/assets", StaticFiles(directory=swagger_ui_path))


@dataclass(frozen=True)
class Surface:
    """`ingest`: path -> endpoint of POSTs that go around Starlette. `open_paths` ask for no key."""

    ingest: dict[str, IngestEndpoint]
    routes: list[BaseRoute]
    open_paths: frozenset[str]


def documented(kinds: Kinds) -> tuple[Endpoint, ...]:
    """The endpoints that the document lists, but for those that take readings."""
    return (
        *devices.endpoints(kinds),
        *export.endpoints(kinds),
        *settings.endpoints(kinds),
        *analytics.endpoints(kinds),
        *pairings.ENDPOINTS,
        *shards.ENDPOINTS,
        *rebalance.ENDPOINTS,
        *health.ENDPOINTS,
    )


def surface(kinds: Kinds, *, ignoring: bool) -> Surface:
    """All of it. `ignoring`: fields that nobody declared are left out of readings, and counted."""
    paths = ingest.endpoints(kinds.all, ignoring=ignoring)
    found = documented(kinds)
    routes: list[BaseRoute] = [Route(path, endpoint, methods=["POST"]) for path, endpoint in paths.items()]
    routes += [*routes_of((*found, *health.UNDOCUMENTED)), _ASSETS, *_document(kinds, found)]
    open_ = {each.operation.path for each in found if each.operation.needs == openapi.NO_KEY}
    return Surface(paths, routes, frozenset(open_ | {"/docs", "/openapi.json"}))


def _document(kinds: Kinds, found: Iterable[Endpoint]) -> list[Route]:
    """The OpenAPI document, made when it is asked for the first time, and its page."""
    made: list[bytes] = []

    async def document(_request: object) -> Response:
        if not made:
            told = [*ingest.operations(kinds.all), *(endpoint.operation for endpoint in found)]
            made.append(await asyncio.to_thread(openapi.encoded_document, told))  # it takes a while
        return Response(made[0], media_type="application/json")

    async def page(_request: object) -> Response:
        return HTMLResponse(openapi.PAGE)

    return [Route("/openapi.json", document, middleware=[COMPRESSED]), Route("/docs", page)]
