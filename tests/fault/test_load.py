"""Whoever loads is killed, or loses a shard: repeated as it was, it stores everything once."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shards.kinds import VEHICLE
from tests.support.ledger import execute, fetch
from tests.support.loading import load_files, with_policies, write_csv
from tests.support.readings import ingest, vehicle
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

PLACES = (
    "inside freeze",
    "after freeze",
    "inside publish",
    "after publish",
    "inside load",
    "after load",
    "inside merge of loaded",
    "after merge of loaded",
    "after write of loaded",
)
PERIOD = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-09T00:00:00Z"}
DAY = 1440
SUMS = "SELECT sum(energy)::float8 / 1e9 FROM vehicle_telemetry_minutely"


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await with_policies(made)
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


def week(second: int = 0) -> list[dict[str, Any]]:
    """A part of which is hot."""
    now = datetime.now(UTC).replace(second=second, microsecond=0)
    hot = [
        {**vehicle(f"V-{n}", 0, 0.5), "timestamp": (now - timedelta(minutes=k)).isoformat()}
        for n in range(6)
        for k in range(1, 30)
    ]
    return [vehicle(f"V-{n}", minute + second / 60, 0.5) for n in range(6) for minute in range(1, 7 * DAY, 59)] + hot


async def check(client: httpx2.AsyncClient, cluster: TestCluster, readings: list[dict[str, Any]]) -> None:
    """Everything is there once, and sums are those of it."""
    now = {"to": (datetime.now(UTC) + timedelta(minutes=1)).isoformat()}
    answer = await client.get("/v1/analytics/fleet", params={**PERIOD, **now})
    assert answer.status_code == 200, answer.text
    fleet = answer.json()
    assert (fleet["dataPoints"], fleet["totalEnergyDeliveredDc"]) == (len(readings), len(readings) / 2)
    rolled = sum([(await fetch(dsn, SUMS))[0][0] or 0 for dsn in cluster.shards.values()])
    assert rolled == len(readings) / 2
    for n in range(6):
        page = (await client.get(f"/v1/vehicles/V-{n}/history", params={**PERIOD, "limit": 1000})).json()["items"]
        mine = {
            each["timestamp"] for each in readings if each["vehicleId"] == f"V-{n}" and each["timestamp"] < "2026-06"
        }
        assert len(page) == len(mine)
    newest = max(each["timestamp"] for each in readings)
    status = (await client.get("/v1/vehicles/V-5/status")).json()
    assert datetime.fromisoformat(status["lastUpdated"]) == datetime.fromisoformat(newest)


@pytest.mark.timeout(300)
async def test_killed_at_every_place(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    """The second file has readings of days that are there by then, between those of the first."""
    await roll(cluster)
    first, second = week(), week(second=30)
    files = [write_csv(tmp_path / f"{n}.csv", VEHICLE, each) for n, each in enumerate((first, second))]
    for file, places in zip(files, (PLACES[:6], PLACES[6:]), strict=True):
        for place in places:
            arguments = (cluster.catalog_dsn, file, tmp_path / "spool", place, "2")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.load_killed", *map(str, arguments)
            )
            assert await process.wait() == -signal.SIGKILL, place
        done = await load_files(cluster, VEHICLE, [file], tmp_path / "spool")
        assert done.failed == {}
        assert done.outcome.accepted + done.outcome.duplicates >= len(first)
        assert done.outcome.conflicts == 0
        await roll(cluster)
        assert not (tmp_path / "spool").exists()
        await check(client, cluster, first if file is files[0] else first + second)


async def test_a_shard_that_goes_away_is_waited_for(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions end in the middle of everything, again and again: what was stored is not counted anew as that."""
    monkeypatch.setattr("shards.bulk.runner.PAUSE_S", 0.05)
    monkeypatch.setattr("shards.bulk.runner.PORTION", 300)
    await roll(cluster)
    readings, seen = week(), 0
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'voltroute mover of loads'"

    async def watch(place: str) -> None:
        nonlocal seen
        seen += 1
        if place in {"inside load", "after load"} and seen % 7 == 0 and seen < 100:
            await asyncio.gather(*(execute(dsn, end) for dsn in cluster.shards.values()))

    await ingest(client, [vehicle("V-0", 1, 0.5)])
    file = write_csv(tmp_path / "vehicles.csv", VEHICLE, readings)
    done = await load_files(cluster, VEHICLE, [file], tmp_path / "spool", watch=watch)
    assert seen > 14
    assert done.failed == {}
    assert (done.outcome.accepted, done.outcome.duplicates) == (len(readings) - 1, 1)
    await roll(cluster)
    await check(client, cluster, readings)
