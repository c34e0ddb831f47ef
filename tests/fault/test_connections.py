"""Connections that are slow, silent, endless or never read: ended within their limits, and nobody else notices."""

import asyncio
import contextlib
import gzip
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import httpx2
import orjson
import psutil
import pytest
import pytest_asyncio

from tests.support.processes import eventually
from tests.support.readings import ingest, meter
from tests.support.routers import RouterProcess, router_process
from tests.support.servers import TestCluster

LIMITS = {
    "VOLTROUTE_HEADER_TIMEOUT_S": "1",
    "VOLTROUTE_WRITE_TIMEOUT_S": "1",
    "VOLTROUTE_BODY_IDLE_S": "1",
    "VOLTROUTE_IDLE_TIMEOUT_S": "1",
    "VOLTROUTE_INGEST_TIMEOUT_S": "1",
    "VOLTROUTE_CONNECTIONS_MAX": "200",
    "VOLTROUTE_HEADER_BYTES_MAX": "4096",
    "VOLTROUTE_RUNNER": "false",
}
HEAD = b"POST /v1/ingest/meter HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(cluster: TestCluster) -> AsyncIterator[RouterProcess]:
    async with router_process(cluster.catalog_dsn, **LIMITS) as made:
        yield made


async def connect(router: RouterProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(router.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """All that the router says before it closes the connection; the wait has a limit."""
    pieces = []
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):  # closed with something of ours unread
            while piece := await reader.read(65536):
                pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/ingest HT", HEAD])
async def test_headers_that_do_not_come_end_the_connection(router: RouterProcess, sent: bytes) -> None:
    reader, writer = await connect(router)
    writer.write(sent)
    assert (await answer_of(reader)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_endless_headers_are_refused_while_they_come(router: RouterProcess) -> None:
    reader, writer = await connect(router)
    writer.write(HEAD)
    sent = 0
    answer = asyncio.create_task(answer_of(reader))
    while not answer.done() and sent < 2**22:
        writer.write(b"X-Padding: " + b"x" * 1000 + b"\r\n")
        sent += 1013
        await asyncio.sleep(0)
        if writer.is_closing():
            break
    told = await answer
    assert told.startswith(b"HTTP/1.1 431 ") or not told  # a reset can overtake the answer
    assert sent < 2**22


async def test_headers_that_arrive_with_a_large_body_are_not_counted_with_it(router: RouterProcess) -> None:
    async with httpx2.AsyncClient(base_url=router.url) as client:
        answer = await ingest(client, [meter(f"LARGE-{n}", 1) for n in range(500)])
    assert answer["accepted"] == 500


async def test_a_slow_upload_is_stored(router: RouterProcess) -> None:
    """It takes longer than the answer may: time counts from the last byte that came."""

    async def body() -> AsyncIterator[bytes]:
        for number in range(4):
            yield b'{"meterId":"SLOW-%d","kwhConsumedAc":1,"voltage":230,' % number
            await asyncio.sleep(0.3)  # the link is slow: that is what is tested
            yield b'"timestamp":"2026-05-01T00:00:00Z"}\n' + b" " * 1000

    async with httpx2.AsyncClient(base_url=router.url, timeout=20) as client:
        headers = {"Content-Type": "application/x-ndjson"}
        answer = await client.post("/v1/ingest/meter", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 4)


@pytest.mark.parametrize("piece", [b"", b"{"])
async def test_a_body_that_stalls_is_answered_408(router: RouterProcess, piece: bytes) -> None:
    """Which devices repeat, as they would not a 400."""
    reader, writer = await connect(router)
    writer.write(HEAD + b"Content-Length: 100000\r\n\r\n")
    answer = asyncio.create_task(answer_of(reader))
    while piece and not answer.done():  # a byte now and then does not keep it open
        writer.write(piece)
        await asyncio.sleep(0.1)
    text = await answer
    assert text.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-too-slow" in text
    assert re.search(rb"retry-after: [123]\r", text.lower())
    writer.close()


async def test_who_never_reads_is_cut_off(router: RouterProcess) -> None:
    reader, writer = await connect(router)
    transport = writer.transport
    transport.pause_reading()  # type: ignore[attr-defined]
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with asyncio.timeout(30):
        while not transport.is_closing():
            writer.write(request * 100)
            await asyncio.sleep(0.05)
    del reader


async def test_more_connections_than_allowed_are_told_so_and_the_others_go_on(router: RouterProcess) -> None:
    async with httpx2.AsyncClient(base_url=router.url, timeout=20) as client:
        await ingest(client, meter("BESIDE", 1))
        opened = [await connect(router) for _ in range(205)]
        refused = [await answer_of(reader) for reader, _ in opened[-6:]]
        assert sum(text.startswith(b"HTTP/1.1 503 ") for text in refused) >= 5
        await ingest(client, meter("BESIDE", 2))
        for reader, writer in opened:
            await answer_of(reader)
            writer.close()
        metrics = (await client.get("/metrics")).text
        assert "voltroute_connections 1.0" in metrics


async def test_an_idle_connection_is_closed(router: RouterProcess) -> None:
    reader, writer = await connect(router)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await answer_of(reader)).endswith(b'{"live":true}')
    writer.close()


@pytest.mark.parametrize(
    ("request_", "more"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
        (b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", b"x"),
    ],
    ids=["between requests", "of a body that nobody reads"],
)
async def test_bytes_that_are_no_request_keep_no_connection_open(
    router: RouterProcess, request_: bytes, more: bytes
) -> None:
    reader, writer = await connect(router)
    writer.write(request_)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 ")
    writer.write(more)
    await answer_of(reader)
    writer.close()


async def test_a_small_body_that_was_a_large_one_is_not_held_while_its_shard_is_waited_for(
    cluster: TestCluster, router: RouterProcess
) -> None:
    padded = gzip.compress(orjson.dumps(meter(cluster.devices_of("s1", 1)[0])) + b" " * 8_000_000)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    process = psutil.Process(router.process.pid)
    before = highest = process.memory_info().rss
    locker = await asyncpg.connect(cluster.shards["s1"])
    async with httpx2.AsyncClient(base_url=router.url, timeout=60) as client, locker.transaction():
        await locker.execute("LOCK TABLE meter_current_status IN ACCESS EXCLUSIVE MODE")
        posts = [client.post("/v1/ingest/meter", content=padded, headers=headers) for _ in range(60)]
        waiting = asyncio.gather(*posts)
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=0.02)
            highest = max(highest, process.memory_info().rss)
    await locker.close()
    # 408 on a machine that is busy: 60 bodies of 8 KB do not come within a second there. 429: nor are all unfolded in
    # one, as that is done one after the other.
    assert {answer.status_code for answer in await waiting} - {408, 429} == {503}
    assert highest - before < 60 * 8_000_000 / 3


async def test_another_host_is_refused(router: RouterProcess) -> None:
    """As a page in a browser would, that had its own name point to loopback."""
    async with httpx2.AsyncClient(base_url=router.url) as client:
        for path in ("/v1/shards", "/v1/ingest", "/docs"):
            answer = await client.request(
                "POST" if "ingest" in path else "GET", path, headers={"Host": "evil.example:80"}
            )
            assert (answer.status_code, answer.json()["type"]) == (421, "/problems/forbidden-host")
        assert (await client.get("/livez", headers={"Host": "localhost:1"})).status_code == 200


async def test_small_bodies_of_very_many_values_are_refused(router: RouterProcess) -> None:
    zeros = b"[" + b"0," * 4_000_000 + b"0]"
    bodies = {
        "array": (gzip.compress(zeros), "application/json"),
        "lines": (gzip.compress(b"\n" * 8_000_000), "application/x-ndjson"),
        "line": (gzip.compress(b"[" + b"{}," * 2_600_000 + b"NaN]"), "application/x-ndjson"),
        "members": (gzip.compress(b"") * 100_000, "application/json"),
    }
    async with httpx2.AsyncClient(base_url=router.url, timeout=60) as client:
        for body, kind in bodies.values():
            headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
            answer = await client.post("/v1/ingest/meter", content=body, headers=headers)
            assert answer.status_code == 413, answer.text
        many = gzip.compress(b'{"meterId":"GZ","kwhConsumedAc":1,"voltage":230,') + gzip.compress(
            b'"timestamp":"2026-05-01T00:00:00Z"}'
        )
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert (await client.post("/v1/ingest/meter", content=many, headers=headers)).status_code == 200


async def test_sighup_drains(cluster: TestCluster) -> None:
    async with router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false", VOLTROUTE_DRAIN_DELAY_S="1") as router:
        async with httpx2.AsyncClient(base_url=router.url) as client:
            await ingest(client, meter("HUP", 1))
            router.process.send_signal(1)
            async with asyncio.timeout(10):
                while (await client.get("/readyz")).status_code != 503:
                    pass
            await ingest(client, meter("HUP", 2))
        async with asyncio.timeout(30):
            assert await router.process.wait() == 0
        await eventually(lambda: router.process.returncode == 0)
