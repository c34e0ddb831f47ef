"""Request bodies: read under limits of size and time, decompressed under the same limit of size."""

import asyncio
import io
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import zstandard
from starlette.requests import ClientDisconnect, Request

from router.context import Router
from router.problems import (
    CONTENT_TOO_LARGE,
    MALFORMED_BODY,
    OVERLOADED,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
    retry_after,
)

JSON_TYPES: Final = frozenset({"application/json"})
NDJSON_TYPES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_GZIP_WINDOW: Final = 31
_ZSTD_WINDOW_MAX: Final = 2**23


def is_ndjson(request: Request) -> bool:
    """Whether the body is NDJSON rather than JSON; a 415 problem when it is neither."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in NDJSON_TYPES:
        return True
    if media_type not in JSON_TYPES:
        detail = f"Content-Type is {media_type[:80] or 'missing'}; application/json and application/x-ndjson are taken"
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail)
    return False


@asynccontextmanager
async def body_of(request: Request, router: Router, deadline: float) -> AsyncIterator[bytes]:
    """The decoded body, counted against the memory for all bodies while the block lasts.

    413 when it is too large, 429 when all bodies together are, 415 or 400 for its encoding, 400 when it does not
    arrive by `deadline`.
    """
    limit = router.settings.body_bytes_max
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    held = 0
    received = bytearray()
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            async for piece in request.stream():
                received += piece
                router.body_bytes += len(piece)
                held += len(piece)
                if len(received) > limit:
                    raise _too_large(limit)
                if router.body_bytes > router.settings.bodies_bytes_max:
                    detail = "too many request bodies are being worked on"
                    raise ProblemError(OVERLOADED, detail, headers=retry_after(1))
        yield _decompress(bytes(received), request.headers.get("content-encoding", ""), limit)
    except TimeoutError:
        raise ProblemError(MALFORMED_BODY, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise ProblemError(MALFORMED_BODY, "the client went away before the end of the body") from None
    finally:
        router.body_bytes -= held


def _too_large(limit: int) -> ProblemError:
    detail = f"the body has more than {limit} bytes (counted also after decompression)"
    return ProblemError(CONTENT_TOO_LARGE, detail, headers={"Connection": "close"})


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding. Stops as soon as more than `limit` bytes come out."""
    encoding = encoding.strip().lower()
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
