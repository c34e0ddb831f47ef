"""The direct path answers as ASGI does, byte for byte, whatever a connection sends."""

import asyncio
import gc
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import orjson
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings

from router import server
from router.http.posts import Post
from router.ingest.endpoint import IngestEndpoint
from shards.catalog.keys import Right
from tests.support.ledger import fetch
from tests.support.raw_http import DEVICE, LAST, Stream, answers, streams
from tests.support.readings import vehicle
from tests.support.routers import RouterProcess, client_settings, router_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import new_key, new_tenant

LIMITS: Final = {
    "VOLTROUTE_HEADER_TIMEOUT_S": "0.2",
    "VOLTROUTE_BODY_IDLE_S": "0.2",
    "VOLTROUTE_IDLE_TIMEOUT_S": "0.5",
    "VOLTROUTE_RUNNER": "false",
    "PYTHONHASHSEED": "0",  # Starlette's Allow header is a set
}
NOT_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\n"
    b"connection: close\r\n\r\nInvalid HTTP request received."
)
WAIT: Final = re.compile(rb"retry-after: \d+\r\n")
SIDES: Final = ("D", "A")  # direct, ASGI
STALLS_MAX: Final = 3
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def routers(cluster: TestCluster) -> AsyncIterator[dict[str, RouterProcess]]:
    async with (
        router_process(cluster.catalog_dsn, **LIMITS, VOLTROUTE_DIRECT_PATH="true") as direct,
        router_process(cluster.catalog_dsn, **LIMITS, VOLTROUTE_DIRECT_PATH="false") as asgi,
    ):
        yield dict(zip(SIDES, (direct, asgi), strict=True))


def device_of(side: str, number: int) -> str:
    return f"{side}{number:0{len(DEVICE) - 1}d}"


async def both(routers: dict[str, RouterProcess], stream: Stream) -> list[tuple[bytes, bool]]:
    number = next(_numbers)
    found = []
    for side, router in routers.items():
        device = device_of(side, number)
        told, reset = await answers(router.url, stream.as_of(device))
        found.append((told.replace(device.encode(), b"DEVICE"), reset))
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stream=streams())
async def test_any_stream_of_bytes(routers: dict[str, RouterProcess], stream: Stream) -> None:
    direct, asgi = await compared(routers, stream)
    for _ in range(STALLS_MAX):
        cut_off = direct.startswith(asgi) or asgi.startswith(direct)
        if direct == asgi or not (cut_off or b" 408 " in direct + asgi):
            break
        # A machine that stands still for as long as a client may is a slow client to one of the two, or an idle one.
        direct, asgi = await compared(routers, stream)
    assert direct == asgi


async def compared(routers: dict[str, RouterProcess], stream: Stream) -> tuple[bytes, bytes]:
    found = await both(routers, stream)
    direct, asgi = (told.replace(NOT_HTTP, b"") for told, _ in found)
    if any(reset or NOT_HTTP in told for told, reset in found):
        # What is no HTTP ends the connection at once; whether what came before it is answered first, or at all, is a
        # matter of how the bytes arrive, on either way.
        length = min(len(direct), len(asgi))
        return direct[:length], asgi[:length]
    return direct, asgi


