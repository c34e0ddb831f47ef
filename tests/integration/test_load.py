"""What is loaded answers as what was posted, counts as ever, and what cannot be stored is told before anything is."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shards.bulk.session import Outcome
from tests.support.ledger import execute, fetch
from tests.support.loading import load_all, with_policies
from tests.support.months import DEVICES, PERIOD, old_readings, packed, sums
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import answers

ROLLUPS = {
    kind: (
        f"SELECT * FROM {kind}_telemetry_hourly ORDER BY 1, 2, 3, {kind}_id",
        f"SELECT * FROM {kind}_telemetry_minutely ORDER BY at, bucket, tenant_id",
        f"SELECT * FROM {kind}_telemetry_daily ORDER BY day, bucket, {kind}_id",
    )
    for kind in ("meter", "vehicle")
}


@pytest.fixture
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await with_policies(made)
        yield made


def plain(value: Any) -> Any:
    """Without what tells when it came."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items() if name != "createdAt"}
    return [plain(each) for each in value] if isinstance(value, list) else value


async def rollups(cluster: TestCluster) -> list[Any]:
    return [
        [dict(row) for row in await fetch(dsn, query)]
        for dsn in cluster.shards.values()
        for queries in ROLLUPS.values()
        for query in queries
    ]


async def test_what_is_loaded_answers_as_what_was_posted(
    servers: list[str], cluster: TestCluster, tmp_path: Path
) -> None:
    """Also with rollups that are there before, and those are what they would be if they were made anew."""
    async with new_cluster(servers, shards=3, buckets=8) as posted, in_process(posted, runner=False) as client:
        whole, every = await packed(client, posted)
        statuses = {
            f"{plural}/{device}": (await client.get(f"/v1/{plural}/{device}/status")).json()
            for plural, devices in DEVICES.items()
            for device in devices
        }
    readings = old_readings()
    async with in_process(cluster, runner=False) as client:
        await roll(cluster)
        found = await load_all(cluster, readings, tmp_path)
        body = {"meterId": "M-0", "vehicleId": "V-0", "validFrom": "2026-05-01T12:00:00Z"}
        assert (await client.put("/v1/pairings", json=body)).status_code in {200, 201}
        different = {(reading.get("vehicleId"), reading.get("meterId"), reading["timestamp"]) for reading in readings}
        assert sum(each.outcome.accepted for each in found.values()) == len(different)
        assert sum(each.outcome.duplicates for each in found.values()) == len(readings) - len(different)
        assert plain(await answers(client, PERIOD, DEVICES)) == plain(every)
        assert await sums(client) == whole
        for path, status in statuses.items():
            assert plain((await client.get(f"/v1/{path}/status")).json()) == plain(status)
        kept = await rollups(cluster)
        for dsn in cluster.shards.values():
            await execute(dsn, "UPDATE tier SET rolled_of = NULL")
        await roll(cluster)
        assert await rollups(cluster) == kept
        again = await load_all(cluster, readings, tmp_path)
        assert {name: each.outcome for name, each in again.items()} == {
            name: Outcome(0, each.outcome.accepted + each.outcome.duplicates) for name, each in found.items()
        }
        assert await sums(client) == whole
