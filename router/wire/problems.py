"""Errors as RFC 9457 problem details, and what each means."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class Problem:
    """A kind of error. `cause` and `remedy` are served at /problems/<slug>, which is its `type`."""

    slug: str
    status: int
    title: str
    cause: str
    remedy: str

    @property
    def type(self) -> str:
        return f"/problems/{self.slug}"


MALFORMED_BODY: Final = Problem(
    "malformed-body",
    400,
    "The body cannot be parsed",
    "The body is not one JSON value, or not the text that its Content-Encoding promises.",
    "Send one JSON object, one JSON array, or NDJSON (one object a line) with Content-Type application/x-ndjson.",
)
NOT_FOUND: Final = Problem(
    "not-found",
    404,
    "There is no such resource",
    "The path is unknown, or the device has never sent a reading.",
    "Check the path against /openapi.json, and the device ID.",
)
METHOD_NOT_ALLOWED: Final = Problem(
    "method-not-allowed",
    405,
    "The resource does not have this method",
    "The path exists, but not with this HTTP method.",
    "Use one of the methods in the Allow header.",
)
TOO_SLOW: Final = Problem(
    "request-too-slow",
    408,
    "The request did not arrive in time",
    "The body stopped coming, or came more slowly than the router waits for.",
    "Send the same again: nothing of it was stored. Over a slow link send smaller batches, or compress them.",
)
UNAUTHORIZED: Final = Problem(
    "unauthorized",
    401,
    "A key is needed",
    "The request has no key, or one that is malformed, unknown, expired or revoked.",
    "Send Authorization: Bearer vr_... with a key that `voltroute key create` has made.",
)
FORBIDDEN: Final = Problem(
    "forbidden",
    403,
    "The key does not allow this",
    "The key lacks the scope that the request needs, or is for other devices.",
    "Use a key with that scope: `voltroute key list` shows what each may do.",
)
FORBIDDEN_HOST: Final = Problem(
    "forbidden-host",
    421,
    "The router is not this host",
    "The Host header names another host than this router serves. A page in a browser could reach it that way.",
    "Use the router's own address, or set VOLTROUTE_ALLOWED_HOSTS.",
)
CONFLICT: Final = Problem(
    "pairing-conflict",
    409,
    "The meter already feeds a vehicle at that time",
    "A meter's energy can count for one vehicle only, so its pairings must not overlap.",
    "End the other pairing (PUT it again with validTo) or choose another window.",
)
ARCHIVED: Final = Problem(
    "archived",
    409,
    "Readings of that time are archived",
    "The shards keep readings for as long as the kind's policy says. Older ones are in the archive, or were dropped.",
    "Ask for a later time; sums over whole hours go on. `voltroute archive restore` brings archived months back.",
)
CONTENT_TOO_LARGE: Final = Problem(
    "content-too-large",
    413,
    "The request is too large",
    "The body, before or after decompression, or the number of readings in it, is over the limit.",
    "Send smaller batches; 1,000 readings a request is a good size.",
)
UNSUPPORTED_MEDIA_TYPE: Final = Problem(
    "unsupported-media-type",
    415,
    "The body's type or encoding is not supported",
    "Content-Type must be application/json or application/x-ndjson, Content-Encoding gzip, zstd or absent.",
    "Set the header; with curl: -H 'Content-Type: application/json'.",
)
INVALID_READINGS: Final = Problem(
    "invalid-readings",
    422,
    "No reading was stored",
    "Every reading of the request is invalid, or one is and the request said strict=true.",
    "Correct the fields that `errors` names. Sending the same again gives the same answer.",
)
INVALID_REQUEST: Final = Problem(
    "invalid-request",
    422,
    "A parameter or field is invalid",
    "A query parameter or a field of the body is missing, malformed or out of range.",
    "Correct what `errors` names.",
)
OVERLOADED: Final = Problem(
    "overloaded",
    429,
    "More readings arrive than can be stored",
    "Readings wait too long for their transaction, or the queue of a shard, or the memory for request bodies, is full.",
    "Send the same again after Retry-After seconds; what was stored already counts as duplicates then.",
)
RATE_LIMITED: Final = Problem(
    "rate-limited",
    429,
    "More readings were sent than the key or its tenant may send",
    "A limit in readings a second is overdrawn. Nothing of this request was read or stored.",
    "Send the same again after Retry-After seconds, in larger batches or less often.",
)
INTERNAL: Final = Problem(
    "internal-error",
    500,
    "The router failed",
    "A defect of voltroute.",
    "Report it with the request ID. Sending the same again is safe.",
)
SHARD_UNAVAILABLE: Final = Problem(
    "shard-unavailable",
    503,
    "A shard takes no requests now",
    "The database that holds some of the devices is down, unreachable or too slow.",
    "Send the whole request again after Retry-After seconds: it is safe. For analytics, partial=allow answers "
    "without the missing shards.",
)
CATALOG_UNAVAILABLE: Final = Problem(
    "catalog-unavailable",
    503,
    "The catalog takes no requests now",
    "The control database (pairings, shard map) is down, unreachable or too slow. Ingestion goes on without it.",
    "Repeat the request after Retry-After seconds.",
)
NOT_OPEN: Final = Problem(
    "not-open",
    503,
    "The router serves nobody yet",
    "The cluster has no keys, and the router listens on more than loopback: everybody could read and write.",
    "Make a key with `voltroute key create`; the router takes it over by itself.",
)
NOT_READY: Final = Problem(
    "not-ready",
    503,
    "The router does not take requests",
    "It is starting or stopping, or no shard can be reached.",
    "Ask another router, or repeat the request after Retry-After seconds.",
)

PROBLEMS: Final[Mapping[str, Problem]] = {
    problem.slug: problem
    for problem in (
        MALFORMED_BODY,
        NOT_FOUND,
        METHOD_NOT_ALLOWED,
        UNAUTHORIZED,
        FORBIDDEN,
        TOO_SLOW,
        CONFLICT,
        ARCHIVED,
        CONTENT_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        FORBIDDEN_HOST,
        INVALID_READINGS,
        INVALID_REQUEST,
        OVERLOADED,
        RATE_LIMITED,
        INTERNAL,
        SHARD_UNAVAILABLE,
        CATALOG_UNAVAILABLE,
        NOT_OPEN,
        NOT_READY,
    )
}


class ProblemError(Exception):
    """Ends a request with a problem. `extensions` become members of the answer beside the standard ones.

    `hold_s`: how long the answer is held back. Who is refused for load and asks again at once has to wait that long,
    which costs nothing here; else refusing would take the time that serving needs.
    """

    def __init__(
        self,
        problem: Problem,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, object] | None = None,
        hold_s: float = 0.0,
    ) -> None:
        super().__init__(detail)
        self.hold_s = hold_s
        self.problem = problem
        self.detail = detail
        self.headers = dict(headers or {})
        self.extensions = dict(extensions or {})


def retry_after(seconds: float) -> dict[str, str]:
    """The Retry-After header: whole seconds, at least one, and up to two or a tenth more.

    Those who were refused in one moment do not come back in one.
    """
    least = max(1, math.ceil(seconds))
    return {"Retry-After": str(least + random.randint(0, max(2, least // 10)))}


def _body(error: ProblemError, request_id: str | None) -> bytes:
    problem = error.problem
    body: dict[str, object] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": error.detail,
    }
    if request_id:
        body["requestId"] = request_id
    try:
        return orjson.dumps(body | error.extensions)
    except TypeError:  # text that is not Unicode: whoever asked must be answered all the same
        return orjson.dumps({**body, "detail": error.detail.encode("utf-8", "replace").decode()})


def response(error: ProblemError, request_id: str | None = None) -> Response:
    """The HTTP answer of an error."""
    content = _body(error, request_id)
    return Response(content, error.problem.status, headers=error.headers, media_type=MEDIA_TYPE)


def raw(error: ProblemError, request_id: str | None) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """The same as status, ASGI headers and body."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    headers.append((b"content-type", MEDIA_TYPE.encode()))
    return error.problem.status, headers, _body(error, request_id)


def internal_error() -> ProblemError:
    """For what nobody foresaw."""
    return ProblemError(INTERNAL, "the router failed; its log has the trace")


def archived(kind: str, past: str, first: str | None = None) -> ProblemError:
    """A 409 about readings of a kind, up to before a day."""
    since = f"from {first} " if first else ""
    command = f"voltroute archive restore {kind} --from {first or 'DAY'} --to {past}"
    detail = (
        f"readings of {kind} {since}to before {past} are archived or dropped; `{command}` brings back archived ones"
    )
    return ProblemError(ARCHIVED, detail)


def invalid(field: str, detail: str, code: str = "invalid") -> ProblemError:
    """A 422 about one query parameter or field."""
    extensions = {"errors": [{"pointer": field, "code": code, "detail": detail}]}
    return ProblemError(INVALID_REQUEST, f"{field}: {detail}", extensions=extensions)
