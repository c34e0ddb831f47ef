"""Registers in rollups: whatever came when, what hours counted adds up to what the readings do."""

import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from shards.kinds import METER
from shards.policy import Policy
from shards.postgres.sessions import owner_session
from shards.postgres.sql import for_kind
from shards.storage import counted, sums
from shards.storage.correction import correct
from shards.storage.rollups import hours
from shards.tiers import rolling
from tests.support.archiving import left, use
from tests.support.ledger import execute, fetch
from tests.support.loading import load_files, with_policies, write_csv
from tests.support.readings import at, ingest, meter, register, undated, vehicle
from tests.support.registers import counts_of
from tests.support.rolling import roll, without_rollups
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import age, answers, as_if_made, records_of, soon, tend

DAY = 1440  # minutes
METERS = ["R-0", "R-1", "R-2", "B-0"]
WHOLE = {"from": at(-DAY), "to": at(4 * DAY)}
HOURS = for_kind(
    f"""SELECT meter_id, at, counted, registers, first_count, last_count, peak, began, risen, rate, odd
FROM ({hours("true", "'-infinity'", "'infinity'", counts=True)}) AS h WHERE registers > 0 ORDER BY 1, 2""",
    METER,
)
ALL_SPANS = (
    "SELECT count(*), count(*) FILTER (WHERE counts IS NOT NULL) FROM meter_telemetry_daily WHERE registers IS NOT NULL"
)


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    """Three shards, eight buckets, partitions of a day."""
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await as_if_made(made, date(2026, 5, 1), "day")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


@pytest.fixture(autouse=True)
def asks_rollups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a device's hour."""
    monkeypatch.setattr(sums, "LONG", timedelta(0))


async def asked(client: httpx2.AsyncClient, period: dict[str, str]) -> Any:
    return await answers(client, period, {"meters": METERS, "vehicles": ["V-0", "V-1"]})


