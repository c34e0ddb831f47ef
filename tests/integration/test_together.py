"""Requests that come in one turn of the loop are taken together, and answered as if each had come alone."""

import asyncio
import itertools
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import orjson
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.ledger import fetch
from tests.support.raw_http import VARYING
from tests.support.readings import at
from tests.support.routers import RouterProcess, router_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import new_key, new_tenant

SIDES: Final = ("D", "A")  # direct, ASGI
DEVICES: Final = 6
_numbers = itertools.count()
Answers = Counter[bytes]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def closed(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def routers(closed: TestCluster) -> AsyncIterator[dict[str, RouterProcess]]:
    common = {"VOLTROUTE_RUNNER": "false", "VOLTROUTE_BATCH_READINGS_MAX": "5"}
    async with (
        router_process(closed.catalog_dsn, **common, VOLTROUTE_DIRECT_PATH="true") as direct,
        router_process(closed.catalog_dsn, **common, VOLTROUTE_DIRECT_PATH="false") as asgi,
    ):
        yield dict(zip(SIDES, (direct, asgi), strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keys(closed: TestCluster) -> dict[str, str]:
    made = {
        "all": await new_key(closed),
        "of one": await new_key(closed, prefix="S-0"),
        "tenant": await new_tenant(closed, "acme"),
        "limited": await new_key(closed, rate=1_000_000),
    }
    return {name: key.text for name, key in made.items()}


def request(path: str, body: bytes, key: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {key}", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def paused(router: RouterProcess) -> AsyncIterator[None]:
    """What is sent meanwhile is here all at once when it goes on."""
    router.process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{router.process.pid}/stat")
    try:
        async with asyncio.timeout(20):
            while stat.read_text().rpartition(")")[2].split()[0] != "T":  # the call does not wait for it
                await asyncio.sleep(0.001)
        yield
    finally:
        router.process.send_signal(signal.SIGCONT)


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert found is not None, head
    whole = head + await reader.readexactly(int(found[1]))
    for pattern, shown in VARYING:
        whole = pattern.sub(shown, whole)
    return whole


@asynccontextmanager
async def sent_at_once(router: RouterProcess, requests: Sequence[bytes]) -> AsyncIterator[list[asyncio.Task[bytes]]]:
    """Requests that are all there in one turn of the router's loop, each on a connection of its own; their answers."""
    parts = urlsplit(router.url)
    opened = [await asyncio.open_connection(parts.hostname, parts.port) for _ in requests]
    try:
        async with asyncio.timeout(60):
            for reader, writer in opened:  # so that each of them is accepted
                writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await answer(reader)
            async with paused(router):
                for (_, writer), each in zip(opened, requests, strict=True):
                    writer.write(each)
                    await writer.drain()
            async with asyncio.TaskGroup() as group:
                yield [group.create_task(answer(reader)) for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def at_once(router: RouterProcess, requests: Sequence[bytes]) -> list[bytes]:
    async with sent_at_once(router, requests) as answers:
        return [await each for each in answers]


def body_of(what: str, device: str, minute: int) -> bytes:
    reading: dict[str, Any] = {
        "vehicleId": device,
        "soc": 50.0,
        "kwhDeliveredDc": 0.5,
        "batteryTemp": 25.0,
        "timestamp": at(minute),
    }
    more: dict[str, dict[str, Any]] = {
        "other values": {"soc": 51.0},
        "out of range": {"soc": 200},
        "unknown field": {"colour": "red"},
        "in the future": {"timestamp": "2999-01-01T00:00:00Z"},
        "foreign letter": {"vehicleId": device + "\x7f"},
        "rejected later": {"soc": None},
    }
    whole = orjson.dumps({**reading, **more.get(what, {})})
    if what == "two":
        return whole + b"," + whole
    if what == "lines":
        return orjson.dumps(reading, option=orjson.OPT_INDENT_2)
    if what == "array":
        return b"[" + whole + b"]"
    if what == "half":
        return whole[:-5]
    if what == "meter":
        return orjson.dumps({"meterId": device, "kwhConsumedAc": 0.5, "voltage": 230.0, "timestamp": at(minute)})
    return whole


PLAIN: Final = ["plain"] * 12
ODD: Final = ["other values", "out of range", "unknown field", "in the future", "foreign letter", "two", "lines"]
POSTS: Final = st.tuples(
    st.sampled_from([*PLAIN, *ODD, "array", "half", "meter", "rejected later"]),
    st.integers(0, DEVICES - 1),
    st.integers(0, 3),
    st.sampled_from(["/v1/ingest/vehicle"] * 4 + ["/v1/ingest", "/v1/ingest/meter"]),
    st.sampled_from(["all", "all", "all", "of one", "tenant", "limited"]),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(posts=st.lists(POSTS, min_size=1, max_size=24))
async def test_any_requests_at_once(
    routers: dict[str, RouterProcess], keys: dict[str, str], posts: list[tuple[str, int, int, str, str]]
) -> None:
    """Who of two with one key comes first is a matter of chance, so answers are compared as a whole by key."""
    number = next(_numbers)
    told: list[dict[tuple[int, int, bool], Answers]] = []
    for side, router in routers.items():
        requests, places = [], []
        for what, device, minute, path, key in posts:
            name = f"S-{device}{side}{number}"
            requests.append(request(path, body_of(what, name, minute), keys[key]))
            places.append((device, minute, key == "tenant"))
        found: dict[tuple[int, int, bool], Answers] = {}
        for place, each in zip(places, await at_once(router, requests), strict=True):
            found.setdefault(place, Counter())[each.replace(f"{side}{number}".encode(), b"-")] += 1
        told.append(found)
    direct, asgi = told
    for place, mine in direct.items():
        of_place = {post[0] for post in posts if (post[1], post[2], post[4] == "tenant") == place}
        if of_place & {"other values"} and len(of_place) > 1:
            # Which of the values is stored decides which requests are conflicts: their number is all that is fixed.
            assert sum(mine.values()) == sum(asgi[place].values())
        else:
            assert mine == asgi[place]


async def test_plain_ones_are_one_batch(
    routers: dict[str, RouterProcess], closed: TestCluster, keys: dict[str, str]
) -> None:
    """And every one is stored."""
    names = [f"ONE-{number}" for number in range(40)]
    requests = [request("/v1/ingest/vehicle", body_of("plain", name, 0), keys["all"]) for name in names]
    before = await transactions(routers["D"])
    for each in await at_once(routers["D"], requests):
        assert each.endswith(b'{"accepted":1,"duplicates":0,"conflicts":0,"rejected":0,"errors":[]}'), each
    assert await transactions(routers["D"]) - before <= 40 / 5 + len(closed.shards)
    stored = [await fetch(dsn, "SELECT vehicle_id FROM vehicle_telemetry_history") for dsn in closed.shards.values()]
    assert set(names) <= {row[0] for rows in stored for row in rows}


async def transactions(router: RouterProcess) -> float:
    """Committed so far."""
    parts = urlsplit(router.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return sum(
        float(found) for found in re.findall(r'voltroute_batch_seconds_count\{.*outcome="committed".*\} (\S+)', text)
    )


async def test_a_queue_without_room_refuses_the_rest(closed: TestCluster, keys: dict[str, str]) -> None:
    """All wait behind a lock: what the queue has no room for is told so, and what waits is stored when it is gone."""
    limits = {"VOLTROUTE_QUEUE_READINGS_MAX": "8", "VOLTROUTE_INGEST_TIMEOUT_S": "60", "VOLTROUTE_RUNNER": "false"}
    shard = closed.owner("LOCKED-0")
    names = [name for number in range(400) if closed.owner(name := f"LOCKED-{number}") == shard][:20]
    requests = [request("/v1/ingest/vehicle", body_of("plain", name, 0), keys["all"]) for name in names]
    async with router_process(closed.catalog_dsn, **limits) as router:
        connection = await asyncpg.connect(closed.shards[shard])
        try:
            await connection.execute("BEGIN; LOCK TABLE vehicle_current_status IN SHARE MODE")
            async with sent_at_once(router, requests) as answers:
                refused = [await each for each in itertools.islice(asyncio.as_completed(answers), 12)]
                await connection.execute("ROLLBACK")
            found = Counter(each.result().split(b" ", 2)[1] for each in answers)
        finally:
            await connection.close()
        assert {each.split(b" ", 2)[1] for each in refused} == {b"429"}
        assert found == {b"200": 8, b"429": 12}


async def test_behind_a_lock_a_deadline_refuses_all(closed: TestCluster, keys: dict[str, str]) -> None:
    """Each is told that it was not stored, and is stored when it comes again."""
    limits = {"VOLTROUTE_INGEST_TIMEOUT_S": "0.5", "VOLTROUTE_RUNNER": "false"}
    names = [f"LATE-{number}" for number in range(8)]
    requests = [request("/v1/ingest/vehicle", body_of("plain", name, 0), keys["all"]) for name in names]
    async with router_process(closed.catalog_dsn, **limits) as router:
        connections = [await asyncpg.connect(dsn) for dsn in closed.shards.values()]
        try:
            for connection in connections:
                await connection.execute("BEGIN; LOCK TABLE vehicle_current_status IN SHARE MODE")
            found = await at_once(router, requests)
        finally:
            await asyncio.gather(*(connection.close() for connection in connections))
        assert {each.split(b" ", 2)[1] for each in found} == {b"503"}
        async with asyncio.timeout(60):  # the deadline is short for a machine that is busy, too
            while {each.split(b" ", 2)[1] for each in await at_once(router, requests)} != {b"200"}:
                pass
