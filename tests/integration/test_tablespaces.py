"""Frozen leaves in a cheaper tablespace instead of packed: answers as they were, nobody waits, and what is refused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from shards.kinds import KINDS
from shards.policy import Policies, Policy
from shards.tiers import steps, tablespaces
from shards.tiers.runner import Tender
from tests.support.archiving import left, use
from tests.support.commands import run_command
from tests.support.ledger import execute, fetch
from tests.support.readings import at, ingest, meter, register, undated, vehicle
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import Interrupted, answers, as_if_made, records_of, soon, tend, until

DAY = 1440  # minutes
CHEAP = "cheap"
PERIOD = {"from": at(0), "to": at(4 * DAY)}
DEVICES = {"meters": ["M-0", "R-0"], "vehicles": ["V-0", "V-1", "V-2"]}
PLACED: Mapping[str, Policy] = {each.name: Policy(each.name, timedelta(0), tablespace=CHEAP) for each in KINDS}
PLACES = ("inside copy", "after copy", "inside swap", "after swap")
# How many leaves, and indexes of theirs, are where.
WHERE = """
SELECT coalesce(s.spcname::text, '-') AS tablespace, count(*) FROM bucket_table AS b
CROSS JOIN LATERAL leaves_of(b.name) AS l JOIN tier AS t ON t.bucket = b.bucket AND t.kind = b.kind
LEFT JOIN pg_index AS i ON i.indrelid = l.leaf_oid
CROSS JOIN LATERAL (VALUES (l.leaf_oid), (i.indexrelid)) AS o (oid) JOIN pg_class AS c ON c.oid = o.oid
LEFT JOIN pg_tablespace AS s ON s.oid = c.reltablespace
WHERE b.role = 'history' AND upper(l.span) <= t.frozen_until GROUP BY 1
"""
COPIES = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND starts_with(relname, 'voltroute_copy')"


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    """Three shards with a second tablespace on each server, eight buckets, leaves of a day."""
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await as_if_made(made, date(2026, 5, 1), "day")
        for dsn in made.shards.values():
            await make_tablespace(dsn, CHEAP)
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def make_tablespace(dsn: str, name: str) -> None:
    """Inside the server's own folder, as one statement may; it belongs to the server, and may be there."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET allow_in_place_tablespaces = on")
    with contextlib.suppress(asyncpg.DuplicateObjectError):
        await connection.execute(f"CREATE TABLESPACE {name} LOCATION ''")
    await connection.close()


def old_readings() -> list[dict[str, Any]]:
    readings = [meter("M-0", minute, kwh=minute % 9 / 8) for minute in range(0, 4 * DAY, 11)]
    readings += [register("R-0", minute, 1000 + minute * 0.25) for minute in range(0, 4 * DAY, 13)]
    for n in range(3):
        readings += [vehicle(f"V-{n}", minute + n / 60, kwh=minute % 7 / 10_000) for minute in range(0, 4 * DAY, 17)]
    return readings


async def where(cluster: TestCluster) -> dict[str, int]:
    found: dict[str, int] = {}
    for dsn in cluster.shards.values():
        for name, count in await fetch(dsn, WHERE):
            found[name] = found.get(name, 0) + count
    return found


async def total(cluster: TestCluster, sql: str) -> int:
    return sum([(await fetch(dsn, sql))[0][0] for dsn in cluster.shards.values()])


