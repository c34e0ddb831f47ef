"""Loads over what is there: hot, late, packed, archived; beside moves and late writers; of tenants and databases."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from shards.buckets import bucket_of
from shards.bulk.session import Outcome
from shards.bulk.sources import Foreign, Naming
from shards.kinds import METER, VEHICLE
from shards.operations.load import Result
from tests.support.commands import run_command
from tests.support.ledger import execute, fetch
from tests.support.loading import checker_of, load_files, with_policies, write_csv, write_ndjson
from tests.support.readings import at, ingest, meter, vehicle
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import new_tenant
from tests.support.tiering import answers, as_if_made, tend

DAY = 1440
PERIOD = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-08T00:00:00Z"}
MOVE = "INSERT INTO bucket_move (move_id, runner, bucket, role) VALUES (1, 0, $1, 'source')"
DEVICES = {"vehicles": ["V-0", "V-1", "V-2"], "meters": []}


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await with_policies(made)
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def load(cluster: TestCluster, readings: list[dict[str, Any]], folder: Path, **more: Any) -> Result:
    """Vehicles; nothing may fail."""
    file = write_ndjson(folder / "vehicles.ndjson", readings)
    found = await load_files(cluster, VEHICLE, [file], folder / "spool", **more)
    assert found.failed == {}, found.failed
    return found


def week() -> list[dict[str, Any]]:
    return [vehicle(f"V-{n}", minute, minute % 5 / 8) for n in range(3) for minute in range(0, 7 * DAY, 61)]


async def tiered(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """A week: days that are packed, of which some have late readings, and days that are hot."""
    await as_if_made(cluster, date(2026, 5, 1), "day")
    await ingest(client, [each for each in week() if each["timestamp"] < at(4 * DAY)])
    await roll(cluster)
    await tend(cluster)
    await ingest(client, [each for each in week() if each["timestamp"] >= at(4 * DAY)])
    await ingest(client, [vehicle("V-1", 30.5, 0.125), vehicle("V-2", DAY + 30.5, 0.25)])  # late
    await ingest(client, [vehicle("V-1", 6 * DAY + 30.5, 0.125)])


def second_delivery() -> list[dict[str, Any]]:
    """Of everything a part that is there, a part that is there with other values, and a part that is new."""
    again = week()[::7]
    other = [{**each, "soc": 77.0} for each in week()[3::11]]
    new = [vehicle(f"V-{n}", minute + 0.25, 0.5) for n in range(4) for minute in range(0, 8 * DAY, 97)]
    late = [vehicle("V-1", 30.5, 0.125), vehicle("V-2", DAY + 30.5, 0.75)]  # the same, and another
    return [*again, *new, *other, *late, *again[:10]]


async def test_a_load_over_all_tiers_is_as_a_post(
    servers: list[str], client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as other, in_process(other, runner=False) as posting:
        await tiered(posting, other)
        told = {"accepted": 0, "duplicates": 0, "conflicts": 0}
        delivered = second_delivery()
        for start in range(0, len(delivered), 200):
            answer = await ingest(posting, delivered[start : start + 200])
            told = {name: count + answer[name] for name, count in told.items()}
        await roll(other)
        expected = await answers(posting, PERIOD, DEVICES)
    await tiered(client, cluster)
    found = (await load(cluster, delivered, tmp_path)).outcome
    assert found == Outcome(told["accepted"], told["duplicates"], told["conflicts"])
    mine = await answers(client, PERIOD, DEVICES)
    assert _plain(mine) == _plain(expected)
    await roll(cluster)
    await tend(cluster)
    assert _plain(await answers(client, PERIOD, DEVICES)) == _plain(expected)
    again = (await load(cluster, delivered, tmp_path)).outcome
    assert (again.accepted, again.conflicts) == (0, told["conflicts"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name != "createdAt"}
    return [_plain(each) for each in value] if isinstance(value, list) else value


async def test_a_late_reading_that_comes_meanwhile_is_stored_once(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    """Between the packing of a day and its commit: before the load is alone with the bucket's late writers."""
    sent: list[dict[str, Any]] = []

    async def watch(place: str) -> None:
        if place == "inside load" and not sent:
            sent.extend([vehicle("V-0", 61, 61 % 5 / 8), vehicle("V-0", 61.5), vehicle("V-0", 122, 99.0)])
            assert (await ingest(client, sent))["accepted"] == len(sent)

    await load(cluster, [vehicle("EARLIER", 0)], tmp_path)  # so that its time is packed, and routers know
    await ingest(client, [vehicle("EARLIER", 1)])
    readings = [each for each in week() if each["vehicleId"] == "V-0"]
    outcome = (await load(cluster, readings, tmp_path, watch=watch)).outcome
    assert len(sent) == 3
    assert outcome == Outcome(len(readings) - 2, 1, 1)
    page = (await client.get("/v1/vehicles/V-0/history", params={**PERIOD, "limit": 1000})).json()["items"]
    assert (
        len(page) == len({each["timestamp"] for each in page}) == len(readings)
    )  # without the first, with the one between


