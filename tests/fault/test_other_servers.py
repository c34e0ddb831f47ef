"""What servers do to promises: another language, asynchronous commits."""

import asyncio
import signal
from datetime import UTC, datetime

import httpx2
import pytest

from shards.embedded.cluster import EmbeddedCluster, Options
from shards.operations import doctor
from shards.storage.partitions import month_of
from tests.support.ledger import execute, fetch, stored
from tests.support.maps import give
from tests.support.other_servers import DEBIAN, has_german
from tests.support.processes import breakable, eventually
from tests.support.programs import must_run
from tests.support.readings import ingest, meter
from tests.support.routers import in_process, router_process
from tests.support.servers import TestCluster, scratch_folder


@pytest.mark.skipif(not has_german() and not must_run(), reason="no PostgreSQL 15 of Debian's, or no locale de_DE.utf8")
async def test_messages_in_another_language_change_nothing() -> None:
    """At ae7a8c6 a missing month was answered 422, because the English text was looked for."""
    options = Options(scratch_folder(), 2, 4, binaries=str(DEBIAN), durable=False, temporary=True)
    async with EmbeddedCluster(options) as own:
        cluster = TestCluster(own.catalog_dsn, own.state.shard_dsns(), 4)
        for name in cluster.shards:
            superuser = own.state.superuser_dsn(name, "voltroute")
            await execute(superuser, "ALTER DATABASE voltroute SET lc_messages = 'de_DE.utf8'")
        with pytest.raises(Exception, match="existiert nicht"):
            await fetch(cluster.shards["shard-1"], "SELECT * FROM nowhere")
        month = f"{month_of(datetime.now(UTC)):%Y_%m}"
        for kind in ("meter", "vehicle"):
            await execute(cluster.shards["shard-1"], f"DROP TABLE {kind}_telemetry_history_b0000_{month}")
        now = datetime.now(UTC).isoformat()
        async with in_process(cluster, runner=False) as client:
            devices = [device for name in cluster.shards for device in cluster.devices_of(name, 8)]
            answer = await ingest(client, [{**meter(device), "timestamp": now} for device in devices])
            assert (answer["accepted"], answer["rejected"]) == (16, 0)
            await give(cluster, 0, "shard-1", "shard-2")
            answer = await ingest(client, [{**meter(device, 1)} for device in devices])
            assert answer["accepted"] == 16


async def test_asynchronous_commits_lose_nothing_that_was_acknowledged() -> None:
    """At ae7a8c6: 18 of 40 acknowledged readings gone, and the doctor had seen nothing."""
    async with breakable(shards=2, buckets=4, durable=True) as own:
        cluster = TestCluster(own.cluster.catalog_dsn, own.cluster.state.shard_dsns(), 4)
        for dsn in cluster.shards.values():
            await execute(dsn, "ALTER DATABASE voltroute SET synchronous_commit = off")
            login = (await fetch(dsn, "SELECT rolname FROM pg_roles WHERE rolname ~ '^voltroute_writer_'"))[0][
                "rolname"
            ]
            await execute(dsn, f"ALTER ROLE {login} SET synchronous_commit = off")
        acknowledged = set()
        async with (
            router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false") as router,
            httpx2.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            devices = cluster.devices_of("shard-1", 40)
            for device in devices:
                await ingest(client, meter(device, 1))
                acknowledged.add(device)
            server = own.server("shard-1")
            server.send_signal(signal.SIGQUIT)  # at once, without a checkpoint
            await eventually(lambda: not server.is_running())
            async with asyncio.timeout(60):
                while (await client.post("/v1/ingest", json=meter(devices[0], 2))).status_code != 200:
                    await asyncio.sleep(0.1)
        kept = {device for _, device, _ in await stored(cluster.shards)}
        assert acknowledged <= kept
        found = {each.name: each for each in await doctor.examine(cluster.catalog_dsn)}
        assert found["shard-1 durability"].ok