def posted(device: str, minute: int, *headers: str, last: bool = False) -> bytes:
    body = orjson.dumps(vehicle(device, minute))
    lines = ["POST /v1/ingest/vehicle HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    whole = "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body
    return whole + LAST if last else whole


async def test_keys_let_in_and_refuse_alike(servers: list[str]) -> None:
    async with new_cluster(servers, shards=2, buckets=4) as closed:
        keys = {
            "all": await new_key(closed),
            "reader": await new_key(closed, scopes=(Right.READ,)),
            "narrow": await new_key(closed, prefix="X"),
            "wide": await new_key(closed, prefix="DEVICE"),
            "other": await new_tenant(closed, "acme"),
        }
        senders = ["X-Nobody: 1", "Authorization: Basic x", "Authorization: Bearer vr_wrong"]
        senders += [f"Authorization: Bearer {key.text}" for key in keys.values()]
        told: list[list[bytes]] = []
        for path in ("true", "false"):
            slow = await new_key(closed, rate=0.01)  # of this side alone: what it owes is the router's to know
            own = [*senders, *([f"Authorization: Bearer {slow.text}"] * 3)]
            async with router_process(closed.catalog_dsn, **LIMITS, VOLTROUTE_DIRECT_PATH=path) as router:
                device = f"DEVICE-{path[:4]}"
                streams_ = [posted(device, minute, sender, last=True) for minute, sender in enumerate(own)]
                said = [(await answers(router.url, [stream]))[0] for stream in streams_]
                told.append([WAIT.sub(b"", each.replace(device.encode(), b"DEVICE")) for each in said])
        assert told[0] == told[1]
        statuses = [int(each.split(b" ", 2)[1]) for each in told[0]]
        assert statuses == [401, 401, 401, 200, 403, 422, 200, 200, 200, 429, 429]


@asynccontextmanager
async def serving(cluster: TestCluster, **overrides: object) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A router in this process, on a port: its URL, and the event that stops it."""
    listener, stopping = server.listen("127.0.0.1", 0), asyncio.Event()
    listening = asyncio.Event()

    async def say(_url: str, has_map: bool) -> None:
        if has_map:
            listening.set()

    running = asyncio.create_task(server.serve(client_settings(cluster, **overrides), listener, stopping, say))
    try:
        async with asyncio.timeout(20):
            await listening.wait()
        yield server.url_of(listener), stopping
    finally:
        stopping.set()
        async with asyncio.timeout(20):
            await running


@pytest.mark.parametrize(
    ("headers", "direct"),
    [
        ((), True),
        (("Accept: */*", "User-Agent: meter/1", "Connection: keep-alive", "X-Request-ID: mine"), True),
        (("Expect: 100-continue",), False),
        (("Content-Encoding: identity",), False),
        (("Connection: close",), False),
        (("Origin: https://page.example",), False),
    ],
)
async def test_what_goes_directly(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...], direct: bool
) -> None:
    called = []
    endpoint = IngestEndpoint.__call__

    async def spy(self: IngestEndpoint, *arguments: Any) -> int:
        called.append(self)
        return await endpoint(self, *arguments)

    monkeypatch.setattr(IngestEndpoint, "__call__", spy)
    async with serving(cluster, runner=False) as (url, _):
        told, _ = await answers(url, [posted(device_of("W", next(_numbers)), 1, *headers, last=True)])
    assert b'"accepted":1' in told
    assert (not called) is direct


async def test_an_answered_request_holds_nothing(cluster: TestCluster) -> None:
    """Connections stay open between minutes: what a request was told of a thousand items must not."""
    body = b"[" + orjson.dumps(vehicle(device_of("R", next(_numbers)), 1)) + b",0" * 1_000 + b"]"
    async with serving(cluster, runner=False) as (url, _):
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = "POST /v1/ingest/vehicle HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        posts = [each for each in gc.get_objects() if isinstance(each, Post)]
        assert posts
        assert all(not vars(each)["_outcome"].errors and not each.body for each in posts)
        writer.close()


@asynccontextmanager
async def held(dsn: str) -> AsyncIterator[None]:
    """A shard whose statuses nobody can write."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE vehicle_current_status IN SHARE MODE")
            yield
    finally:
        await connection.close()


async def blocked(dsn: str) -> None:
    """Wait until somebody waits for the lock."""
    async with asyncio.timeout(20):
        while not (await fetch(dsn, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
            await asyncio.sleep(0.01)


async def refused_connection(url: str) -> None:
    """Wait until nobody listens any more."""
    parts = urlsplit(url)
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            except ConnectionError:
                return
            writer.close()
            await asyncio.sleep(0.01)


async def test_a_deadline_is_kept_and_a_stopping_router_finishes(cluster: TestCluster) -> None:
    device = device_of("H", next(_numbers))
    dsn = cluster.shards[cluster.owner(device)]
    async with serving(cluster, runner=False, ingest_timeout_s=0.3, drain_timeout_s=10.0) as (url, stopping):
        async with held(dsn):
            told, _ = await answers(url, [posted(device, 1, last=True)])
            assert told.startswith(b"HTTP/1.1 503 "), told
            assert b"shard-unavailable" in told
        told, _ = await answers(url, [posted(device, 1, last=True)])
        assert told.startswith(b"HTTP/1.1 200 "), told
    async with serving(cluster, runner=False, ingest_timeout_s=10.0, drain_timeout_s=10.0) as (url, stopping):
        async with held(dsn):
            waiting = asyncio.create_task(answers(url, [posted(device, 2)]))
            await blocked(dsn)
            stopping.set()
            await refused_connection(url)
        told, _ = await waiting
        assert b"\r\nconnection: close\r\n" in told
        assert told.endswith(b'{"accepted":1,"duplicates":0,"conflicts":0,"rejected":0,"errors":[]}')


async def test_answers_that_nobody_reads_hold_a_connection_up_and_lose_nothing(cluster: TestCluster) -> None:
    """A thousand requests at once, and the first answer is read when the last one is sent."""
    device, count = device_of("P", next(_numbers)), 1_000
    async with serving(cluster, runner=False) as (url, _):
        told, _ = await answers(url, [b"".join(posted(device, minute) for minute in range(count)) + LAST])
    assert told.count(b'{"accepted":1,') == count
    ((stored,),) = await fetch(
        cluster.shards[cluster.owner(device)],
        "SELECT count(*) FROM vehicle_telemetry_history WHERE vehicle_id = $1",
        device,
    )
    assert stored == count
