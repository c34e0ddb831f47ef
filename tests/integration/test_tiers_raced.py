"""Tiers where things meet: gaps, retries, moves that repeat and heal, corrections, merges that are slow."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.kinds import VEHICLE
from shards.moves import rebalances
from shards.moves.phases import Phase
from shards.moves.placement import PlannedMove
from shards.operations import check
from shards.postgres.sql import LIFECYCLE_XACT
from shards.storage.correction import correct
from shards.tiers.state import look
from shards.tiers.steps import Kept, freeze
from tests.support.ledger import execute, fetch
from tests.support.moving import Steps, owner_of, reached, running, start
from tests.support.readings import ingest, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import Interrupted, as_if_made, soon, tend, until

DAY = 1440  # minutes
TIERED = "SELECT frozen_until, packed_until FROM tier WHERE bucket = 0 AND kind = 'vehicle'"


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    """Two shards, a bucket each, partitions of a day."""
    async with new_cluster(servers, shards=2, buckets=2) as made:
        await as_if_made(made, date(2026, 5, 1), "day")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


def now(device: str, seconds: int = 0) -> dict[str, Any]:
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    return {**vehicle(device), "timestamp": moment.isoformat()}


async def test_a_leaf_that_is_made_in_a_gap_while_a_later_one_is_frozen(
    client: httpx2.AsyncClient, cluster: TestCluster
) -> None:
    """It is frozen with it: nothing that is acknowledged from then on is in a leaf that will be dropped."""
    devices = [f"V-{n}" for n in range(8)]
    told: list[dict[str, Any]] = []

    async def write() -> None:
        minute = 2 * DAY + len(told)
        told.append(await ingest(client, [vehicle(device, minute) for device in devices]))

    async def meet(place: str) -> None:
        if place in {"after freeze", "inside pack", "inside publish", "after publish"}:
            await write()

    await ingest(client, [vehicle(device, minute) for device in devices for minute in (10, 4 * DAY + 10)])
    sessions = [await asyncpg.connect(dsn) for dsn in cluster.shards.values()]
    seen = [(each, tiers) for each in sessions for tiers in await look(each, {"vehicle": "vehicle_telemetry_late"})]
    await write()  # a leaf of 3 May is made, which whoever looked before does not know
    for each, tiers in seen:
        await freeze(await Kept.of(each, tiers), tiers.leaves[-1])
    for each in sessions:
        await each.close()
    await tend(cluster, meet)
    assert all(each["accepted"] == len(devices) for each in told), told
    assert len(told) > 4
    for _ in range(2):
        for device in devices:
            page = (await client.get(f"/v1/vehicles/{device}/history", params={"limit": 1000})).json()
            assert len(page["items"]) == 2 + len(told)
        await tend(cluster)


async def test_what_is_sent_again_inside_counts_once(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """A batch of late and current readings whose hot part must be tried again: all of it is new."""
    await ingest(client, [vehicle(f"V-{n}", 10) for n in range(4)])
    await tend(cluster)
    assert (await ingest(client, vehicle("V-0", 11)))["accepted"] == 1  # the router has learnt what is frozen
    mixed = [reading for n in range(4) for reading in (vehicle(f"V-{n}", 12), now(f"V-{n}"))]  # no leaf of today yet
    told = await ingest(client, mixed)
    assert (told["accepted"], told["duplicates"]) == (8, 0)
    again = await ingest(client, [*mixed, vehicle("V-0", 12, kwh=3.0)])
    assert (again["accepted"], again["duplicates"], again["conflicts"]) == (0, 8, 1)


async def moved(client: httpx2.AsyncClient, cluster: TestCluster, *, packed: bool) -> tuple[Catalog, str, str]:
    """Frozen history in a bucket of the first shard, or packed, and the bucket handed over; its copy is kept."""
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(12) for minute in range(5)])
    if packed:
        await tend(cluster)
    else:
        with contextlib.suppress(Interrupted):
            await tend(cluster, until("inside pack"))
    source = await owner_of(cluster, 0)
    target = next(name for name in cluster.shards if name != source)
    return Catalog(cluster.catalog_dsn), source, target


async def test_a_rollback_carries_frozen_readings_again(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """The mark of the target lies before them, as a dump there is older: a repeat is no write into frozen time."""
    dump = await asyncpg.connect(cluster.shards["s2"])
    await dump.execute("BEGIN; SELECT 1")
    catalog, source, target = await moved(client, cluster, packed=False)
    assert source == "s1"
    (there,) = await fetch(cluster.shards[source], TIERED)
    assert there["frozen_until"] > there["packed_until"]
    steps = Steps()
    await start(catalog, [PlannedMove(0, source, target)], keep_s=3600)
    async with running(catalog, steps):
        await reached(catalog, Phase.CLEANUP)
        assert await rebalances.roll_back(catalog, None, deadline_in(5)) == 1
        await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        await reached(catalog, Phase.ROLLBACK_CLEANUP, Phase.ROLLED_BACK)
        await dump.close()
        await reached(catalog, Phase.ROLLED_BACK)
    assert steps.errors == []
    await is_whole(client, cluster, catalog)


@pytest.mark.parametrize("packed", [False, True])
async def test_what_a_keeper_lacks_of_frozen_and_packed_time_is_carried_to_it(
    client: httpx2.AsyncClient, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    soon(monkeypatch)
    catalog, source, target = await moved(client, cluster, packed=packed)
    steps = Steps()
    await start(catalog, [PlannedMove(0, source, target)], keep_s=3600)
    lost = (
        "DELETE FROM vehicle_telemetry_packed WHERE bucket = 0 AND vehicle_id = (SELECT min(vehicle_id) FROM "
        "vehicle_telemetry_packed WHERE bucket = 0)"
        if packed
        else "DELETE FROM vehicle_telemetry_history WHERE bucket = 0 AND timestamp = '2026-05-01T00:02:00Z'"
    )
    async with running(catalog, steps):
        await reached(catalog, Phase.CLEANUP)
        await execute(cluster.shards[target], lost)
        await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        await reached(catalog, Phase.DONE)
    assert steps.errors == []
    await is_whole(client, cluster, catalog)


async def is_whole(client: httpx2.AsyncClient, cluster: TestCluster, catalog: Catalog) -> None:
    """Every reading is there once, also when the lifecycle has gone on, and no rule is broken."""
    for _ in range(3):
        for n in range(12):
            page = (await client.get(f"/v1/vehicles/V-{n}/history")).json()
            assert [item["timestamp"] for item in page["items"]] == [f"2026-05-01T00:0{m}:00Z" for m in (4, 3, 2, 1, 0)]
        with contextlib.suppress(AssertionError):  # what was half packed before it was healed is packed anew
            await tend(cluster)
    assert [rule for rule in await check.check(catalog) if not rule.ok] == []
    for dsn in cluster.shards.values():
        assert await fetch(dsn, "SELECT name FROM packed_leaf") == []
        assert all(row["frozen_until"] == row["packed_until"] for row in await fetch(dsn, TIERED))
    await catalog.close()


async def test_sides_that_packed_otherwise_are_not_compared(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """A shard that lost its record of a move, and whose lifecycle went on: nothing is carried, nothing dropped."""
    catalog, source, target = await moved(client, cluster, packed=False)
    steps = Steps()
    await start(catalog, [PlannedMove(0, source, target)], keep_s=3600)
    async with running(catalog, steps):
        await reached(catalog, Phase.CLEANUP)
    await execute(cluster.shards[target], "UPDATE tier SET packed_until = frozen_until WHERE bucket = 0")
    await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
    async with running(catalog, steps):
        async with asyncio.timeout(60):
            while not any("have not frozen and packed the same" in error for error in steps.errors):
                await asyncio.sleep(0.02)
    assert await fetch(cluster.shards[source], "SELECT FROM vehicle_telemetry_history WHERE bucket = 0")
    await catalog.close()


async def test_a_slow_merge_refuses_late_readings_alone(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await ingest(client, [vehicle("V-0", 10), now("V-0")])
    await tend(cluster)
    assert (await ingest(client, vehicle("V-0", 11)))["accepted"] == 1
    holders = [await asyncpg.connect(dsn) for dsn in cluster.shards.values()]
    for each in holders:
        await each.execute("BEGIN")
        for bucket in (0, 1):
            await each.execute("SELECT pg_advisory_xact_lock(hashtext('voltroute.late'), $1)", bucket)
    late = await client.post("/v1/ingest", json=[vehicle("V-0", 12)])
    assert (late.status_code, late.json()["type"]) == (503, "/problems/shard-unavailable")
    assert (await ingest(client, now("V-0", 2)))["accepted"] == 1
    for each in holders:
        await each.close()
    assert (await ingest(client, vehicle("V-0", 12)))["accepted"] == 1


async def test_a_correction_waits_for_the_lifecycle_and_holds_no_move_up(
    client: httpx2.AsyncClient, cluster: TestCluster
) -> None:
    reading = now("V-0")
    await ingest(client, reading)
    moment = datetime.fromisoformat(reading["timestamp"])
    dsn = cluster.shards[cluster.owner("V-0")]
    found = await fetch(dsn, "SELECT bucket FROM vehicle_telemetry_history WHERE vehicle_id = 'V-0'")
    bucket = found[0]["bucket"]
    step, correction, move = [await asyncpg.connect(dsn) for _ in range(3)]
    try:
        await step.execute("BEGIN")
        await step.execute(LIFECYCLE_XACT, bucket)
        key = (bucket, 0, "V-0", moment)
        waiting = asyncio.create_task(correct(correction, VEHICLE, key, {"soc": 1.0}, None))
        async with asyncio.timeout(30):
            while not (await move.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                await asyncio.sleep(0.01)
        await move.execute("SET lock_timeout = '150ms'; UPDATE bucket_move SET state = state")
        await step.execute("LOCK TABLE bucket_move IN ROW EXCLUSIVE MODE; COMMIT")
        assert (await waiting).after["soc"] == 1.0
    finally:
        for each in (step, correction, move):
            await each.close()
