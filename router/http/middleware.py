"""What surrounds every request: an ID, a duration, a log line, and a problem for every error."""

import time
from contextvars import Token
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.http.observed import RequestIds, observe
from router.ingest.endpoint import IngestEndpoint
from router.log import REQUEST_ID, TRACE_ID
from router.tracing import ACTIVE, Parent, Span, Tracing, parse_traceparent
from router.wire import problems
from router.wire.problems import ProblemError, retry_after
from shards.catalog.database import NAME as CATALOG
from shards.errors import NoCluster, ShardError, ShardUnavailable

_log: Final = structlog.stdlib.get_logger(__name__)
_QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
_UNMATCHED: Final = "unmatched"
_HOSTS_CACHED: Final = 1_000
_OPEN_FOLDERS: Final = ("/problems/", "/docs/assets/")
_BY_STATUS: Final = {
    problem.status: problem
    for problem in (
        problems.MALFORMED_BODY,
        problems.NOT_FOUND,
        problems.METHOD_NOT_ALLOWED,
        problems.CONTENT_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
    )
}


@dataclass(frozen=True)
class Gate:
    """What a request must bring. `hosts`: that it may name (None: any). `open_paths`: that ask for no key."""

    hosts: frozenset[str] | None
    open_paths: frozenset[str]

    def check(self, host: bytes | None) -> None:
        """A problem unless a Host header names this router: a page of another site can reach loopback, not name it."""
        if self.hosts is not None and (host is None or _host_of(host) not in self.hosts):
            raise ProblemError(problems.FORBIDDEN_HOST, "the Host header names another host than this router")


@dataclass
class IngestPaths:
    """Paths whose POSTs go around Starlette; others when the cluster's kinds are others."""

    endpoints: dict[str, IngestEndpoint]


class Middleware:
    """The outermost ASGI application: everything passes it, POSTs to the ingest paths go straight to their endpoints.

    Takes a client's X-Request-ID if it is harmless, makes one otherwise, and sends it back.
    """

    def __init__(
        self,
        app: ASGIApp,
        owner: Starlette,
        gate: Gate,
        ingest: IngestPaths,
        request_ids: RequestIds,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._ingest = ingest
        self._tracing = tracing
        self._gate = gate
        self._owner = owner
        self._request_ids = request_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request_id, parent = self._ids(scope)
        span = None if self._tracing is None else self._tracing.begin(scope["method"], parent)
        token = REQUEST_ID.set(request_id)
        tokens = None if parent is None and span is None else _set_trace(parent, span)
        direct = self._ingest.endpoints.get(scope["path"]) if scope["method"] == "POST" else None
        status = 500
        try:
            try:
                self._check_host(scope)
                if direct is None:
                    self._admit(scope)
            except ProblemError as error:
                status = await _refuse(send, error, request_id)
            else:
                if direct is not None:
                    scope["app"] = self._owner
                    status = await direct(scope, receive, send)
                else:
                    status = await self._through_starlette(scope, receive, send, request_id)
        finally:
            route = scope["path"] if direct is not None else getattr(scope.get("route"), "path", _UNMATCHED)
            seconds, quiet = time.monotonic() - started, direct is not None or route in _QUIET
            observe(scope["method"], scope["path"], route, status, seconds, quiet=quiet)
            REQUEST_ID.reset(token)
            if tokens is not None:
                TRACE_ID.reset(tokens[0])
                ACTIVE.reset(tokens[1])
            if span is not None:
                span.end(route, status)

    async def _through_starlette(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)
        return status

    def _admit(self, scope: Scope) -> None:
        """Who sends it, for whoever answers. Paths that are open to everybody ask nothing."""
        path = scope["path"]
        if path in self._gate.open_paths or path.startswith(_OPEN_FOLDERS):
            return
        scope["caller"] = self._owner.state.router.intake.access.admit(scope["headers"])

    def _check_host(self, scope: Scope) -> None:
        host = next((value for name, value in scope["headers"] if name == b"host"), None)
        if host is not None or scope.get("http_version") != "1.0":
            self._gate.check(host)

    def _ids(self, scope: Scope) -> tuple[str, Parent | None]:
        """(request ID: the client's if it is harmless; whose work it is, by its traceparent)."""
        given, parent = None, None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
            elif name == b"traceparent":
                parent = parse_traceparent(value)
        return self._request_ids.of(given), parent


def _set_trace(parent: Parent | None, span: Span | None) -> tuple[Token[str], Token[Span | None]]:
    """What log lines and pieces of work find."""
    trace_id = span.trace_id if span is not None else parent.trace_id if parent is not None else ""
    return TRACE_ID.set(trace_id), ACTIVE.set(span)


@lru_cache(_HOSTS_CACHED)
def _host_of(value: bytes) -> str:
    """The host of a Host header: without its port, in lower case."""
    header = value.decode("latin-1")
    if header.startswith("["):
        return header.partition("]")[0].lower() + "]"
    return header.partition(":")[0].rstrip(".").lower()


async def _refuse(send: Send, error: ProblemError, request_id: str) -> int:
    status, headers, body = problems.raw(error, request_id)
    more = [(b"content-length", b"%d" % len(body)), (b"x-request-id", request_id.encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *more]})
    await send({"type": "http.response.body", "body": body})
    return status


def _respond(error: ProblemError) -> Response:
    return problems.response(error, REQUEST_ID.get())


async def on_problem(_request: Request, error: Exception) -> Response:
    """A problem that an endpoint raised."""
    if not isinstance(error, ProblemError):
        raise error
    return _respond(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: unknown path, wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    problem = _BY_STATUS.get(error.status_code, problems.INVALID_REQUEST)
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return _respond(ProblemError(problem, detail, headers=error.headers))


async def on_shard_error(_request: Request, error: Exception) -> Response:
    """A database that failed a request which needs it."""
    if not isinstance(error, ShardError):
        raise error
    if not error.retryable:
        _log.error("shard_fault", shard=error.shard, detail=error.detail)
    problem = problems.CATALOG_UNAVAILABLE if error.shard == CATALOG else problems.SHARD_UNAVAILABLE
    wait = error.retry_after_s if isinstance(error, ShardUnavailable) else 1.0
    return _respond(ProblemError(problem, f"{error.shard} did not answer", headers=retry_after(wait)))


async def on_no_map(_request: Request, error: Exception) -> Response:
    """No map yet."""
    if not isinstance(error, NoCluster):
        raise error
    return _respond(ProblemError(problems.NOT_READY, str(error), headers=retry_after(1)))


async def on_bug(_request: Request, _error: Exception) -> Response:
    """Anything else. The trace goes to the log, not to the client."""
    return _respond(problems.internal_error())
