"""PostgreSQL's figures: of every shard, by a login that reads no reading, and never inside a scrape."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx2
import pytest
import structlog

from router.figures import Figures
from shards.clock import deadline_in
from shards.operations import doctor
from shards.postgres import figures
from shards.postgres.connections import Connection
from shards.postgres.options import PoolLimits, PoolOptions
from shards.postgres.pools import ShardPool
from tests.integration.test_identity import records
from tests.support.ledger import execute, fetch
from tests.support.readings import ingest, meter
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster


@pytest.fixture
async def own(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=2, buckets=4) as made:
        yield made


async def scraped(client: httpx2.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def test_every_router_tells_the_cheap_ones_and_the_leader_the_others(own: TestCluster) -> None:
    async with in_process(own, runner=False) as client:
        await ingest(client, [meter(own.devices_of(shard, 1)[0]) for shard in own.shards])
        async with asyncio.timeout(30):
            while 'pg_stat_database_numbackends{shard="s2"}' not in (found := await scraped(client)):
                await asyncio.sleep(0.05)
        for shard in own.shards:
            assert found[f'pg_stat_database_numbackends{{shard="{shard}"}}'] > 0
            assert found[f'pg_settings_max_connections{{shard="{shard}"}}'] >= 100
            assert found[f'pg_replication_is_replica{{shard="{shard}"}}'] == 0
            assert found[f'pg_database_frozenxid_age{{shard="{shard}"}}'] > 0
        assert not any(name.startswith("pg_stat_user_tables") for name in found)
        told = client.app.state.router.figures  # type: ignore[attr-defined]
        assert isinstance(told, Figures)
        await told._ask_all("heavy", figures.heavy)
        await told._ask_all("cheap", figures.cheap)
        found = await scraped(client)
        for shard in own.shards:
            assert found[f'pg_stat_activity_count{{shard="{shard}",state="idle"}}'] >= 1
            assert found[f'pg_database_size_bytes{{shard="{shard}"}}'] > 1e6
            assert found[f'pg_wal_size_bytes{{shard="{shard}"}}'] > 0
            assert f'pg_stat_user_tables_n_dead_tup{{relname="meter_telemetry_history",shard="{shard}"}}' in found
        assert not any("_b0" in name for name in found)  # no leaf has a series of its own


async def test_a_shard_that_does_not_answer_has_no_figures(own: TestCluster) -> None:
    async with in_process(own, runner=False) as client:
        told = client.app.state.router.figures  # type: ignore[attr-defined]
        await told._ask_all("cheap", figures.cheap)
        assert 'pg_settings_max_connections{shard="s1"}' in await scraped(client)
        login = (await records(own))["s1"].monitor_dsn or ""
        await execute(own.shards["s1"], f'ALTER ROLE "{login.partition("://")[2].partition(":")[0]}" NOLOGIN')
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'voltroute monitor'"
        await execute(own.shards["s1"], end)
        await told._ask_all("cheap", figures.cheap)
        found = await scraped(client)
        assert 'pg_settings_max_connections{shard="s1"}' not in found
        assert 'pg_settings_max_connections{shard="s2"}' in found


@asynccontextmanager
async def monitoring(cluster: TestCluster) -> AsyncIterator[Connection]:
    """A connection as figures are asked with."""
    login = (await records(cluster))["s1"].monitor_dsn
    assert login is not None
    pool = ShardPool("s1", login, PoolLimits(min_size=0, max_size=1), PoolOptions())
    try:
        async with pool.connection(deadline_in(5)) as connection:
            yield connection
    finally:
        await pool.close()


async def test_the_monitors_login_reads_no_reading(own: TestCluster) -> None:
    async with monitoring(own) as connection:
        samples = await figures.heavy(connection)
        assert samples[figures.HEAVY[0]]
        for table in ("meter_telemetry_history", "vehicle_current_status", "correction"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"SELECT * FROM {table}")


async def test_the_runway_of_partitions_is_that_of_the_bucket_which_has_the_shortest(own: TestCluster) -> None:
    (runway,) = (figure for figure in figures.HEAVY if figure.name.endswith("partition_runway_seconds"))

    async def days() -> float:
        async with monitoring(own) as connection:
            (((), seconds),) = (await figures.heavy(connection))[runway]
            return seconds / 86_400

    assert 58 < (before := await days()) < 93  # this month and two more
    leaves = await fetch(
        own.shards["s1"],
        "SELECT name FROM leaf WHERE (bucket, kind) = (SELECT bucket, kind FROM leaf LIMIT 1) ORDER BY name",
    )
    assert leaves.pop()["name"].endswith("_past")
    for leaf in leaves[1:]:
        await execute(own.shards["s1"], f"DROP TABLE {leaf['name']}")
    assert before - 63 < await days() < before - 58
    for leaf in leaves[:1]:
        await execute(own.shards["s1"], f"DROP TABLE {leaf['name']}")
    assert await days() == 0


async def test_statements_are_told_with_their_texts_where_they_are_counted(own: TestCluster) -> None:
    async with in_process(own, runner=False) as client:
        assert (await client.get("/v1/shards/s1/statements")).json()["items"]  # made with the cluster: it is loaded
        await execute(own.shards["s1"], "DROP EXTENSION pg_stat_statements")
        assert (await client.get("/v1/shards/s1/statements")).json() == {"items": []}
        await execute(own.shards["s1"], "CREATE EXTENSION pg_stat_statements")
        await execute(own.shards["s1"], "SELECT pg_sleep(0.15)")
        await ingest(client, [meter(device) for device in own.devices_of("s1", 3)])
        items = (await client.get("/v1/shards/s1/statements")).json()["items"]
        (slept,) = [item for item in items if item["query"] == "SELECT pg_sleep($1)"]  # others may be slower today
        assert slept["meanMs"] > figures.SLOW_MS
        assert slept["calls"] == 1
        told = client.app.state.router.figures  # type: ignore[attr-defined]
        with structlog.testing.capture_logs() as lines:
            for _ in range(2):
                await told._ask_all("heavy", figures.heavy)
                told._tell_slow()
        told_of = [(line["event"], line["queryid"]) for line in lines if line["queryid"] == slept["queryId"]]
        assert told_of == [("slow_statement", slept["queryId"])]
        assert any("INSERT INTO" in item["query"] for item in items)
        for secret in (
            "CREATE ROLE someone_else PASSWORD 'SECRET'",
            "DO $$ BEGIN PERFORM 'postgresql://u:SECRET@h/d'; END $$",
        ):
            await execute(own.shards["s1"], f"BEGIN; {secret}; ROLLBACK")
        kept = "SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%SECRET%'"
        assert (await fetch(own.shards["s1"], kept))[0][0] >= 2
        assert "SECRET" not in (await client.get("/v1/shards/s1/statements")).text
        assert (await client.get("/v1/shards/nobody/statements")).status_code == 404


async def test_slow_statements_are_a_view_for_whoever_monitors(own: TestCluster) -> None:
    login = (await records(own))["s1"].monitor_dsn
    assert login is not None
    slow = "SELECT * FROM slow_statement"
    await execute(own.shards["s1"], "DROP EXTENSION pg_stat_statements")
    assert await fetch(login, slow) == []  # the extension is not there
    await execute(own.shards["s1"], "CREATE EXTENSION pg_stat_statements")
    await execute(own.shards["s1"], "SELECT pg_sleep(0.15)")
    await execute(own.shards["s1"], "SELECT 1")
    found = {record["query"]: record for record in await fetch(login, slow)}
    assert "SELECT $1" not in found
    slept = found["SELECT pg_sleep($1)"]
    assert slept["calls"] == 1
    assert figures.SLOW_MS < slept["mean_ms"] <= slept["max_ms"]
    for other in ("writer_dsn", "reader_dsn"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await fetch(getattr((await records(own))["s1"], other), slow)


async def test_doctor_says_which_grant_is_missing(own: TestCluster) -> None:
    found = {each.name: each for each in await doctor.examine(own.catalog_dsn)}
    assert found["s1 statistics"].ok
    await execute(own.shards["s1"], "DROP EXTENSION pg_stat_statements")
    uncounted = {each.name: each for each in await doctor.examine(own.catalog_dsn)}["s1 statistics"]
    assert (uncounted.ok, uncounted.remedy) == (False, "CREATE EXTENSION pg_stat_statements, as a superuser there")
    login = ((await records(own))["s1"].monitor_dsn or "").partition("://")[2].partition(":")[0]
    await execute(own.shards["s1"], f'REVOKE pg_monitor FROM "{login}"')
    try:
        refused = {each.name: each for each in await doctor.examine(own.catalog_dsn)}["s1 statistics"]
        assert (refused.ok, refused.remedy) == (False, f"GRANT pg_monitor TO {login}")
    finally:
        await execute(own.shards["s1"], f'GRANT pg_monitor TO "{login}"')
