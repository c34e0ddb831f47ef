"""Months that leave their shards: what is told of them, what is refused, and that all of it comes back."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest_asyncio

from tests.support.archiving import DROPPED, left, restored, use
from tests.support.ledger import execute
from tests.support.months import DAY, DEVICES, LEFT, PERIOD, packed, states, sums, total
from tests.support.readings import ingest, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import answers


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str], tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await use(made, f"file://{tmp_path}/archive")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def test_months_leave_and_come_back(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    of_hours, of_all = await packed(client, cluster)
    await left(cluster)
    assert await total(cluster, LEFT) == 0
    assert await states(cluster) == {"dropped"}
    assert await sums(client) == of_hours

    for path, params in (
        ("/v1/vehicles/V-0/history", {"from": "2026-06-30T23:58:00Z"}),
        ("/v1/analytics/fleet", {"from": "2026-05-10T00:00:01Z", "to": "2026-05-11T00:00:00Z"}),
        ("/v1/analytics/performance/V-1", {"from": "2026-05-10T00:00:01Z", "to": "2026-05-10T01:00:00Z"}),
        ("/v1/analytics/activity", {"since": "2026-05-10T00:00:00Z", "limit": "1000"}),
        ("/v1/export/vehicles", {}),
    ):
        refused = await client.get(path, params=params)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/archived"), refused.text
        assert "voltroute archive restore" in refused.json()["detail"]
    most: dict[str, str] = {"limit": "1000"}
    last = (await client.get("/v1/vehicles/V-1/history", params=most)).json()
    assert (last["next"], last["archivedUntil"]) == (None, "2026-07-01T00:00:00Z")
    assert last["items"][-1]["timestamp"] == "2026-07-01T00:00:00Z"
    first = (await client.get("/v1/vehicles/V-1/history", params={"limit": 3})).json()
    assert (first["next"] is None, first["archivedUntil"]) == (False, None)
    since = {"from": "2026-06-30T23:59:59.999999Z", **most}
    assert len((await client.get("/v1/vehicles/V-1/history", params=since)).json()["items"]) == len(last["items"])

    await restored(cluster)
    assert await answers(client, PERIOD, DEVICES) == of_all
    assert await sums(client) == of_hours
    await left(cluster)
    assert await states(cluster) == {"restored"}
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET restored_until = now()")
    await left(cluster)
    assert await total(cluster, LEFT) == 0
    assert await sums(client) == of_hours
    assert await states(cluster) == {"dropped"}


async def test_what_comes_too_late_is_refused(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Whole requests, parts of them; before the archive, within it, and behind it."""
    of_hours, _ = await packed(client, cluster)
    late = [vehicle("V-0", 5 * DAY + 0.5), vehicle("V-9", 40 * DAY + 0.5)]
    assert (await ingest(client, late))["accepted"] == 2  # sealed with them
    await left(cluster)
    for body in (vehicle("V-0", 6 * DAY), [vehicle("V-7", -DAY), vehicle("V-1", 40 * DAY)]):
        refused = await client.post("/v1/ingest/vehicle", json=body)
        assert refused.status_code == 422, refused.text
        assert [each["code"] for each in refused.json()["errors"]] == ["too_old"] * (
            len(body) if isinstance(body, list) else 1
        )
    now = {**vehicle("V-0"), "timestamp": datetime.now(UTC).isoformat()}
    told = await ingest(
        client, [vehicle("V-0", 7 * DAY), now, vehicle("V-0", 62 * DAY + 0.5), vehicle("V-0", 62 * DAY + 0.5)]
    )
    assert (told["accepted"], told["duplicates"], told["rejected"]) == (2, 1, 1)
    assert [(each["index"], each["code"]) for each in told["errors"]] == [(0, "too_old")]
    await restored(cluster)
    again = await client.post("/v1/ingest/vehicle", json=vehicle("V-0", 6 * DAY))
    assert (again.status_code, again.json()["errors"][0]["code"]) == (422, "too_old")
    day = {"from": "2026-05-06T00:00:00Z", "to": "2026-05-07T00:00:00Z", "limit": "1000"}
    items = (await client.get("/v1/vehicles/V-0/history", params=day)).json()["items"]
    assert "2026-05-06T00:00:30Z" in [each["timestamp"] for each in items]
    assert of_hours != await sums(client)


async def test_months_are_dropped_for_good(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    of_hours, _ = await packed(client, cluster)
    await left(cluster, policies=DROPPED)
    assert await total(cluster, LEFT) == 0
    assert await sums(client) == of_hours
    assert await states(cluster) == {"expired"}
    refused = await client.get("/v1/vehicles/V-0/history", params={"from": "2026-06-30T00:00:00Z"})
    assert refused.json()["type"] == "/problems/archived"