async def of_readings(client: httpx2.AsyncClient, period: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same answers, without rollups."""

    with without_rollups(monkeypatch):
        return await asked(client, period)


async def spans(cluster: TestCluster) -> list[tuple[Any, ...]]:
    found = [tuple(row) for dsn in cluster.shards.values() for row in await fetch(dsn, HOURS)]
    return sorted(found, key=lambda row: row[:2])


def some_period(dice: random.Random) -> dict[str, str]:
    step = dice.choice([60.0, 60.0, 1.0, 0.25, float(DAY)])
    one, other = sorted(dice.sample(range(int(4 * DAY / step) + 1), 2))
    return {"from": at(one * step), "to": at(other * step)}


async def settings_of(client: httpx2.AsyncClient, dice: random.Random, seed: int) -> None:
    if seed % 2:
        assert (await client.put("/v1/meters/R-1", json={"registerMaxKwh": 1000})).status_code in {200, 201}
    if seed % 3:
        limits = {"powerMaxKw": dice.choice([11, 40]), "intervalS": 60}
        assert (await client.put("/v1/defaults/meters", json=limits)).status_code == 200
    for n in range(2):
        for first, last in pairwise(sorted(dice.sample(range(4 * DAY), 3))):
            body = {"meterId": f"R-{n}", "vehicleId": f"V-{n}", "validFrom": at(first), "validTo": at(last)}
            assert (await client.put("/v1/pairings", json=body)).status_code in {200, 201}


@pytest.mark.parametrize("seed", range(6))
async def test_sums_are_those_of_the_readings(
    client: httpx2.AsyncClient, cluster: TestCluster, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rolled up in part, late, frozen, packed, merged, with ratings and pairings, for hours and for parts of them."""
    dice = random.Random(seed)
    soon(monkeypatch)
    await settings_of(client, dice, seed)
    readings = [reading for device in METERS[:3] for reading in counts_of(dice, device, 120)]
    readings += [register("B-0", 60 * n + 0.5, 10 + n) for n in range(30)] + [
        meter("B-0", 60 * n, 0.5) for n in range(30)
    ]
    readings.sort(key=lambda reading: reading["timestamp"])
    await ingest(client, [vehicle(f"V-{n}", 0) for n in range(2)])
    await ingest(client, [register(device, 0, 900) for device in METERS])
    late = [readings.pop(dice.randrange(len(readings))) for _ in range(len(readings) // 5)]
    steps: list[Any] = [roll, lambda c: age(c, "meter", "after publish"), tend, roll]
    portion = len(readings) // len(steps) + 1
    for n, step in enumerate(steps):
        await ingest(client, readings[n * portion : (n + 1) * portion])
        await roll(cluster, dice.sample(range(8), 4))
        await ingest(client, late[n::4])
        await step(cluster)
        for period in (WHOLE, some_period(dice), some_period(dice)):
            assert await asked(client, period) == await of_readings(client, period, monkeypatch), (step, period)
    await tend(cluster)
    await roll(cluster)
    for period in (WHOLE, *(some_period(dice) for _ in range(8))):
        assert await asked(client, period) == await of_readings(client, period, monkeypatch), period
    known = [tuple((await fetch(dsn, ALL_SPANS))[0]) for dsn in cluster.shards.values()]
    assert all(days == counted for days, counted in known)
    before = await spans(cluster)
    assert sum(row[-1] is not None for row in before) > 5  # hours with dips and resets
    assert all(row[2] == row[3] for row in before)
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE tier SET rolled_of = NULL")
    await roll(cluster)
    assert [row[:8] for row in await spans(cluster)] == [row[:8] for row in before]  # but for how fast it rose at most


async def test_hours_that_are_known_are_not_read_again(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Nor is anything before the window: with its readings gone, the answers are the same."""
    counted = [register("R-0", minute, 100 + minute / 64) for minute in range(2 * DAY)]
    counted += [register("R-1", minute, minute % 500) for minute in range(0, 2 * DAY, 5)]
    await ingest(client, counted[: len(counted) // 2])
    await roll(cluster)
    await ingest(client, counted[len(counted) // 2 :])
    await roll(cluster)
    body = {"meterId": "R-0", "vehicleId": "V-0", "validFrom": at(DAY - 60), "validTo": at(2 * DAY)}
    assert (await client.put("/v1/pairings", json=body)).status_code == 201
    period = {"from": at(DAY - 120), "to": at(2 * DAY), "interval": "1h"}

    async def told() -> Any:
        fleet = undated(await client.get("/v1/analytics/fleet", params=period))
        window = {name: period[name] for name in ("from", "to")}
        return fleet, undated(await client.get("/v1/analytics/performance/V-0", params=window))

    before = await told()
    assert before[0]["tiers"] == ["rollups"]
    assert before[0]["series"][-1]["totalEnergyConsumedAc"] == pytest.approx(60 / 64 + 60, abs=6)
    for dsn in cluster.shards.values():
        await execute(dsn, "DELETE FROM meter_telemetry_history")
    assert await told() == before


async def test_a_correction_is_counted(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await ingest(client, [register("R-0", minute, 100 + minute) for minute in range(180)])
    await roll(cluster)
    period = {"from": at(60), "to": at(120)}
    assert (await client.get("/v1/analytics/fleet", params=period)).json()["totalEnergyConsumedAc"] == 60
    records = {record.name: record for record in await records_of(cluster)}
    async with owner_session(records[cluster.owner("R-0")]) as session:
        bucket = await session.fetchval("SELECT bucket FROM meter_telemetry_hourly LIMIT 1")
        moment = await session.fetchval("SELECT timestamp FROM meter_telemetry_history WHERE register_kwh = 220")
        await correct(session, METER, (bucket, 0, "R-0", moment), {"register_kwh": 219.5}, None)
    for _ in range(2):
        told = (await client.get("/v1/analytics/fleet", params=period)).json()
        assert (told["totalEnergyConsumedAc"], told["suspect"]) == (59.5, 0)
        await roll(cluster)
    assert all(row[2] == row[3] for row in await spans(cluster))


async def test_archived_hours_are_counted(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    """Whole ones, and what stood there before a window; also where counts began again, and where a meter was silent."""
    await use(cluster, f"file://{tmp_path}/archive")
    counted = [register("R-0", minute, 100 + minute / 64) for minute in range(0, 63 * DAY, 180)]
    counted += [register("R-1", minute, minute / 100 % 300) for minute in range(30, 20 * DAY, 90)]
    await ingest(client, [*counted, register("R-1", 62 * DAY, 400), register("R-1", 62 * DAY + 1, 399)])
    await roll(cluster)
    periods = [
        {"from": at(a * 60), "to": at(b * 60)} for a, b in ((0, 24 * 63), (5, 700), (24 * 30, 24 * 63), (24 * 61, 1488))
    ]
    before = [undated(await client.get("/v1/analytics/fleet", params=each)) for each in periods]
    assert len({each["totalEnergyConsumedAc"] for each in before}) == 4
    await tend(cluster)
    await roll(cluster)
    await left(cluster)
    after = [undated(await client.get("/v1/analytics/fleet", params=each)) for each in periods]
    for each in (*before, *after):
        each.pop("tiers", None)
    assert after == before
    cut = {"from": at(90), "to": at(24 * 63 * 60)}
    assert (await client.get("/v1/analytics/fleet", params=cut)).json()["type"] == "/problems/archived"


async def archived_answer(
    client: httpx2.AsyncClient, cluster: TestCluster, counts: Sequence[tuple[float, float]], window: tuple[float, float]
) -> tuple[Any, Any]:
    """The energy of a window while its past is packed, and when it is archived, from rollups and from readings."""
    await ingest(client, [register("R-0", minute, count) for minute, count in counts])
    await roll(cluster)
    period = {"from": at(window[0]), "to": at(window[1])}
    before = (await client.get("/v1/analytics/fleet", params=period)).json()["totalEnergyConsumedAc"]
    hot = timedelta(days=(datetime.now(UTC) - datetime(2026, 6, 1, tzinfo=UTC)).days)
    await tend(cluster, policies={"meter": Policy("meter", hot)})
    await roll(cluster)
    await left(cluster)
    return before, (await client.get("/v1/analytics/fleet", params=period)).json()["totalEnergyConsumedAc"]


async def test_the_last_hour_of_an_archived_month(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    """It is not folded, and June is hot."""
    await use(cluster, f"file://{tmp_path}/archive")
    counts = [(DAY * day + 23.5 * 60, 100 + 10.0 * day) for day in range(40)]
    before, after = await archived_answer(client, cluster, counts, (31 * DAY + 720, 40 * DAY))
    assert (before, after) == (90, 90)


async def test_the_day_of_a_window_that_begins_behind_archived_counts(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    """Its own hours are none of those before it."""
    await use(cluster, f"file://{tmp_path}/archive")
    counts = [(12 * DAY + 1410, 200), (13 * DAY + 10, 195), (14 * DAY + 600, 199.0), (14 * DAY + 660, 203)]
    before, after = await archived_answer(client, cluster, [*counts, (40 * DAY, 300)], (14 * DAY + 300, 16 * DAY))
    assert (before, after) == (3, 3)


async def test_a_late_count_of_the_first_instant_behind_archived_time(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    """It belongs to the last archived hour, behind all that this has."""
    await use(cluster, f"file://{tmp_path}/archive")
    counts = [(31 * DAY - 15, 100.0), (31 * DAY + 300, 110.0)]
    await archived_answer(client, cluster, counts, (30 * DAY, 32 * DAY))
    assert (await ingest(client, register("R-0", 31 * DAY, 105)))["accepted"] == 1
    for again in (roll, tend, roll):
        await again(cluster)
        for window, energy in (((31 * DAY + 240, 32 * DAY), 5), ((30 * DAY, 32 * DAY), 10)):
            period = {"from": at(window[0]), "to": at(window[1])}
            told = (await client.get("/v1/analytics/fleet", params=period)).json()
            assert told.get("totalEnergyConsumedAc") == energy, told


async def test_a_meter_that_was_exchanged_in_archived_time(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    """What is within the power that is allowed is believed, also at a reset."""
    await use(cluster, f"file://{tmp_path}/archive")
    assert (await client.put("/v1/defaults/meters", json={"powerMaxKw": 22})).status_code == 200
    counts = [(m, 500 + m / 64) for m in range(0, 2 * DAY, 5)] + [(m, m / 64 - 45) for m in range(2 * DAY, 4 * DAY, 5)]
    before, after = await archived_answer(client, cluster, [*counts, (40 * DAY, 300)], (0, 5 * DAY))
    assert before == after is not None


async def test_nothing_is_counted_again_in_a_move(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """It has carried the days as they were."""
    await ingest(client, [register("R-0", minute, minute) for minute in range(0, 2 * DAY, 10)])
    await tend(cluster)
    dsn = cluster.shards[cluster.owner("R-0")]
    await execute(dsn, "UPDATE meter_telemetry_daily SET counts = NULL")
    bucket = (await fetch(dsn, "SELECT DISTINCT bucket FROM meter_telemetry_daily"))[0][0]
    for is_in_move in (True, False):
        session = await asyncpg.connect(dsn)
        async with session.transaction():
            if is_in_move:
                await session.execute(
                    f"INSERT INTO bucket_move (move_id, runner, bucket, role) VALUES (7, 1, {bucket}, 'source')"
                )
            await rolling.count_again(session, METER, bucket)
            known = await session.fetchval("SELECT count(*) FROM meter_telemetry_daily WHERE counts IS NOT NULL")
            assert (known > 0) is not is_in_move
        await session.close()
        await execute(dsn, "DELETE FROM bucket_move")


async def test_hours_of_a_release_before(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Hot and folded ones are counted, and whoever folds without counts leaves none."""
    await ingest(client, [register("R-0", minute, minute) for minute in range(0, 3 * DAY, 10)])
    await roll(cluster)
    hot = timedelta(days=(datetime.now(UTC) - datetime(2026, 5, 3, tzinfo=UTC)).days)
    await tend(cluster, policies={"meter": Policy("meter", hot)})
    before = await spans(cluster)
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE meter_telemetry_daily SET registers = registers || ARRAY[NULL::integer]")
        await execute(dsn, "UPDATE meter_telemetry_hourly SET counts = NULL, counted_until = NULL")
    assert all(row[2] is None for row in await spans(cluster))
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE meter_telemetry_daily SET registers = registers[1:24]")
    await roll(cluster)
    assert [row[:8] for row in await spans(cluster)] == [row[:8] for row in before]


@pytest.mark.parametrize("most", [-1, 10**9])
async def test_hours_that_are_mostly_unknown(
    client: httpx2.AsyncClient, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The readings are asked instead, or each hour by itself."""
    monkeypatch.setattr(counted, "FEW", most)
    monkeypatch.setattr(counted, "MANY", 10**9)
    counted.statement.cache_clear()
    dice = random.Random(3)
    await ingest(client, [reading for device in METERS for reading in counts_of(dice, device, 60)])
    await ingest(client, [vehicle(f"V-{n}", 0) for n in range(2)])
    await tend(cluster)
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE meter_telemetry_daily SET counts = NULL")
    for period in (WHOLE, *(some_period(dice) for _ in range(3))):
        assert await asked(client, period) == await of_readings(client, period, monkeypatch), period
    counted.statement.cache_clear()


async def test_loaded_counts_are_those_of_the_shard(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    await with_policies(cluster)
    dice = random.Random(7)
    readings = [register("R-0", minute, 100 + minute / 64) for minute in range(0, 3 * DAY, 7)]
    readings += counts_of(dice, "R-1", 200)
    readings += [register("R-2", minute, 5 + minute // 5) for minute in range(1, DAY)]
    file = write_csv(tmp_path / "meters.csv", METER, readings)
    done = await load_files(cluster, METER, [file], tmp_path / "spool")
    assert (done.failed, done.outcome.accepted) == ({}, len(readings))
    await roll(cluster)
    loaded = await spans(cluster)
    assert all(row[2] == row[3] for row in loaded)
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE tier SET rolled_of = NULL")
    await roll(cluster)
    assert await spans(cluster) == loaded
