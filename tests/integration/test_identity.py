"""Who a database is: other clusters' shards, one database twice, another database, a catalog from an older backup."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.operations import check, doctor
from shards.postgres.options import PoolLimits, PoolOptions
from shards.postgres.pools import ShardPool
from shards.postgres.sessions import open_session
from shards.shard import ShardRecord
from tests.support.commands import Finished, run_command
from tests.support.ledger import execute, fetch
from tests.support.readings import meter
from tests.support.routers import in_process
from tests.support.servers import TestCluster, drop_database, new_cluster, new_database


async def records(cluster: TestCluster) -> dict[str, ShardRecord]:
    catalog = Catalog(cluster.catalog_dsn)
    try:
        return {record.name: record for record in await catalog.shards(deadline_in(5))}
    finally:
        await catalog.close()


@asynccontextmanager
async def databases(servers: list[str], count: int) -> AsyncIterator[list[str]]:
    names = [f"d{os.getpid()}_{number}" for number in range(count)]
    try:
        yield [await new_database(servers[n % len(servers)], name) for n, name in enumerate(names)]
    finally:
        for n, name in enumerate(names):
            await drop_database(servers[n % len(servers)], name)


async def init(catalog: str, **shards: str) -> Finished:
    words = [word for name, dsn in shards.items() for word in ("--shard", f"{name}={dsn}")]
    return await run_command("init", "--catalog", catalog, "--buckets", 8, *words)


async def test_init_takes_nobody_elses_database(servers: list[str], cluster: TestCluster) -> None:
    async with databases(servers, 3) as (catalog, one, other):
        taken = await init(catalog, a=cluster.shards["s1"], b=one)
        assert (taken.code, "that database is shard s1 of another cluster" in taken.err) == (3, True), taken.err
        twice = await init(catalog, a=one, b=one)
        assert (twice.code, "a and b are one database" in twice.err) == (3, True), twice.err
        both = await init(catalog, a=catalog, b=one)
        assert (both.code, "catalog and a are one database" in both.err) == (3, True), both.err
        backwards = await init(cluster.shards["s1"], a=one)
        assert (backwards.code, "the catalog's database is shard s1" in backwards.err) == (3, True), backwards.err
        assert (await init(catalog, a=one, b=other)).code == 0


async def test_a_shard_is_not_pointed_at_another_database(servers: list[str]) -> None:
    async with databases(servers, 4) as (catalog, one, other, empty):
        assert (await init(catalog, a=one, b=other)).code == 0
        moved = await init(catalog, a=one, b=empty)
        assert moved.code == 3
        assert "b owns 4 buckets by the map, and the database behind that DSN has 0 of them" in moved.err
        swapped = await init(catalog, a=other, b=one)
        assert (swapped.code, "that database is shard b of this cluster already" in swapped.err) == (3, True)
        assert (await init(catalog, a=one, b=other)).code == 0


async def test_a_router_does_not_believe_a_dsn(servers: list[str]) -> None:
    """The catalog's DSN of s2 leads to s1's database: neither reads nor writes go there."""
    async with new_cluster(servers, shards=2, buckets=4) as cluster:
        known = await records(cluster)
        change = "UPDATE shard SET writer_dsn = $1, query_dsn = $2, owner_dsn = $3 WHERE name = 's2'"
        values = (known["s1"].writer_dsn, known["s1"].reader_dsn, known["s1"].owner_dsn)
        await execute(cluster.catalog_dsn, change, *values)
        device = cluster.devices_of("s2", 1)[0]
        async with in_process(cluster, runner=False, ingest_timeout_s=1) as client:
            answer = await client.post("/v1/ingest", json=meter(device))
            assert answer.status_code == 503
            assert (await client.get(f"/v1/meters/{device}/status")).status_code == 503
        catalog = Catalog(cluster.catalog_dsn)
        broken = [rule.name for rule in await check.check(catalog) if not rule.ok]
        await catalog.close()
        # s1 is another server: else its database says of itself that it is not s2.
        assert {"s2 is the server that it was", "every shard is the one that the catalog means"} & set(broken)


async def test_a_shard_that_owns_buckets_is_not_removed_by_a_catalog_of_yesterday(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster:
        # As restored from a backup made before s3 got its buckets.
        await execute(
            cluster.catalog_dsn,
            "UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = 's1') "
            "WHERE shard_id = (SELECT shard_id FROM shard WHERE name = 's3')",
        )
        env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
        refused = await run_command("shard", "remove", "s3", env=env)
        assert refused.code == 3
        assert "s3 says that it owns 2 buckets" in refused.err
        assert "--force leaves them behind" in refused.err
        gone = "UPDATE shard SET owner_dsn = 'postgresql://nobody@127.0.0.1:1/gone' WHERE name = 's3'"
        await execute(cluster.catalog_dsn, gone)
        silent = await run_command("shard", "remove", "s3", env=env)
        assert (silent.code, "s3 does not answer" in silent.err) == (3, True), silent.err
        assert (await run_command("shard", "remove", "s3", "--force", env=env)).code == 0


async def test_two_clusters_on_one_server_do_not_meet(servers: list[str]) -> None:
    one_server = servers[:1]
    async with (
        new_cluster(one_server, shards=1, buckets=2) as mine,
        new_cluster(one_server, shards=1, buckets=2) as other,
    ):
        logins, theirs = (await records(mine))["s1"], other.shards["s1"].rpartition("/")[2]
        for dsn in (logins.writer_dsn, logins.reader_dsn):
            await (await asyncpg.connect(dsn)).close()
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(dsn.rpartition("/")[0] + "/" + theirs)
        # Also if somebody lets them in: there is no right on any table.
        await execute(other.shards["s1"], f'GRANT CONNECT ON DATABASE "{theirs}" TO PUBLIC')
        for dsn, sql in (
            (logins.reader_dsn, "SELECT count(*) FROM meter_current_status"),
            (logins.writer_dsn, "INSERT INTO meter_current_status DEFAULT VALUES"),
            (logins.writer_dsn, "SELECT ensure_leaves(0::smallint, '{}')"),
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await fetch(dsn.rpartition("/")[0] + "/" + theirs, sql)
        found = {each.name: each for each in await doctor.examine(other.catalog_dsn)}
        assert found["s1 access"].found == "open to everybody"
        # As doctor says. A database that was restored from a dump is in that state too: the dump has no such right.
        assert (await run_command("migrate", "up", env={"VOLTROUTE_CATALOG_DSN": other.catalog_dsn})).code == 0
        assert {each.name: each for each in await doctor.examine(other.catalog_dsn)}["s1 access"].ok


async def test_a_clusters_logins_do_not_reach_another_ones_catalog(servers: list[str]) -> None:
    async with new_cluster(servers[:1], shards=1, buckets=2) as mine, new_cluster(servers[:1], shards=1) as other:
        for dsn in ((await records(mine))["s1"].writer_dsn, (await records(mine))["s1"].reader_dsn):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(dsn.rpartition("/")[0] + "/" + other.catalog_dsn.rpartition("/")[2])


async def test_the_writer_makes_no_temporary_tables(cluster: TestCluster) -> None:
    writer = (await records(cluster))["s1"].writer_dsn
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(writer, "CREATE TEMP TABLE t (a int)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(writer, "CREATE TABLE public.t (a int)")


async def test_a_session_keeps_its_promises_whatever_the_database_sets(cluster: TestCluster) -> None:
    writer = (await records(cluster))["s4"].writer_dsn
    database = writer.rpartition("/")[2]
    lax = {"synchronous_commit": "off", "search_path": "nowhere", "TimeZone": "Asia/Tokyo", "DateStyle": "German"}
    for name, value in lax.items():
        await execute(cluster.shards["s4"], f'ALTER DATABASE "{database}" SET {name} = {value!r}')
    pool = ShardPool("s4", writer, PoolLimits(min_size=1), PoolOptions())
    try:
        async with pool.connection(deadline_in(5)) as connection:
            shown = {name: await connection.fetchval(f"SHOW {name}") for name in lax}
        assert shown == {
            "synchronous_commit": "on",
            "search_path": "public",
            "TimeZone": "UTC",
            "DateStyle": "ISO, YMD",
        }
        async with open_session("s4", cluster.shards["s4"]) as mover:
            assert {name: await mover.fetchval(f"SHOW {name}") for name in lax} == shown
        found = {each.name: each for each in await doctor.examine(cluster.catalog_dsn)}
        assert found["s4 session"].ok
    finally:
        await pool.close()
        await execute(cluster.shards["s4"], f'ALTER DATABASE "{database}" RESET ALL')


async def test_passwords_need_not_be_in_argv(servers: list[str], tmp_path: Path) -> None:
    async with databases(servers, 2) as (catalog, one):
        secret = tmp_path / "shard.dsn"
        secret.write_text(one + "\n")
        env = {"VOLTROUTE_CATALOG_DSN": catalog, "ONE_DSN": one}
        for where in (f"a=@{secret}", "a=env:ONE_DSN"):
            done = await run_command("init", "--buckets", 8, "--shard", where, env=env)
            assert done.code == 0, done.err
        missing = await run_command("init", "--shard", f"a=@{tmp_path}/nowhere", env=env)
        assert (missing.code, "No such file" in missing.err) == (2, True)
        empty = await run_command("init", "--shard", "a=env:NOTHING", env=env)
        assert (empty.code, "env:NOTHING: there is no DSN" in empty.err) == (2, True)
