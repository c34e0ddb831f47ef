"""A shard and the catalog on two servers each: the primary stops, dies or hangs, and comes back when it is none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg
import httpx2
import pytest

from tests.support.ledger import fetch, stored
from tests.support.posting import Devices
from tests.support.readings import ingest, meter
from tests.support.replicated import BUCKETS, Pair, replicated, wake
from tests.support.routers import in_process
from tests.support.servers import TestCluster
from tests.support.stores import store_server

SETTINGS = {"runner": False, "ingest_timeout_s": 10, "failover_hold_s": 10}


@asynccontextmanager
async def posting(client: httpx2.AsyncClient) -> AsyncIterator[Devices]:
    devices = Devices(client)
    async with devices.posting():
        yield devices


async def missing(servers: Pair, devices: Devices) -> set[tuple[str, datetime]]:
    """What was acknowledged and is not on the new primary; a reading is there once."""
    second = {name: servers.second.dsn(name) for name in ("s1", "s2")}
    rows = [(device, at) for _, device, at in await stored(second)]
    assert len(rows) == len(set(rows))
    return devices.acknowledged - set(rows)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["stopped", "killed", "paused"])
async def test_a_replica_takes_over_and_the_old_primary_comes_back(how: str) -> None:
    async with replicated() as (servers, cluster), in_process(cluster, **SETTINGS) as client:
        async with posting(client) as devices:
            await devices.more()
            pids = await asyncio.to_thread(end, servers, how)
            await servers.promote()
            await devices.more()
            before = await count_of(servers.second.dsn("s1"))
            # It comes back as it was: it takes writes, and is the first in every DSN.
            if pids:
                wake(pids)
            else:
                await asyncio.to_thread(servers.first.start)
            await devices.more()
            async with in_process(cluster, **SETTINGS) as fresh, posting(fresh) as others:
                await others.more()
        assert await missing(servers, devices) == set()
        assert await count_of(servers.second.dsn("s1")) > before
        assert await fetch_timelines(servers) == {2}
        if how == "stopped":  # a planned switchover: readings waited, and no device has heard of it
            assert set(devices.statuses) == {200}


def end(servers: Pair, how: str) -> list[int]:
    """The first server goes; the pids of what only stands."""
    if how == "paused":
        return servers.first.pause()
    (servers.first.stop if how == "stopped" else servers.first.kill)()
    return []


async def fetch_timelines(servers: Pair) -> set[int]:
    """Of the shards, as the catalog knows them."""
    rows = await fetch(servers.second.dsn("catalog"), "SELECT timeline FROM shard")
    return {row["timeline"] for row in rows}


async def count_of(dsn: str) -> int:
    return int((await fetch(dsn, "SELECT count(*) FROM meter_telemetry_history"))[0][0])


@pytest.mark.timeout(240)
async def test_an_old_primary_alone_gets_nothing() -> None:
    """The new primary is gone, the old one is back: a router that starts now knows from the catalog, and waits."""
    async with replicated() as (servers, cluster):
        async with in_process(cluster, **SETTINGS) as client, posting(client) as devices:
            await devices.more()
            await asyncio.to_thread(servers.first.kill)
            await servers.promote()
            await devices.more()
        known = {name: await count_of(servers.second.dsn(name)) for name in ("s1", "s2")}
        await asyncio.to_thread(servers.first.start)
        settings = {**SETTINGS, "ingest_timeout_s": 1, "failover_hold_s": 0}
        before = {name: await count_of(servers.first.dsn(name)) for name in ("s1", "s2")}
        await only(servers)
        moved = TestCluster(servers.second.dsn("catalog"), cluster.shards, BUCKETS)
        async with in_process(moved, **settings) as client:
            answers = [await client.post("/v1/ingest", json=meter(f"DEV-{n}")) for n in range(4)]
        assert {answer.status_code for answer in answers} == {503}
        assert {name: await count_of(servers.first.dsn(name)) for name in before} == before
        assert all(known.values())


async def only(servers: Pair) -> None:
    """The shards' DSNs name the first server alone, as if the second could not be reached."""
    columns = ("owner_dsn", "writer_dsn", "query_dsn", "reader_dsn", "monitor_dsn")
    connection = await asyncpg.connect(servers.second.dsn("catalog"))
    for column in columns:
        change = f"UPDATE shard SET {column} = replace({column}, $1, $2)"
        await connection.execute(change, f"{servers.first.host},{servers.second.host}", servers.first.host)
    await connection.close()


@pytest.mark.timeout(240)
async def test_an_old_primary_that_lives_on_deceives_nobody_by_what_is_kept() -> None:
    """A router that has not heard of the new one reads the old one, and keeps its statuses; nobody else takes them."""
    async with replicated(synchronous=False) as (servers, cluster), store_server("valkey") as store:
        options = {**SETTINGS, "redis_url": store.url, "redis_timeout_s": 5}
        async with in_process(cluster, **options) as apart:
            await ingest(apart, meter("DEV-1", 1))
            await apart.get("/v1/meters/DEV-1/status")  # its session stays
            await servers.promote()
            async with in_process(cluster, **options) as client, store.client() as looking:
                for minute in range(2, 6):
                    await ingest(client, meter("DEV-1", minute))
                    await apart.get("/v1/meters/DEV-1/status")
                    assert await looking.keys("*") != []
                    answer = await client.get("/v1/meters/DEV-1/status")
                    assert answer.json()["lastUpdated"] == f"2026-05-01T00:0{minute}:00Z"
