"""A shard whose disk is full: its devices are told to come again, everybody can see why, and nothing is lost."""

import asyncio
from typing import Any

import httpx2
import pytest
import structlog

from shards.buckets import bucket_of
from shards.catalog.database import Catalog
from shards.moves.phases import Move
from shards.moves.placement import PlannedMove
from shards.operations import check, doctor
from tests.support.ledger import fetch, stored
from tests.support.moving import Steps, ended, leftovers, owner_of, running, start
from tests.support.readings import ingest, meter
from tests.support.routers import in_process
from tests.support.servers import new_cluster
from tests.support.small_disk import ROOM_FOR_SESSIONS, on_small_disk

ENOUGH = 400  # readings of a device: more than its pages have room for


def day_of(device: str, day: int) -> list[dict[str, Any]]:
    """Readings that no earlier page has room for."""
    return [meter(device, day * 1440 + minute) for minute in range(ENOUGH)]


async def post(client: httpx2.AsyncClient, readings: list[dict[str, Any]]) -> httpx2.Response:
    return await client.post("/v1/ingest/meter", json=readings)


async def test_a_full_disk_is_told_and_costs_its_shard_only(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster, on_small_disk(cluster, "s1") as disk:
        mine, other = cluster.devices_of("s1", 1)[0], cluster.devices_of("s2", 1)[0]
        with structlog.testing.capture_logs() as lines:
            async with in_process(cluster, runner=False) as client:
                assert (await post(client, day_of(mine, 0) + day_of(other, 0))).status_code == 200
                # A session that reads is there: a new one may need room (see below).
                assert (await client.get(f"/v1/meters/{mine}/history?limit=1")).status_code == 200
                disk.fill()
                mixed = await post(client, day_of(mine, 1) + day_of(other, 1))
                ready, metrics = (await client.get("/readyz")).json(), (await client.get("/metrics")).text
                found = {each.name: each for each in await doctor.examine(cluster.catalog_dsn)}
                history = await client.get(f"/v1/meters/{mine}/history?limit=1")
                disk.make_room()
                async with asyncio.timeout(30):
                    while (await post(client, day_of(mine, 1))).status_code != 200:
                        await asyncio.sleep(0.05)
        assert mixed.status_code == 503
        assert int(mixed.headers["retry-after"]) >= 1
        assert (mixed.json()["accepted"], mixed.json()["unavailable"]) == (ENOUGH, ENOUGH)
        assert "extend" not in mixed.text
        # Told at each change: a piece of the request that still found room makes it two.
        assert {line["cause"] for line in lines if line["event"] == "shard_unavailable"} == {"disk_full"}
        assert [ready["shards"][name]["writes"] for name in cluster.shards] == [False, True, True]
        assert 'voltroute_shard_unavailable{cause="disk_full",login="writer",shard="s1"} 1.0' in metrics
        # Where PostgreSQL has to write its cache of relations again, a full disk lets nobody in: then that is told.
        told = found.get("s1 disk") or found["s1 owner"]
        assert (told.ok, "make room" in told.remedy) == (False, True), told
        assert found["s2 disk"].ok
        assert history.status_code == 200  # reading needs no room
        kept = dict.fromkeys((mine, other), 2 * ENOUGH)
        rows = [device for _, device, _ in await stored(cluster.shards)]
        assert {device: rows.count(device) for device in kept} == kept


async def test_no_move_begins_to_a_full_disk(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster, on_small_disk(cluster, "s2") as disk:
        catalog = Catalog(cluster.catalog_dsn)
        disk.fill(spare=ROOM_FOR_SESSIONS)
        await start(catalog, [PlannedMove(0, "s1", "s2")])
        async with running(catalog):
            assert await ended(catalog) == "failed"
        assert await leftovers(cluster) == []
        told = (await fetch(cluster.catalog_dsn, "SELECT last_error FROM move"))[0]["last_error"]
        assert told == "s2 has 0 MiB free, bucket 0 needs 1 MiB"
        await catalog.close()


async def test_a_move_to_a_disk_that_lets_nobody_in_fails_and_leaves_nothing(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster, on_small_disk(cluster, "s2") as disk:
        catalog, note = Catalog(cluster.catalog_dsn), None
        disk.fill()
        disk.let_nobody_in()
        await start(catalog, [PlannedMove(0, "s1", "s2")])
        async with running(catalog):
            async with asyncio.timeout(30):
                while not (note := (await fetch(cluster.catalog_dsn, "SELECT note FROM rebalance"))[0]["note"]):
                    await asyncio.sleep(0.05)
            assert note.startswith("s2 has no room at all: ")
            disk.make_room()  # whether an earlier attempt left something there can be seen only now
            assert await ended(catalog) == "failed"
        assert await leftovers(cluster) == []
        assert await owner_of(cluster, 0) == "s1"
        await catalog.close()


@pytest.mark.parametrize("full", ["s2", "s1"], ids=["target", "source"])
async def test_a_move_waits_for_room_and_goes_on(servers: list[str], full: str) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster, on_small_disk(cluster, full) as disk:
        catalog, move = Catalog(cluster.catalog_dsn), PlannedMove(0, "s1", "s2")
        async with in_process(cluster, runner=False) as client:
            device = next(d for d in cluster.devices_of("s1", 30) if bucket_of(d, 8) == 0)
            for day in range(5):
                await ingest(client, day_of(device, day), "/v1/ingest/meter")

        async def fill(_move: Move) -> None:
            disk.fill()

        await start(catalog, [move])
        try:
            async with running(catalog, Steps(at={"after entering backfill": fill})):
                async with asyncio.timeout(60):
                    told = "SELECT phase, last_error, retries FROM move"
                    while not (row := (await fetch(cluster.catalog_dsn, told))[0])["last_error"]:
                        assert row["phase"] != "done"
                        await asyncio.sleep(0.05)
                assert "No space left" in row["last_error"]
                disk.make_room()
                assert await ended(catalog) == "done"
            assert await owner_of(cluster, 0) == "s2"
            assert await leftovers(cluster) == []
            assert [rule for rule in await check.check(catalog) if not rule.ok] == []
            rows = [kept for _, kept, _ in await stored(cluster.shards)]
            assert rows == [device] * 5 * ENOUGH
        finally:
            await catalog.close()
