"""From PostgreSQL 15 to 18 by moving, while devices post: shards of the new one come, those of the old one go."""

from datetime import date, timedelta
from typing import Any

import httpx2
import pytest

from shards.embedded.cluster import EmbeddedCluster, Options
from shards.kinds import KINDS
from shards.policy import Policy
from tests.support.commands import run_command
from tests.support.ledger import fetch, stored
from tests.support.other_servers import DEBIAN
from tests.support.posting import Devices
from tests.support.programs import must_run
from tests.support.readings import START, ingest, meter, undated
from tests.support.rolling import NOW
from tests.support.routers import router_process
from tests.support.servers import TestCluster, drop_database, new_database, scratch_folder
from tests.support.tiering import as_if_made, tend

OLD = ("shard-1", "shard-2")
NEW = ("new-1", "new-2")
DEVICES = [f"OLD-{number}" for number in range(12)]
PERIOD = {"from": (START - timedelta(days=3)).isoformat(), "to": (START - timedelta(minutes=1)).isoformat()}


@pytest.mark.timeout(600)
@pytest.mark.skipif(not (DEBIAN / "postgres").exists() and not must_run(), reason="no PostgreSQL 15 of Debian's")
async def test_the_next_major_by_moving(servers: list[str]) -> None:
    options = Options(scratch_folder(), 2, 8, binaries=str(DEBIAN), durable=False, temporary=True)
    dsns = {name: await new_database(servers[at], f"major_{at}") for at, name in enumerate(NEW)}
    try:
        async with EmbeddedCluster(options) as own:
            cluster = TestCluster(own.catalog_dsn, own.state.shard_dsns(), 8)
            await _move(cluster, dsns)
    finally:
        for at, _ in enumerate(NEW):
            await drop_database(servers[at], f"major_{at}")


async def _move(cluster: TestCluster, dsns: dict[str, str]) -> None:
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}

    async def command(*words: str) -> None:
        done = await run_command(*words, env=env, timeout_s=240)
        assert done.code == 0, done.err

    async with (
        router_process(cluster.catalog_dsn, VOLTROUTE_INGEST_TIMEOUT_S="30") as router,
        httpx2.AsyncClient(base_url=router.url, timeout=60) as client,
    ):
        await as_if_made(cluster, date(2026, 4, 1), "day")
        old = [meter(device, -minute) for device in DEVICES for minute in range(1, 400, 7)]
        await ingest(client, old)
        now = (await fetch(cluster.catalog_dsn, NOW))[0][0]
        hot = now - START  # what is older is packed: a day of rows is one there
        await tend(cluster, policies={kind.name: Policy(kind.name, hot) for kind in KINDS})
        assert await packed(cluster.shards) > 0
        before = await told(client)
        devices = Devices(client)
        async with devices.posting():
            await devices.more()
            for name, dsn in dsns.items():
                await command("shard", "add", name, "--dsn", dsn)
            for name in OLD:
                await command("shard", "weight", name, "0.001")
            for name in OLD:
                await command("shard", "drain", name, "--watch", "--keep", "0")
                await command("shard", "remove", name)
            await devices.more()
        assert set(devices.statuses) == {200}
        assert await told(client) == before
        versions = {(await fetch(dsn, "SHOW server_version_num"))[0][0][:2] for dsn in dsns.values()}
        assert versions == {"18"}
    assert await packed(dsns) > 0
    found = [(device, at) for _, device, at in await stored(dsns)]
    assert len(found) == len(set(found))
    assert devices.acknowledged <= set(found)
    assert len(found) >= len(old) + len(devices.acknowledged)


async def told(client: httpx2.AsyncClient) -> Any:
    """What nothing changes any more."""
    fleet = await client.get("/v1/analytics/fleet", params=PERIOD)
    found = [{name: each for name, each in undated(fleet).items() if name not in {"tiers", "shards"}}]
    for device in DEVICES:
        page = undated(await client.get(f"/v1/meters/{device}/history", params={**PERIOD, "limit": 1000}))
        found += [{name: each for name, each in item.items() if name != "ingestedAt"} for item in page["items"]]
    return found


async def packed(shards: dict[str, str]) -> int:
    """Days that are packed, over all shards."""
    told = [await fetch(dsn, "SELECT coalesce(sum(packed_readings), 0) FROM tier") for dsn in shards.values()]
    return sum(int(rows[0][0]) for rows in told)