async def test_what_is_hot_follows_the_usual_way(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    """And a status is that of the newest reading, wherever it went."""
    now = datetime.now(UTC).replace(microsecond=0)
    fresh = [
        {**vehicle("V-9", 0, soc=soc), "timestamp": (now - age).isoformat()}
        for soc, age in ((11.0, timedelta(minutes=3)), (12.0, timedelta(minutes=1)), (13.0, timedelta(minutes=2)))
    ]
    await ingest(client, fresh[:1])
    outcome = (await load(cluster, [*fresh, vehicle("V-9", 0, soc=10.0)], tmp_path)).outcome
    assert outcome == Outcome(3, 1)
    status = (await client.get("/v1/vehicles/V-9/status")).json()
    assert (status["soc"], status["lastUpdated"]) == (12.0, fresh[1]["timestamp"].replace("+00:00", "Z"))


async def test_sealed_time_takes_nothing(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    await load(cluster, [vehicle("V-0", 0)], tmp_path)
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE tier SET sealed_until = '2026-05-02' WHERE kind = 'vehicle'")
    outcome = (await load(cluster, [vehicle("V-0", 1), vehicle("V-0", DAY)], tmp_path)).outcome
    assert outcome == Outcome(1, 0, 0, 1)


async def test_a_pinned_tenant_and_another_database(
    client: httpx2.AsyncClient, cluster: TestCluster, servers: list[str], tmp_path: Path
) -> None:
    key = await new_tenant(cluster, "acme", "s2", buckets=4)
    dsn = cluster.catalog_dsn
    await execute(
        dsn, "CREATE TABLE readings (device text, at timestamptz, percent real, kwh numeric, temp int, note text)"
    )
    await execute(
        dsn,
        "INSERT INTO readings SELECT 'V-' || n % 3, "
        "'2026-05-01 00:00:00.123456+00'::timestamptz + n * interval '1 minute', "
        "n % 100, n / 1000.0, 20, 'a, \"b\"' FROM generate_series(1, 3000) AS n",
    )
    columns = {
        "vehicleId": "device",
        "timestamp": "at",
        "soc": "percent",
        "kwhDeliveredDc": "kwh",
        "batteryTemp": "temp",
    }
    naming = Naming(VEHICLE, columns, ["note"])
    found = await load_files(
        cluster, VEHICLE, [], tmp_path / "spool", tenant="acme", sources=[Foreign(dsn, "public.readings", naming)]
    )
    assert (found.failed, found.outcome) == ({}, Outcome(3000))
    params = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-01T00:04:00Z"}
    page = (await client.get("/v1/vehicles/V-1/history", params=params, headers=key.headers)).json()
    assert [(each["timestamp"], each["kwhDeliveredDc"]) for each in page["items"]] == [
        ("2026-05-01T00:01:00.123456Z", 0.001)
    ]
    rows = {name: len(await fetch(dsn, "SELECT FROM vehicle_telemetry_packed")) for name, dsn in cluster.shards.items()}
    assert rows == {"s1": 0, "s2": 9, "s3": 0}


async def test_a_bucket_in_a_move_is_waited_for(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on when the move has ended, and everything else first."""
    monkeypatch.setattr("shards.bulk.runner.PAUSE_S", 0.05)
    shard = cluster.owner("V-0")
    owner = await asyncpg.connect(cluster.shards[shard])
    bucket = bucket_of("V-0", 8)
    await owner.execute(MOVE, bucket)
    placed: list[int] = []

    async def watch(place: str) -> None:
        if place == "after load":
            placed.append(0)

    loading = asyncio.create_task(load(cluster, week(), tmp_path, watch=watch))
    while len(placed) < 1:
        await asyncio.sleep(0.02)
    assert await owner.fetchval("SELECT count(*) FROM vehicle_telemetry_packed WHERE bucket = $1", bucket) == 0
    await owner.execute("DELETE FROM bucket_move")
    assert (await loading).outcome == Outcome(len(week()))
    await owner.close()


async def test_the_command(cluster: TestCluster, tmp_path: Path) -> None:
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    file = write_csv(
        tmp_path / "meters.csv", METER, [meter(f"M-{n}", minute) for n in range(3) for minute in range(50)]
    )
    done = await run_command("load", "meter", file, "--verify", env=env)
    assert (done.code, done.out) == (0, "150 accepted, 0 duplicates, 0 conflicts, 0 too old, 0 bad\n"), done.err
    text = file.read_text().splitlines()
    file.write_text("\n".join([*text[:3], text[3].replace("230.0", "-1"), text[4].replace("M-0", "M 0"), *text[5:8]]))
    done = await run_command("load", "meter", file, "--json", env=env)
    assert (done.code, done.out) == (2, "")
    assert f"{file}: row 3: voltage is -1, and must be at least 0" in done.err
    done = await run_command("load", "meter", file, "--json", "--skip-bad", env=env)
    assert (done.code, done.json["duplicates"], done.json["bad"]) == (1, 5, 2)
    assert done.json["badRows"][1].endswith("row 4: meterId 'M 0' must be 1 to 64 of A-Z a-z 0-9 . _ : * + | @ = -")


REFUSED = [
    (["bus", "FILE"], 3, "there is no kind 'bus'"),
    (["meter"], 2, "say what is loaded: files, or --dsn with --table"),
    (["meter", "FILE", "--dsn", "env:X", "--table", "t"], 2, "say what is loaded"),
    (["meter", "--dsn", "postgresql://x"], 2, "--dsn needs --table"),
    (["meter", "--dsn", "postgresql://x", "--table", "t"], 2, "other users see what stands here"),
    (["meter", "nothing.csv"], 2, "there is no such file"),
    (["meter", "FILE", "--format", "xml"], 2, "--format xml is none: one of csv, parquet, ndjson, lines"),
    (["meter", "FILE", "--map", "volts=V"], 2, "meter has no such field"),
    (["meter", "FILE", "--map", "voltage"], 2, "is not FIELD=COLUMN"),
    (["meter", "FILE", "--map", "voltage=V"], 2, "there is no column 'V'; there are meterId"),
    (
        ["vehicle", "FILE"],
        2,
        "the column 'meterId' is no field of vehicle: say --map FIELD=meterId, or --ignore meterId",
    ),
    (["meter", "FILE", "--time-zone", "Mars"], 2, "'Mars' is no time zone"),
    (["meter", "FILE", "--time-unit", "h"], 2, "--time-unit h is none"),
    (["meter", "FILE", "--tenant", "nobody"], 3, "there is no tenant nobody"),
    (["meter", "FILE", "--spool", "FOLDER"], 2, "there is something else in it: name an empty folder"),
]


async def test_what_the_command_refuses(cluster: TestCluster, tmp_path: Path) -> None:
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    file = write_csv(tmp_path / "meters.csv", METER, [meter("M-0")])
    for arguments, code, text in REFUSED:
        given = [{"FILE": str(file), "FOLDER": str(tmp_path)}.get(each, each) for each in arguments]
        done = await run_command("load", *given, env=env)
        assert (done.code, text in " ".join(done.err.split())) == (code, True), (arguments, done.err)
    await execute(cluster.catalog_dsn, "DELETE FROM lifecycle_policy")
    done = await run_command("load", "meter", file, env=env)
    assert (done.code, "lifecycle policy set meter --hot 7d" in " ".join(done.err.split())) == (3, True), done.err


async def test_lines_of_influxdb(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    """Each field of a reading in a line of its own, and those of another measurement between them."""
    start = int(datetime(2026, 5, 1, tzinfo=UTC).timestamp()) * 10**9
    lines = ["# exported", ""]
    for field, value in (("soc", "50"), ("kwhDeliveredDc", "0.25"), ("temp", "20i")):
        lines += [
            f"battery,vehicle=V\\=1,site=a {field}={value} {start + minute * 60 * 10**9}" for minute in range(1, 200)
        ]
    lines += [f"battery,vehicle=V\\=1,site=a soc=51 {start + 30 * 10**9}", f'weather note="a, b" {start}']
    lines += [f"battery,vehicle=V\\=1,site=a soc=77,kwhDeliveredDc=0.25 {start + 60 * 10**9}"]
    file = tmp_path / "dump.lp"
    file.write_text("\n".join(lines))
    arguments = ("--map", "vehicleId=vehicle", "--map", "batteryTemp=temp", "--table", "battery", "--json")
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    refused = await run_command("load", "vehicle", file, *arguments, env=env)
    assert (refused.code, "dump.lp:3: 'site' is no field: say --map FIELD=site, or --ignore site" in refused.err) == (
        2,
        True,
    )
    done = await run_command("load", "vehicle", file, *arguments, "--ignore", "site", env=env)
    assert (done.code, done.json["accepted"], done.json["conflicts"], done.json["bad"]) == (1, 199, 1, 1), done.err
    assert done.json["badRows"] == ["V=1 at 2026-05-01T00:00:30.000000Z: kwh_delivered_dc is missing"]
    found = (await client.get("/v1/vehicles/V=1/history", params={**PERIOD, "limit": 1})).json()["items"][0]
    assert (found["soc"], found["kwhDeliveredDc"], found["batteryTemp"]) == (50.0, 0.25, 20.0)
    file.write_text("battery soc\n")
    broken = await run_command("load", "vehicle", file, *arguments, env=env)
    assert (broken.code, "dump.lp:1: 'battery soc' is no line of the protocol" in broken.err) == (2, True)


async def test_a_field_that_is_added_meanwhile(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions are ended for that, and the columns of the shards are others when it goes on."""
    monkeypatch.setattr("shards.bulk.runner.PAUSE_S", 0.05)
    monkeypatch.setattr("shards.bulk.runner.PORTION", 50)
    added: list[int] = []

    async def watch(place: str) -> None:
        if place == "after load" and not added:
            added.append(1)
            arguments = ("field", "add", "vehicle", "mode", "--type", "int4")
            done = await run_command(*arguments, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn})
            assert done.code == 0, done.err

    outcome = (await load(cluster, week(), tmp_path, watch=watch)).outcome
    assert (added, outcome) == ([1], Outcome(len(week())))
    page = (await client.get("/v1/vehicles/V-2/history", params={**PERIOD, "limit": 1000})).json()["items"]
    assert [item["kwhDeliveredDc"] for item in page] == [
        each["kwhDeliveredDc"] for each in reversed(week()) if each["vehicleId"] == "V-2"
    ][: len(page)]


async def test_a_table_with_odd_columns(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local times, one before our era, whole numbers as texts, a text that is no number."""
    dsn = cluster.catalog_dsn
    await execute(
        dsn, 'CREATE TABLE "Old Readings" ("vehicleId" uuid, timestamp timestamp, soc text, kwh text, t numeric)'
    )
    await execute(
        dsn,
        """INSERT INTO "Old Readings" SELECT '00000000-0000-0000-0000-000000000001', at, soc, '0.5', 20.00
        FROM (VALUES ('2026-05-01 02:01'::timestamp, '1'), ('2026-05-01 02:02 BC', '2'), ('2026-05-01 02:03', 'x'),
            ('infinity', '4'), ('2026-05-01 02:05', '5.00')) AS v (at, soc)""",
    )
    naming = Naming(VEHICLE, {"kwhDeliveredDc": "kwh", "batteryTemp": "t"})
    of = checker_of(VEHICLE, zone="Europe/Berlin", skip_bad=True)
    source = Foreign(dsn, "Old Readings", naming)
    found = await load_files(cluster, VEHICLE, [], tmp_path / "spool", checker=of, sources=[source])
    assert (found.failed, found.outcome, found.bad) == ({}, Outcome(2), 3)
    assert [each.partition(": ")[2] for each in found.bad_rows] == [
        "row 2: timestamp is required",
        "row 3: soc 'x' is not a number",
        "row 4: timestamp is required",
    ]
    page = (await client.get("/v1/vehicles/00000000-0000-0000-0000-000000000001/history", params=PERIOD)).json()
    assert [each["timestamp"] for each in page["items"]] == ["2026-05-01T00:05:00Z", "2026-05-01T00:01:00Z"]
