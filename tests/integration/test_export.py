"""Export: every reading as it was sent, once, whatever the parts, from all tiers and shards."""

from collections.abc import AsyncIterator
from datetime import date, datetime
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio

from tests.support.readings import at, ingest, meter, register, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import age, as_if_made, tend

DAY = 1440  # minutes


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await as_if_made(made, date(2026, 5, 1), "day")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


def sent() -> list[dict[str, Any]]:
    """Four days of vehicles, and meters of both sorts, some without a voltage."""
    found = [vehicle(f"V-{n}", minute, kwh=minute % 7 / 8) for n in range(5) for minute in range(1, 4 * DAY, 31 + n)]
    found += [meter("M-0", minute, voltage=230.5) for minute in range(1, 4 * DAY, 60)]
    return found + [register("R-0", minute, 1000 + minute) for minute in range(1, 4 * DAY, 60)]


def as_told(readings: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """In the order of an export."""
    mine = [
        {**each, "timestamp": datetime.fromisoformat(each["timestamp"]).strftime("%Y-%m-%dT%H:%M:%SZ")}
        for each in readings
        if key in each
    ]
    return sorted(mine, key=lambda each: (each[key], each["timestamp"]))


async def exported(client: httpx2.AsyncClient, plural: str, **params: Any) -> tuple[list[dict[str, Any]], int]:
    """All lines, and in how many parts they came."""
    url, lines, parts = f"/v1/export/{plural}", list[dict[str, Any]](), 0
    answer = await client.get(url, params=params)
    while True:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        lines += [orjson.loads(line) for line in answer.content.splitlines()]
        parts += 1
        if "next" not in answer.links:
            return lines, parts
        answer = await client.get(answer.links["next"]["url"])


async def test_every_reading_comes_once(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    readings = sent()
    await ingest(client, readings)
    late = [vehicle(f"V-{n}", 2 * DAY + 0.5) for n in range(5)]
    for place in (None, "inside pack", "after publish", None):
        if place is not None:
            await age(cluster, "vehicle", place)
        vehicles = as_told(readings, "vehicleId")
        for limit in (3, 97, 5000):
            lines, parts = await exported(client, "vehicles", limit=limit)
            assert lines == vehicles, (place, limit)
            assert parts >= len(vehicles) // limit
        assert (await exported(client, "meters"))[0] == as_told(readings, "meterId")
        period = {"from": at(DAY), "to": at(2 * DAY + 30)}
        some = [each for each in vehicles if period["from"] < each["timestamp"].replace("Z", "+00:00") <= period["to"]]
        assert (await exported(client, "vehicles", **period, limit=50))[0] == some
        one = [each for each in vehicles if each["vehicleId"] == "V-3"]
        assert (await exported(client, "vehicles", device="V-3", limit=7))[0] == one
        if place == "after publish":
            await tend(cluster)
            await ingest(client, late)
            readings += late
    assert (await exported(client, "vehicles", device="V-unknown"))[0] == []


async def test_what_was_exported_can_be_posted_again(client: httpx2.AsyncClient) -> None:
    await ingest(client, sent())
    lines, _ = await exported(client, "meters")
    told = await ingest(client, lines, "/v1/ingest/meter")
    assert (told["accepted"], told["duplicates"], told["conflicts"]) == (0, len(lines), 0)


@pytest.mark.parametrize(
    ("params", "pointer"),
    [({"limit": 5001}, "limit"), ({"cursor": "x"}, "cursor"), ({"device": "a b"}, "device"), ({"from": "x"}, "from")],
)
async def test_a_query_that_cannot_be_is_refused(
    client: httpx2.AsyncClient, params: dict[str, Any], pointer: str
) -> None:
    answer = await client.get("/v1/export/meters", params=params)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