async def test_leaves_go_there_and_are_packed_later(
    client: httpx2.AsyncClient, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon(monkeypatch)
    monkeypatch.setattr(steps, "CHUNK_READINGS", 500)
    await ingest(client, old_readings())
    await roll(cluster)
    before = await answers(client, PERIOD, DEVICES)
    await tend(cluster, policies=PLACED)
    there = await where(cluster)
    assert set(there) == {CHEAP}
    assert there[CHEAP] > 40
    assert await total(cluster, COPIES) == 0
    assert await answers(client, PERIOD, DEVICES) == before
    assert await total(cluster, "SELECT count(*) FROM vehicle_telemetry_packed") == 0
    late = [vehicle("V-0", 5.5, kwh=0.25), vehicle("V-0", 0), register("R-0", 14, 1003.4)]
    told = await ingest(client, late)
    assert (told["accepted"], told["duplicates"], told["conflicts"]) == (2, 0, 1)
    assert await total(cluster, "SELECT count(*) FROM vehicle_telemetry_late") == 1
    await tend(cluster, policies=PLACED)  # nothing more is due
    with_late = await answers(client, PERIOD, DEVICES)
    assert with_late != before
    await tend(cluster)  # --tablespace none
    assert await where(cluster) == {}
    assert await total(cluster, "SELECT count(*) FROM vehicle_telemetry_late") == 0
    assert await answers(client, PERIOD, DEVICES) == with_late


@pytest.mark.parametrize("place", PLACES)
async def test_interrupted_and_gone_on_with(client: httpx2.AsyncClient, cluster: TestCluster, place: str) -> None:
    await ingest(client, old_readings())
    before = await answers(client, PERIOD, DEVICES)
    for times in (1, 2):
        with pytest.raises(Interrupted):
            await tend(cluster, until(place, times), PLACED)
        assert await answers(client, PERIOD, DEVICES) == before
    await tend(cluster, policies=PLACED)
    assert set(await where(cluster)) == {CHEAP}
    assert await total(cluster, COPIES) == 0
    assert await answers(client, PERIOD, DEVICES) == before


async def test_whoever_may_still_read_the_leaf_is_waited_for(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """A transaction whose snapshot is older than the copy would find nothing in it; meanwhile readings are taken."""
    await ingest(client, old_readings())
    records = await records_of(cluster)
    readers = [await asyncpg.connect(dsn) for dsn in cluster.shards.values()]
    seen = "SELECT count(*) FROM vehicle_telemetry_history"
    for reader in readers:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.execute("SELECT 1 FROM pg_class LIMIT 1")  # its snapshot, and no lock on any leaf
    counts = [await fetch(dsn, seen) for dsn in cluster.shards.values()]
    waiting = sum([(await Tender(record, Policies(PLACED)).run()).waiting for record in records])
    assert waiting > 0
    assert CHEAP not in await where(cluster)
    assert await ingest(client, [vehicle(f"V-{n}", 40 * DAY) for n in range(3)])
    for reader, count in zip(readers, counts, strict=True):
        assert await reader.fetchval(seen) == count[0][0]
        await reader.close()
    await tend(cluster, policies=PLACED)
    assert set(await where(cluster)) == {CHEAP}


async def test_readers_go_on_all_along(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await ingest(client, old_readings())
    before = await answers(client, PERIOD, DEVICES)
    placing = asyncio.create_task(tend(cluster, policies=PLACED))
    looked = 0
    while not placing.done():
        assert await answers(client, PERIOD, DEVICES) == before
        looked += 1
    await placing
    assert looked > 1


async def test_copies_that_nobody_goes_on_with(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Of a bucket that was moved away meanwhile, and by a policy that is another one now."""
    await ingest(client, old_readings())
    with pytest.raises(Interrupted):
        await tend(cluster, until("inside copy", 2), PLACED)
    begun = await total(cluster, COPIES)
    dsn = next(iter(cluster.shards.values()))
    orphan = "voltroute_copy_1"
    await execute(dsn, f"CREATE TABLE {orphan} (LIKE vehicle_telemetry_history)")
    await execute(dsn, f"COMMENT ON TABLE {orphan} IS 'voltroute copy'")
    await execute(dsn, "CREATE TABLE voltroute_copy_of_somebody (n integer)")
    assert begun > 0
    hot = {each.name: Policy(each.name, timedelta(days=3000)) for each in KINDS}
    await tend(cluster, policies=hot)
    assert await total(cluster, COPIES) == 1  # which is somebody else's
    await execute(dsn, "DROP TABLE voltroute_copy_of_somebody")


async def test_a_leaf_that_was_changed_under_its_copy(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await ingest(client, old_readings())
    deleted = 0
    while not deleted:  # some leaves are empty
        with pytest.raises(Interrupted):
            await tend(cluster, until("after copy", 2), PLACED)
        for dsn in cluster.shards.values():
            for (name,) in await fetch(dsn, COPIES.replace("count(*)", "relname::text")):
                deleted += len(await fetch(dsn, f"DELETE FROM {name} WHERE true RETURNING 1"))
    with pytest.raises(AssertionError, match="it is copied anew"):
        await tend(cluster, policies=PLACED)
    await tend(cluster, policies=PLACED)
    before = await answers(client, PERIOD, DEVICES)
    assert set(await where(cluster)) == {CHEAP}
    assert len(before["vehicles V-0 1"]) == len(range(0, 4 * DAY, 17))


async def test_from_one_tablespace_to_another(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """And to the one that the database has, by its name: indexes go along, and it ends."""
    await ingest(client, old_readings())
    before = await answers(client, PERIOD, DEVICES)
    for dsn in cluster.shards.values():
        await make_tablespace(dsn, "cheaper")
    for name, found in ((CHEAP, CHEAP), ("cheaper", "cheaper"), ("pg_default", "-")):
        policies = {each.name: Policy(each.name, timedelta(0), tablespace=name) for each in KINDS}
        await tend(cluster, policies=policies)
        assert set(await where(cluster)) == {found}
        assert await answers(client, PERIOD, DEVICES) == before


async def test_a_server_without_it(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """It is told, and what is due otherwise goes on."""
    await ingest(client, old_readings())
    nowhere = {each.name: Policy(each.name, timedelta(0), tablespace="nowhere") for each in KINDS}
    for record in await records_of(cluster):
        told = (await Tender(record, Policies(nowhere)).run()).failed
        assert all("there is no tablespace nowhere" in why for why in told.values())
        assert told
    assert sum((await where(cluster)).values()) > 40  # all that are old enough are frozen


async def test_a_lock_on_another_leaf_holds_nothing_up(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """As autovacuum has one on the leaf that is written to."""
    await ingest(client, [*old_readings(), *(vehicle(f"V-{n}", 40 * DAY) for n in range(3))])
    holders = []
    for dsn in cluster.shards.values():
        holder = await asyncpg.connect(dsn)
        await holder.execute("BEGIN")
        for (name,) in await fetch(
            dsn,
            "SELECT l.name FROM bucket_table AS b CROSS JOIN LATERAL leaves_of(b.name) AS l "
            "WHERE b.role = 'history' AND upper(l.span) > '2026-06-01'",
        ):
            await holder.execute(f"LOCK TABLE {name} IN SHARE UPDATE EXCLUSIVE MODE")
        holders.append(holder)
    hot = timedelta(days=(datetime.now(UTC) - datetime(2026, 5, 6, tzinfo=UTC)).days)
    policies = {each.name: Policy(each.name, hot, tablespace=CHEAP) for each in KINDS}
    await tend(cluster, policies=policies)
    assert set(await where(cluster)) == {CHEAP}
    for holder in holders:
        await holder.close()


async def test_months_leave_from_there(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    await use(cluster, f"file://{tmp_path}/archive")
    await ingest(client, [*old_readings(), *(vehicle(f"V-{n}", 40 * DAY) for n in range(3))])
    await roll(cluster)
    whole = {**PERIOD, "interval": "day"}
    before = undated(await client.get("/v1/analytics/fleet", params=whole))
    policies = {
        each.name: Policy(each.name, timedelta(0), timedelta(microseconds=1), tablespace=CHEAP) for each in KINDS
    }
    await tend(cluster, policies=policies)
    await left(cluster)
    after = undated(await client.get("/v1/analytics/fleet", params=whole))
    assert (before.pop("tiers"), after.pop("tiers")) == (["rollups"], ["rollups"])
    assert after == before
    assert await total(cluster, "SELECT count(*) FROM vehicle_telemetry_packed WHERE day < '2026-06-01'") == 0


async def test_policies(cluster: TestCluster) -> None:
    async def policy(*options: str) -> Any:
        return await run_command("lifecycle", "policy", *options, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn})

    nowhere = await policy("set", "--hot", "7d", "--tablespace", "nowhere")
    assert (nowhere.code, "there is no tablespace nowhere" in " ".join(nowhere.err.split())) == (3, True), nowhere.err
    alone = await policy("set", "--tablespace", CHEAP)
    assert (alone.code, "--hot is needed, too" in alone.err) == (3, True), alone.err
    assert (await policy("set", "--hot", "7d", "--tablespace", CHEAP)).code == 0
    told = (await policy("show", "--json")).json["policies"]
    assert {each["tablespace"] for each in told} == {CHEAP}
    assert f"vehicle: partitions go to tablespace {CHEAP}" in (await policy("show")).out
    assert (await policy("set", "vehicle", "--tablespace", "none")).code == 0
    told = (await policy("show", "--json")).json["policies"]
    assert {each["kind"]: each["tablespace"] for each in told} == {"vehicle": None, "meter": CHEAP}


async def test_a_tablespace_that_the_owner_may_not_use(cluster: TestCluster) -> None:
    dsn = next(iter(cluster.shards.values()))
    session = await asyncpg.connect(dsn)
    await session.execute("BEGIN; CREATE ROLE poor_owner; SET LOCAL ROLE poor_owner")
    with pytest.raises(Exception, match="GRANT CREATE ON TABLESPACE"):
        await tablespaces.check(session, CHEAP)
    await session.execute("ROLLBACK")
    await session.close()
