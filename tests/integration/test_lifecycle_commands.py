"""The lifecycle as operators meet it: policies, what is due, doing it, where history is; the leader, and moves."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import asyncpg
import httpx2
import pytest_asyncio

from tests.integration.test_keys import until
from tests.support.commands import Finished, run_command
from tests.support.ledger import execute, fetch
from tests.support.readings import ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import new_tenant
from tests.support.tiering import as_if_made

OLD = datetime(2026, 5, 1, tzinfo=UTC)


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await as_if_made(made, date(2026, 6, 1), "month")  # what is written here is older, whatever day it is
        yield made


async def lifecycle(cluster: TestCluster, *arguments: str) -> Finished:
    return await run_command("lifecycle", *arguments, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn})


async def some(cluster: TestCluster) -> None:
    async with in_process(cluster, runner=False) as client:
        readings = [meter(f"M-{n}", minute) for n in range(9) for minute in range(20)]
        await ingest(client, readings + [vehicle(f"V-{n}", minute) for n in range(9) for minute in range(20)])


async def test_policies(cluster: TestCluster) -> None:
    for arguments, code, words in (
        (("plan",), 3, "no kind has a policy: `voltroute lifecycle policy set --hot 7d` makes one for all"),
        (("policy", "set"), 2, "--archive-to, --tablespace or --leaf is needed"),
        (("policy", "set", "--hot", "soon"), 2, "--hot soon: a number of hours, days or weeks is expected"),
        (("policy", "set", "--hot", "2h"), 2, "--hot 2h: from 1d to 3660d"),
        (("policy", "set", "--leaf", "year"), 2, "--leaf year: one of day, week, month"),
        (("policy", "set", "pump", "--hot", "7d"), 3, "there is no kind pump: known are meter, vehicle"),
        (("policy", "remove", "meter"), 3, "meter has no policy"),
    ):
        refused = await lifecycle(cluster, *arguments)
        assert (refused.code, words in refused.err) == (code, True), refused
    made = await lifecycle(cluster, "policy", "set", "--hot", "7d", "--leaf", "day", "--json")
    never = dict.fromkeys(("archiveAfter", "dropAfter", "rollupsFor", "tablespace"))
    plain = {"tenant": None, "hot": "7d", **never}
    assert made.json == {
        "leaf": "day",
        "archive": None,
        "policies": [{"kind": "meter", **plain}, {"kind": "vehicle", **plain}],
    }
    assert (await lifecycle(cluster, "policy", "set", "vehicle", "--hot", "36h")).code == 0
    assert (await lifecycle(cluster, "policy", "remove", "meter")).code == 0
    shown = await lifecycle(cluster, "policy", "show")
    assert "vehicle  36h" in shown.out
    assert "meter" not in shown.out
    assert "new partitions hold a day" in shown.out
    assert (await lifecycle(cluster, "plan", "--json")).json["due"][0]["kind"] == "vehicle"
    await execute(cluster.shards["s2"], "DELETE FROM schema_migration WHERE version > 17")
    behind = await lifecycle(cluster, "policy", "set", "--hot", "7d")
    assert (behind.code, "the schema of s2 is behind this release" in behind.err) == (3, True)


async def test_what_is_due_is_done_and_told(cluster: TestCluster) -> None:
    await some(cluster)
    assert (await lifecycle(cluster, "policy", "set", "--hot", "7d")).code == 0
    planned = (await lifecycle(cluster, "plan", "--json")).json["due"]
    assert {(each["kind"], each["due"]) for each in planned} == {("meter", "freeze"), ("vehicle", "freeze")}
    assert len(planned) == 2 * 8
    shown = await lifecycle(cluster, "plan")
    assert "next step" in shown.out
    assert "`voltroute lifecycle run` does it now" in shown.out
    done = await lifecycle(cluster, "run", "--wait", "--json")
    assert done.code == 0, done
    total = [shard["done"] for shard in done.json["shards"].values()]
    assert sum(each["pack"] for each in total) == 2 * 9 * 20
    assert sum(each["drop"] for each in total) == 2 * 8
    assert (await lifecycle(cluster, "plan")).out == "nothing is due\n"
    again = await lifecycle(cluster, "run")
    assert again.out.splitlines() == [f"s{n}: nothing was due" for n in (1, 2, 3)]
    status = (await lifecycle(cluster, "status", "--json")).json["shards"]
    assert sum(tiers["packedReadings"] for shard in status for tiers in shard["tiers"]) == 2 * 9 * 20
    lines = (await lifecycle(cluster, "status")).out.splitlines()
    assert lines[0].split() == ["shard", "kind", "buckets", "packed", "until", "packed", "late", "undropped", "due"]
    assert len(lines) == 1 + 3 * 2
    assert all(len(line) <= 80 for line in lines)


async def test_a_reader_of_before_keeps_its_leaf(cluster: TestCluster) -> None:
    """A snapshot from before the publishing still sees every reading, and the leaf goes when it has ended."""
    await some(cluster)
    assert (await lifecycle(cluster, "policy", "set", "--hot", "7d")).code == 0
    reader = await asyncpg.connect(cluster.shards["s1"])
    try:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        count = "SELECT count(*) FROM meter_telemetry_history"
        before = await reader.fetchval(count)
        assert before > 0
        waiting = await lifecycle(cluster, "run", "--json")
        assert waiting.json["shards"]["s1"]["waiting"] > 0
        assert waiting.json["shards"]["s2"]["waiting"] == 0
        assert await reader.fetchval(count) == before
        late = await lifecycle(cluster, "run", "--wait", "--timeout", "2")
        assert (late.code, "leaves may still be read by old statements" in late.err) == (1, True)
        assert "may still be read by old statements" in (await lifecycle(cluster, "run")).out
        assert await reader.fetchval(count) == before
    finally:
        await reader.close()
    assert (await lifecycle(cluster, "run", "--wait")).code == 0
    assert (await fetch(cluster.shards["s1"], "SELECT count(*) FROM packed_leaf"))[0][0] == 0


async def test_what_fails_is_named_and_stops_nothing_else(cluster: TestCluster) -> None:
    await some(cluster)
    assert (await lifecycle(cluster, "policy", "set", "--hot", "7d")).code == 0
    blocker = await asyncpg.connect(cluster.shards["s1"])
    try:
        table = "meter_telemetry_history_b0000_past"
        await blocker.execute(f"BEGIN; LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
        failed = await lifecycle(cluster, "run")
        assert failed.code == 1
        assert "  bucket 0 of meter: canceling statement due to lock timeout" in failed.out.splitlines()
        status = (await lifecycle(cluster, "status", "--json")).json["shards"]
        due = [tiers for shard in status for tiers in shard["tiers"] if tiers["due"]]
        assert [(each["bucket"], each["kind"], each["due"]) for each in due] == [(0, "meter", "freeze")]
    finally:
        await blocker.close()
    assert (await lifecycle(cluster, "run")).code == 0


async def test_corrections_of_frozen_readings_are_refused(cluster: TestCluster) -> None:
    await some(cluster)
    assert (await lifecycle(cluster, "policy", "set", "--hot", "7d")).code == 0
    assert (await lifecycle(cluster, "run")).code == 0
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    when = OLD.isoformat()
    refused = await run_command("correct", "meter", "M-1", when, "--set", "kwhConsumedAc=1", env=env)
    assert (refused.code, "are frozen: they are packed, or about to be" in refused.err) == (3, True), refused


async def test_the_leader_does_it_by_itself(cluster: TestCluster) -> None:
    """Also with partitions of a day, which it makes ahead; and says so in its metrics."""
    await as_if_made(cluster, OLD.date(), "day")
    await some(cluster)
    assert (await lifecycle(cluster, "policy", "set", "--hot", "7d", "--leaf", "day")).code == 0
    async with in_process(cluster, lifecycle_s=0.2, partitions_s=0.2) as client:

        async def packed() -> bool:
            counts = [await fetch(dsn, "SELECT sum(packed_readings) FROM tier") for dsn in cluster.shards.values()]
            return sum(int(each[0][0] or 0) for each in counts) == 2 * 9 * 20

        async with asyncio.timeout(60):
            while not await packed():
                await asyncio.sleep(0.05)
        text = (await client.get("/metrics")).text
        assert 'voltroute_lifecycle_steps_total{shard="s1",step="freeze"}' in text
        now = datetime.now(UTC)
        ahead = await fetch(
            cluster.shards["s1"],
            "SELECT count(*) FROM leaf WHERE leaf_range(bound) @> $1::timestamptz AND kind = 'meter'",
            now + timedelta(days=14),
        )
        assert ahead[0][0] == 3  # one for each of its buckets
        await told(client)


async def told(client: httpx2.AsyncClient) -> None:
    await ingest(client, {**meter("M-1"), "timestamp": datetime.now(UTC).isoformat()})
    page = (await client.get("/v1/meters/M-1/history")).json()
    assert page["tiers"] == ["hot", "packed"]


async def test_a_tenant_with_buckets_of_its_own_has_policies_of_its_own(cluster: TestCluster) -> None:
    """Its buckets are packed by them, all others by their kind's; without them, its buckets, too."""
    acme = await new_tenant(cluster, "acme", "s2", buckets=4)
    await new_tenant(cluster, "shared")
    async with in_process(cluster, runner=False) as client:
        await until(client, 200, headers=acme.headers)
        readings = [vehicle(f"V-{n}", minute) for n in range(9) for minute in range(20)]
        await ingest(client, readings, headers=acme.headers)
    for arguments, code, words in (
        (("policy", "set", "--hot", "7d", "--tenant", "shared"), 3, "shared shares its buckets with others"),
        (("policy", "set", "--hot", "7d", "--tenant", "nobody"), 3, "there is no tenant nobody"),
        (("policy", "set", "--drop-after", "9d", "--tenant", "acme"), 3, "have no policy yet: --hot is needed, too"),
        (("policy", "remove", "vehicle", "--tenant", "acme"), 3, "vehicle of acme has no policy of its own"),
    ):
        refused = await lifecycle(cluster, *arguments)
        assert (refused.code, words.replace("have no", "has no") in refused.err) == (code, True), refused
    assert (await lifecycle(cluster, "policy", "set", "--hot", "3660d", "--rollups-for", "4000d")).code == 0
    wrong = await lifecycle(cluster, "policy", "set", "vehicle", "--drop-after", "5000d", "--tenant", "acme")
    assert (wrong.code, "must be at least --drop-after 5000d (vehicle of acme)" in " ".join(wrong.err.split())) == (
        2,
        True,
    )
    made = await lifecycle(cluster, "policy", "set", "vehicle", "--hot", "2d", "--tenant", "acme", "--json")
    own = {
        "kind": "vehicle",
        "tenant": "acme",
        "hot": "2d",
        "archiveAfter": None,
        "dropAfter": None,
        "rollupsFor": "4000d",
        "tablespace": None,
    }
    assert made.json["policies"][2:] == [own]
    assert "vehicle of acme  2d" in (await lifecycle(cluster, "policy", "show")).out
    planned = await lifecycle(cluster, "plan", "--json")
    assert {(each["kind"], each["bucket"]) for each in planned.json["due"]} == {("vehicle", n) for n in range(8, 12)}
    assert (await lifecycle(cluster, "run", "--wait")).code == 0
    packed = "SELECT bucket, kind FROM tier WHERE packed_until > '2026-01-01'"
    rows = [row for dsn in cluster.shards.values() for row in await fetch(dsn, packed)]
    assert {(row["kind"], row["bucket"]) for row in rows} == {("vehicle", n) for n in range(8, 12)}
    async with in_process(cluster, runner=False) as client:
        await until(client, 200, headers=acme.headers)
        assert (await ingest(client, readings, headers=acme.headers))["duplicates"] == len(readings)
        assert (await ingest(client, [vehicle("V-0", 0.5)], headers=acme.headers))["accepted"] == 1
    assert (await lifecycle(cluster, "policy", "remove", "vehicle", "--tenant", "acme")).code == 0
    assert len((await lifecycle(cluster, "policy", "show", "--json")).json["policies"]) == 2
