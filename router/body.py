"""Request bodies: read under limits of size and time, decompressed under the same limit of size."""

import asyncio
import io
import time
import zlib
from collections.abc import Mapping
from typing import Final, TypeAlias

import zstandard
from starlette.types import Message, Receive

from router.context import Router
from router.problems import (
    CONTENT_TOO_LARGE,
    MALFORMED_BODY,
    OVERLOADED,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
    retry_after,
)

RawHeaders: TypeAlias = Mapping[bytes, bytes]  # names in lower case, as ASGI servers give them

JSON_TYPES: Final = frozenset({"application/json"})
NDJSON_TYPES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_GZIP_WINDOW: Final = 31
_ZSTD_WINDOW_MAX: Final = 2**23


def is_ndjson(headers: RawHeaders) -> bool:
    """Whether the body is NDJSON rather than JSON; a 415 problem when it is neither."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if media_type in NDJSON_TYPES:
        return True
    if media_type not in JSON_TYPES:
        detail = f"Content-Type is {media_type[:80] or 'missing'}; application/json and application/x-ndjson are taken"
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail)
    return False


async def read_body(headers: RawHeaders, receive: Receive, router: Router, deadline: float) -> bytes:
    """The body as it was sent. Its length counts in `router.body_bytes` until the caller takes it off again.

    413 when it is too large, 429 when all bodies together are, 400 when it does not arrive by `deadline`.
    """
    limit = router.settings.body_bytes_max
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    held = 0
    pieces: list[bytes] = []
    expiry = _Expiry(deadline)
    try:
        more = True
        while more:
            message = await receive()
            piece, more = message.get("body", b""), message.get("more_body", False)
            pieces.append(piece)
            held += len(piece)
            router.body_bytes += len(piece)
            _check(message, held, router)
    except BaseException as error:
        router.body_bytes -= held
        if isinstance(error, asyncio.CancelledError) and expiry.caused_it():
            raise ProblemError(MALFORMED_BODY, "the body did not arrive in time") from None
        raise
    finally:
        expiry.cancel()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Expiry:
    """Cancels the task that made it at `deadline`. What asyncio.timeout does, at a fifth of its cost a request."""

    __slots__ = ("_expired", "_handle", "_task")

    def __init__(self, deadline: float) -> None:
        self._task = asyncio.current_task()
        self._expired = False
        delay = max(deadline - time.monotonic(), 0)
        self._handle = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def caused_it(self) -> bool:
        """Whether the cancellation that was just caught is this deadline's alone."""
        return self._expired and self._task is not None and not self._task.uncancel()

    def cancel(self) -> None:
        """The deadline does not matter any more."""
        self._handle.cancel()


def _check(message: Message, held: int, router: Router) -> None:
    if message["type"] != "http.request":
        raise ProblemError(MALFORMED_BODY, "the client went away before the end of the body")
    if held > router.settings.body_bytes_max:
        raise _too_large(router.settings.body_bytes_max)
    if router.body_bytes > router.settings.bodies_bytes_max:
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
            detail = f"Content-Encoding is {encoding[:80]}; gzip and zstd are taken"
            raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept-Encoding": "gzip, zstd"})
    except (zlib.error, zstandard.ZstdError):
        raise ProblemError(MALFORMED_BODY, f"the body is not valid {encoding}") from None
    if len(plain) > limit:
        raise _too_large(limit)
    return plain


def _gunzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip body, up to one byte over the limit."""
    plain = bytearray()
    while body and len(plain) <= limit:
        member = zlib.decompressobj(_GZIP_WINDOW)
        plain += member.decompress(body, limit + 1 - len(plain))
        if not member.eof and len(plain) <= limit:
            message = "truncated"
            raise zlib.error(message)
        body = member.unused_data
    return bytes(plain)
