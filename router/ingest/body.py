"""Request bodies: read under limits of size and pace, decompressed under the same limit of size."""

import asyncio
import io
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import zstandard
from starlette.types import Message, Receive

from router.ingest.budget import BodyBudget
from router.wire.problems import (
    CONTENT_TOO_LARGE,
    MALFORMED_BODY,
    OVERLOADED,
    TOO_SLOW,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
    retry_after,
)

RawHeaders: TypeAlias = Mapping[bytes, bytes]  # names in lower case, as ASGI servers give them

JSON_TYPES: Final = frozenset({"application/json"})
NDJSON_TYPES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
GZIP_MEMBERS_MAX: Final = 1_000
_GZIP_WINDOW: Final = 31
_GZIP_PIECE: Final = 16_384  # what a member leaves over is copied: at most this much, so that all of it stays linear
_ZSTD_WINDOW_MAX: Final = 2**23
_CHARSET: Final = re.compile(r"charset\s*=\s*\"?([^\s;\"]+)")


@dataclass(frozen=True)
class BodyLimits:
    """Bytes of a body, also after decompression; seconds without a byte; bytes a second, after the first `idle_s`."""

    bytes_max: int
    idle_s: float
    rate_min: int


def is_ndjson(headers: RawHeaders) -> bool:
    """Whether the body is NDJSON rather than JSON; a 415 problem when it is neither."""
    if headers.get(b"content-type") == b"application/json":
        return False
    media_type, _, rest = headers.get(b"content-type", b"").lower().decode("latin-1").partition(";")
    media_type = media_type.strip()
    if "charset" in rest:
        _check_charset(rest)
    if media_type in NDJSON_TYPES:
        return True
    if media_type not in JSON_TYPES:
        shown = media_type[:80] or "missing"
        detail = f"Content-Type is {shown}; application/json and application/x-ndjson are supported"
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail)
    return False


def _check_charset(parameters: str) -> None:
    found = _CHARSET.search(parameters)
    if found is not None and found[1] not in {"utf-8", "utf8", "us-ascii"}:
        detail = f"charset is {found[1][:40]}; JSON is UTF-8"
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail)


async def read_body(headers: RawHeaders, receive: Receive, limits: BodyLimits, budget: BodyBudget) -> bytes:
    """The body as it was sent. Its length counts in `budget` until the caller takes it off again.

    413 when it is too large, 429 when all bodies together are, 408 when it stops coming or comes too slowly.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limits.bytes_max:
        raise _too_large(limits.bytes_max)
    held = 0
    pieces: list[bytes] = []
    pace = _Pace(limits)
    try:
        more = True
        while more:
            message = await receive()
            piece, more = message.get("body", b""), message.get("more_body", False)
            pieces.append(piece)
            held += len(piece)
            budget.held += len(piece)
            _check(message, held, limits, budget)
            if more:
                pace.came(held)
    except BaseException as error:
        budget.held -= held
        if isinstance(error, asyncio.CancelledError) and pace.caused_it():
            detail = f"the body stopped coming, or came at less than {limits.rate_min} bytes a second"
            headers_ = {**retry_after(1), "Connection": "close"}
            raise ProblemError(TOO_SLOW, detail, headers=headers_) from None
        raise
    finally:
        pace.end()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Pace:
    """Cancels the task that made it when a body stalls. One timer a request, which looks again when it is due."""

    __slots__ = ("_expired", "_handle", "_held", "_last", "_limits", "_loop", "_started", "_task")

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._task = asyncio.current_task()
        self._expired = False
        self._held = 0
        self._loop = asyncio.get_running_loop()
        self._started = self._last = time.monotonic()
        self._handle = self._loop.call_later(limits.idle_s, self._look)

    def came(self, held: int) -> None:
        """So many bytes came by now."""
        self._held = held
        self._last = time.monotonic()

    def _look(self) -> None:
        now, limits = time.monotonic(), self._limits
        due = min(self._last + limits.idle_s, self._started + limits.idle_s + self._held / limits.rate_min)
        if now < due:
            self._handle = self._loop.call_later(due - now, self._look)
        elif self._task is not None:
            self._expired = True
            self._task.cancel()

    def caused_it(self) -> bool:
        """Whether the cancellation that was just caught is this deadline's alone."""
        return self._expired and self._task is not None and not self._task.uncancel()

    def end(self) -> None:
        """The body is complete, or does not matter any more."""
        self._handle.cancel()


def _check(message: Message, held: int, limits: BodyLimits, budget: BodyBudget) -> None:
    if message["type"] != "http.request":
        raise ProblemError(MALFORMED_BODY, "the client went away before the end of the body")
    if held > limits.bytes_max:
        raise _too_large(limits.bytes_max)
    check_budget(budget)


def check_budget(budget: BodyBudget) -> None:
    """A 429 problem when all bodies together are too large."""
    if budget.is_spent:
        raise ProblemError(OVERLOADED, "too many request bodies are being worked on", headers=retry_after(1))


def _too_large(limit: int) -> ProblemError:
    detail = f"the body has more than {limit} bytes (counted also after decompression)"
    return ProblemError(CONTENT_TOO_LARGE, detail, headers={"Connection": "close"})


def decompress(body: bytes, headers: RawHeaders, limit: int) -> bytes:
    """The body without its Content-Encoding, or a 415, 400 or 413. Stops when more than `limit` bytes come out."""
    encoding = headers.get(b"content-encoding", b"").strip().lower().decode("latin-1")
    if encoding in {"", "identity"}:
        return body
    try:
        if encoding in {"gzip", "x-gzip"}:
            plain = _gunzip(body, limit)
        elif encoding == "zstd":
            decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
            with decompressor.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
                plain = reader.read(limit + 1)
        else:
            detail = f"Content-Encoding is {encoding[:80]}; gzip and zstd are supported"
            raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept-Encoding": "gzip, zstd"})
    except (zlib.error, zstandard.ZstdError):
        raise ProblemError(MALFORMED_BODY, f"the body is not valid {encoding}") from None
    if len(plain) > limit:
        raise _too_large(limit)
    return plain


def _gunzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip body, up to one byte over the limit. Linear in the size of what came in."""
    plain, at, members = bytearray(), 0, 0
    view = memoryview(body)
    while at < len(body) and len(plain) <= limit:
        members += 1
        if members > GZIP_MEMBERS_MAX:
            raise ProblemError(CONTENT_TOO_LARGE, f"the body has more than {GZIP_MEMBERS_MAX} gzip members")
        member = zlib.decompressobj(_GZIP_WINDOW)
        while not member.eof and len(plain) <= limit:
            piece = member.unconsumed_tail or view[at : at + _GZIP_PIECE]
            if not piece:
                message = "truncated"
                raise zlib.error(message)
            at += 0 if member.unconsumed_tail else len(piece)
            plain += member.decompress(piece, limit + 1 - len(plain))
        at -= len(member.unused_data)
    return bytes(plain)
