"""Long proofs: buckets as large as fleets make them. How long writers waited is printed; `pytest -s` shows it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.moves import rebalances
from shards.moves.phases import Phase
from shards.moves.placement import PlannedMove
from shards.operations import check
from tests.support.ledger import execute, fetch
from tests.support.load import Recorder
from tests.support.moving import ended, leftovers, reached, running, start
from tests.support.routers import router_process
from tests.support.servers import TestCluster, new_cluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
MOVE = PlannedMove(0, "s1", "s2")
# Every reading of `rows` with its status, as a router would have written them.
FILL = """
WITH made AS (
    INSERT INTO meter_telemetry_history (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)
    SELECT '2026-06-01T00:00Z'::timestamptz + make_interval(secs => n / $2 * 60), 0.1, 230, 0, 'BIG-' || n % $2
    FROM generate_series(0, $1 - 1) AS n RETURNING meter_id, timestamp
)
INSERT INTO meter_current_status AS known (last_updated, kwh_consumed_ac, voltage, bucket, meter_id)
SELECT max(timestamp), 0.1, 230, 0, meter_id FROM made GROUP BY meter_id
ON CONFLICT (meter_id, tenant_id, bucket) DO UPDATE SET last_updated = excluded.last_updated
"""


@asynccontextmanager
async def writing(servers: list[str]) -> AsyncIterator[tuple[TestCluster, Catalog, Recorder]]:
    async with new_cluster(servers, shards=2, buckets=4) as cluster:
        catalog, recorder, until = Catalog(cluster.catalog_dsn), Recorder(), asyncio.Event()
        async with router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false", VOLTROUTE_LOG_LEVEL="error") as router:
            load = asyncio.create_task(recorder.run(router.url, until, workers=4))
            await recorder.more(100)
            yield cluster, catalog, recorder
            await recorder.more(100)
            until.set()
            await load
        assert set(recorder.statuses) == {200}
        assert await leftovers(cluster) == []
        assert [rule for rule in await check.check(catalog) if not rule.ok] == []
        rows = [
            r
            for dsn in cluster.shards.values()
            for r in await fetch(
                dsn, "SELECT meter_id, timestamp FROM meter_telemetry_history WHERE meter_id LIKE 'L-%'"
            )
        ]
        assert recorder.acknowledged <= {(row["meter_id"], row["timestamp"]) for row in rows}
        await catalog.close()


async def count(cluster: TestCluster, shard: str) -> tuple[int, int]:
    sql = (
        "SELECT (SELECT count(*) FROM meter_telemetry_history WHERE meter_id LIKE 'BIG-%') AS readings,"
        " (SELECT count(*) FROM meter_current_status WHERE meter_id LIKE 'BIG-%') AS statuses"
    )
    row = (await fetch(cluster.shards[shard], sql))[0]
    return row["readings"], row["statuses"]


async def test_a_rollback_after_a_million_and_a_half_new_readings_ends(servers: list[str]) -> None:
    async with writing(servers) as (cluster, catalog, recorder), running(catalog):
        await start(catalog, [MOVE], keep_s=3600)
        await reached(catalog, Phase.CLEANUP)
        await execute(cluster.shards["s2"], FILL, 1_500_000, 1_000)
        recorder.longest_s = 0.0
        assert await rebalances.roll_back(catalog, None, deadline_in(5)) == 1
        await reached(catalog, Phase.ROLLBACK_CLEANUP, timeout_s=300)
        waited = recorder.longest_s
        await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        assert await ended(catalog, timeout_s=300) == "cancelled"
        found = await rebalances.latest(catalog, deadline_in(5))
        assert found is not None
        print(f"fence {found[1][0]['pause_ms']:.0f} ms, longest request meanwhile {waited * 1000:.0f} ms")
        assert await count(cluster, "s1") == (1_500_000, 1_000)


async def test_a_bucket_of_four_hundred_thousand_devices_moves(servers: list[str]) -> None:
    async with writing(servers) as (cluster, catalog, recorder), running(catalog):
        await execute(cluster.shards["s1"], FILL, 400_000, 400_000)
        recorder.longest_s = 0.0
        await start(catalog, [MOVE], keep_s=0)
        assert await ended(catalog, timeout_s=300) == "done"
        found = await rebalances.latest(catalog, deadline_in(5))
        assert found is not None
        print(f"fence {found[1][0]['pause_ms']:.0f} ms, longest request {recorder.longest_s * 1000:.0f} ms")
        assert await count(cluster, "s2") == (400_000, 400_000)
