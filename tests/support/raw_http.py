"""Streams of bytes that are HTTP requests, more or less, for two routers to answer alike."""

import asyncio
import contextlib
import gzip
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import orjson
from hypothesis import strategies as st

from tests.support.readings import meter, vehicle

DEVICE: Final = "DEVICE-OF-A-SIDE"  # replaced by one of each router's own
LAST: Final = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_WAIT_S: Final = 30
_SHOWN: Final = 1_500
VARYING: Final = (
    (re.compile(rb"date: [^\r]*\r\n"), b""),
    (re.compile(rb"\b[0-9a-f]{16}\b"), b"ID"),
    (re.compile(rb"\d{4}-\d\d-\d\dT[0-9:]{8}Z"), b"TIME"),
)


@dataclass(frozen=True, repr=False)
class Stream:
    """What one connection sends, and where it is cut into pieces."""

    whole: bytes
    cuts: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Stream({self.whole[:_SHOWN]!r}, {self.cuts})"

    def as_of(self, device: str) -> list[bytes]:
        """The pieces with a device's ID, which must be as long as DEVICE."""
        whole = self.whole.replace(DEVICE.encode(), device.encode())
        edges = [0, *self.cuts, len(whole)]
        return [whole[start:end] for start, end in itertools.pairwise(edges)]


def _json(value: object) -> bytes:
    return orjson.dumps(value)


_READING: Final = vehicle(DEVICE, 1)
_BODIES: Final = st.sampled_from(
    [
        _json(_READING),
        _json([_READING]),
        _json([vehicle(DEVICE, minute) for minute in range(12)]),
        _json([_READING, {**_READING, "soc": 7}]),
        _json([{**_READING, "soc": 200}, _READING]),
        _json({**_READING, "soc": 200}),
        _json({**_READING, "colour": "red"}),
        _json({**_READING, "timestamp": "2999-01-01T00:00:00Z"}),
        _json(meter(DEVICE, 1)),
        _json([meter(DEVICE, 2), _READING]),
        b"\n".join([_json(_READING), _json(vehicle(DEVICE, 3))]),
        _json([vehicle(DEVICE, minute) for minute in range(150)]),
        gzip.compress(_json(_READING), mtime=0),
        _json(_READING) + b" ",
        b"[" * 600,
        b'{"soc": NaN}',
        b'{"\\ud800": NaN}',
        b'[{"\\ud800": NaN, "\\udfff": 1}, ' + _json(_READING) + b"]",
        b"\xff\xfe",
        b"[]",
        b"{",
        b"",
    ]
)
_TARGETS: Final = st.sampled_from(
    [
        *(["/v1/ingest/vehicle"] * 6),
        "/v1/ingest",
        "/v1/ingest/meter",
        "/v1/ingest/vehicle?strict=true",
        "/v1/ingest/vehicle?strict=perhaps",
        "/v1/ingest/vehicl%65",
        "/v1/ingest/vehicle/",
        "//v1/ingest/vehicle",
        "http://localhost/v1/ingest/vehicle",
        "/v1/ingest/nothing",
        "/livez",
    ]
)
_HOSTS: Final = st.sampled_from([*(["Host: localhost"] * 8), "Host: LOCALHOST:80", "Host: evil.example", "Host:", ""])
_TYPES: Final = st.sampled_from(
    [
        *(["Content-Type: application/json"] * 8),
        "content-type:application/json; charset=utf-8",
        "Content-Type: application/json; charset=latin-1",
        "Content-Type: application/x-ndjson",
        "Content-Type: text/plain",
        "",
    ]
)
_OTHERS: Final = st.lists(
    st.sampled_from(
        [
            "X-Request-ID: mine-1",
            "X-Request-ID: not harmless",
            "Connection: keep-alive",
            "Connection: close",
            "Connection: upgrade",
            "Upgrade: websocket",
            "Expect: 100-continue",
            "Expect: a miracle",
            "Content-Encoding: gzip",
            "Content-Encoding: identity",
            "Content-Encoding: br",
            "Origin: https://page.example",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "Authorization: Bearer vr_nobody",
            "Content-Type: application/json",
            "Accept: */*",
            "User-Agent: meter/1",
            "Bad Header: x",
            "No-Colon",
        ]
    ),
    max_size=2,
)


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    body = draw(_BODIES)
    method = draw(st.sampled_from([*(["POST"] * 9), "PUT", "GET", "post", "HEAD"]))
    version = draw(st.sampled_from([*(["HTTP/1.1"] * 9), "HTTP/1.0", "HTTP/3.7"]))
    framing = draw(st.sampled_from([*(["length"] * 9), "chunked", "none", "signed", "twice"]))
    lines = [f"{method} {draw(_TARGETS)} {version}", draw(_HOSTS), draw(_TYPES), *draw(_OTHERS)]
    length = f"Content-Length: {len(body)}"
    match framing:
        case "length":
            lines.append(length)
        case "twice":
            lines += [length, length]
        case "signed":
            lines.append(f"Content-Length: +{len(body)}")
        case "chunked":
            lines.append("Transfer-Encoding: chunked")
            half = len(body) // 2
            parts = [part for part in (body[:half], body[half:]) if part]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    head = "\r\n".join(line for line in lines if line)
    return head.encode() + b"\r\n\r\n" + body


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """One to four requests on a connection and one that ends it, cut anywhere."""
    whole = b"".join(draw(st.lists(_requests(), min_size=1, max_size=4))) + LAST
    return Stream(whole, tuple(sorted(draw(st.sets(st.integers(1, len(whole) - 1), max_size=4)))))


async def answers(url: str, pieces: Sequence[bytes]) -> tuple[bytes, bool]:
    """All that a router says on one connection, but for what varies, and whether the connection was reset."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    said = bytearray()
    reset = False

    async def listen() -> None:
        while piece := await reader.read(65_536):
            said.extend(piece)

    async with asyncio.timeout(_WAIT_S):
        listening = asyncio.create_task(listen())
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        try:
            await listening
        except ConnectionError:
            reset = True
    writer.close()
    told = bytes(said)
    for pattern, text in VARYING:
        told = pattern.sub(text, told)
    return told, reset
