"""An endpoint, declared once: what it is called, what it takes and gives, and the function that answers."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.access.caller import Caller
from router.context import Router, router_of
from router.reads.scope import Scope
from router.wire.answers import Dated, json_response
from router.wire.openapi import Operation
from router.wire.parameters import read

# Lists compress to a tenth. A low level: the work is done between two other requests.
COMPRESSED: Final = Middleware(GZipMiddleware, minimum_size=1_024, compresslevel=3)


AS_OF: Final = "X-As-Of"
CACHE: Final = "X-Cache"


@dataclass
class Call:
    """One request to an endpoint: the router, the typed query, and the request for what neither holds."""

    router: Router
    query: Any
    request: Request
    scope: Scope | None = None  # of the read that was made for it

    @property
    def caller(self) -> Caller:
        """Who sends it."""
        found: Caller = self.request.scope["caller"]
        return found

    def tenant_for(self, *device_ids: str) -> int:
        """The caller's tenant; 403 unless its key is for these devices (IDs, or how they begin), or for all if none."""
        self.caller.require_devices(*device_ids)
        return self.caller.tenant

    def scope_for(self, *device_ids: str) -> Scope:
        """What a read of these devices, or of all, gets; 403 as above."""
        client = self.request.client
        reader = self.caller.key_id or (client.host if client is not None else "")
        stale = getattr(self.query, "stale", None) == "allow"
        self.scope = self.router.scope(self.tenant_for(*device_ids), reader, stale=stale)
        return self.scope


# Answers with a wire type (200, JSON) or a whole response.
Handler = Callable[[Call], Awaitable[msgspec.Struct | Response]]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path."""

    operation: Operation
    handler: Handler


def routes_of(endpoints: Sequence[Endpoint]) -> list[Route]:
    """A route for each path; its methods are those that are declared."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.operation.path, {})[endpoint.operation.method.upper()] = endpoint
    return [
        Route(path, _serve(methods), methods=list(methods), middleware=[COMPRESSED])
        for path, methods in by_path.items()
    ]


def _serve(methods: dict[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        endpoint = methods.get(request.method) or methods["GET"]  # HEAD
        caller: Caller | None = request.scope.get("caller")
        if caller is not None:  # None: the path is open to everybody
            caller.require(endpoint.operation.needs)
        query = read(endpoint.operation.query, request.query_params.multi_items(), request.path_params)
        call = Call(router_of(request), query, request)
        answer = await endpoint.handler(call)
        as_of = None if call.scope is None else call.scope.seen.as_of
        if isinstance(answer, Dated):
            answer = msgspec.structs.replace(answer, as_of=as_of)
        response = answer if isinstance(answer, Response) else json_response(answer)
        if as_of is not None:
            response.headers[AS_OF] = as_of.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if call.scope is not None and call.scope.seen.cache is not None:
            response.headers[CACHE] = call.scope.seen.cache
        return response

    return serve
