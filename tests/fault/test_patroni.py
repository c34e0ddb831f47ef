"""A shard that a real Patroni keeps, with etcd: planned switchovers, and a machine that is gone and comes back."""

import asyncio

import asyncpg
import pytest

from shards.operations.init import init_cluster
from tests.support.ledger import stored
from tests.support.patroni import PASSWORD, patroni
from tests.support.posting import Devices
from tests.support.routers import in_process
from tests.support.servers import TestCluster

# Longer than Patroni takes to find that a machine is gone.
SETTINGS = {"runner": False, "ingest_timeout_s": 60, "failover_hold_s": 60}


@pytest.mark.timeout(400)
async def test_patroni_changes_the_primary(servers: list[str]) -> None:
    async with patroni() as kept:
        await kept.make_database("shard", "keeper")
        catalog = servers[0].rpartition("/")[0] + "/patroni_catalog"
        admin = await asyncpg.connect(servers[0])
        await admin.execute("CREATE DATABASE patroni_catalog")
        try:
            shards = {"s1": kept.dsn("shard", "keeper", PASSWORD)}
            await init_cluster(catalog, shards, 4)
            async with in_process(TestCluster(catalog, shards, 4), **SETTINGS) as client:
                devices = Devices(client)
                async with devices.posting():
                    await devices.more()
                    for _ in range(2):  # there and back: no device has heard of it
                        await kept.switch()
                        await devices.more()
                        await kept.until("leader", "sync_standby")
                    assert set(devices.statuses) == {200}
                    gone = await kept.leader()
                    await asyncio.to_thread(gone.vanish)
                    await devices.more(limit_s=180)  # synchronous: whoever takes over has all of it
                    assert await kept.leader() is not gone
                    gone.start()
                    await kept.until("leader", "sync_standby")
                    await devices.more()
                    await kept.switch()  # to the one that came back
                    await devices.more()
            primary = await kept.leader()
            assert primary is gone
            dsn = f"postgresql://postgres:{PASSWORD}@{primary.host}/shard"
            found = [(device, at) for _, device, at in await stored({"s1": dsn})]
            assert len(found) == len(set(found))
            assert devices.acknowledged <= set(found)
        finally:
            await admin.execute("DROP DATABASE patroni_catalog WITH (FORCE)")
            await admin.close()
