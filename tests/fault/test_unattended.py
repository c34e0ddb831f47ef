"""Nobody leads, or makes partitions, for weeks: devices are served, also in months that nobody prepared."""

import shutil
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from shards.embedded.cluster import EmbeddedCluster, Options
from tests.support.ledger import fetch
from tests.support.other_servers import binaries_with_clock, faketime_library, set_clock
from tests.support.programs import must_run
from tests.support.readings import vehicle
from tests.support.routers import router_process
from tests.support.servers import scratch_folder

LIBRARY = faketime_library()
pytestmark = [
    pytest.mark.skipif(LIBRARY is None and not must_run(), reason="libfaketime is not installed"),
    pytest.mark.timeout(300),
]
LEAVES = "SELECT max(upper(l.span)) AS last FROM bucket_table AS b CROSS JOIN LATERAL leaves_of(b.name) AS l"
SERVERS = ("catalog", "shard-1", "shard-2")


@pytest.mark.parametrize("days", [8, 100])
async def test_nobody_prepares_anything(days: int) -> None:
    assert LIBRARY is not None
    folder, programs = scratch_folder(), scratch_folder()
    binaries = str(binaries_with_clock(programs, LIBRARY))
    try:
        async with EmbeddedCluster(Options(folder, 2, 4, binaries=binaries, durable=False)):
            pass
        for name in SERVERS:
            set_clock(folder, name, f"+{days}d")
        async with EmbeddedCluster(Options(folder, binaries=binaries, durable=False, temporary=True)) as own:
            last = [(await fetch(dsn, LEAVES))[0]["last"] for dsn in own.state.shard_dsns().values()]
            clock = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": f"+{days}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
            unattended = {"VOLTROUTE_RUNNER": "false", "VOLTROUTE_LOG_LEVEL": "error"}
            async with (
                router_process(own.catalog_dsn, **clock, **unattended) as router,
                httpx2.AsyncClient(base_url=router.url) as client,
            ):
                now = datetime.now(UTC) + timedelta(days=days)
                assert days < 30 or now > max(last)  # no partition of this time is there
                for moment in (now - timedelta(minutes=1), now.replace(day=1) - timedelta(days=3)):
                    sent = [{**vehicle(f"V-{n}"), "timestamp": moment.isoformat()} for n in range(50)]
                    told = (await client.post("/v1/ingest/vehicle", json=sent)).json()
                    assert told["accepted"] == 50, told
                for n in range(50):
                    page = (await client.get(f"/v1/vehicles/V-{n}/history")).json()
                    assert len(page["items"]) == 2
                asked = {"since": (now - timedelta(hours=1)).isoformat(), "limit": "1000"}
                activity = (await client.get("/v1/analytics/activity", params=asked)).json()
                assert len(activity["items"]) == 50
    finally:
        shutil.rmtree(programs, ignore_errors=True)
