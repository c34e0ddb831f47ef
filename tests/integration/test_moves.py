"""Moves of buckets with data: what arrives, what is left, and everything that may happen meanwhile."""

from collections.abc import AsyncIterator

import httpx2
import mmh3
import pytest_asyncio

from shards.catalog import Catalog
from shards.moves import Phase
from shards.placement import PlannedMove
from tests.support.ledger import fetch, statuses, stored
from tests.support.moving import Steps, ended, leftovers, owner_of, reached, running, start
from tests.support.readings import ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

BUCKETS = 8


@pytest_asyncio.fixture
async def moving(servers: list[str]) -> AsyncIterator[tuple[TestCluster, httpx2.AsyncClient, Catalog]]:
    """Three shards with readings in every bucket, a router, and the catalog."""
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, in_process(cluster) as client:
        catalog = Catalog(cluster.catalog_dsn)
        readings = [meter(f"D-{n}", minute) for n in range(60) for minute in (1, 2, 3)]
        readings += [vehicle(f"V-{n}", minute) for n in range(60) for minute in (1, 2, 3)]
        await ingest(client, readings)
        yield cluster, client, catalog
        await catalog.close()


def bucket_of(device: str) -> int:
    return mmh3.hash(device, 0, signed=False) % BUCKETS


async def test_a_bucket_moves_with_everything_in_it(
    moving: tuple[TestCluster, httpx2.AsyncClient, Catalog],
) -> None:
    cluster, client, catalog = moving
    before = sorted((device, moment) for _, device, moment in await stored(cluster.shards))
    newest = await statuses(cluster.shards)
    steps = Steps()
    async with running(catalog, steps):
        await start(catalog, [PlannedMove(0, "s1", "s2"), PlannedMove(2, "s3", "s1")])
        assert await ended(catalog) == "done", steps.errors
    assert steps.errors == []
    assert (await owner_of(cluster, 0), await owner_of(cluster, 2)) == ("s2", "s1")
    assert await leftovers(cluster) == []
    after = await stored(cluster.shards)
    assert sorted((device, moment) for _, device, moment in after) == before
    assert await statuses(cluster.shards) == newest
    assert {shard for shard, device, _ in after if bucket_of(device) == 0} == {"s2"}
    device = next(f"D-{n}" for n in range(60) if bucket_of(f"D-{n}") == 0)
    answer = await ingest(client, [meter(device, 3), meter(device, 4)])
    assert (answer["accepted"], answer["duplicates"]) == (1, 1)
    assert (await client.get("/v1/analytics/fleet?from=2026-04-30T00:00:00Z")).json()["isPartial"] is False
    details = await reached(catalog, Phase.DONE)
    print([(m["pause_ms"], m["rows_verified"], m["delta_rows"]) for m in details], steps.names)
    assert all(move["rows_verified"] > 0 and move["pause_ms"] > 0 for move in details)
    assert await fetch(cluster.shards["s2"], "SELECT 1 FROM owned_bucket WHERE bucket = 0")
