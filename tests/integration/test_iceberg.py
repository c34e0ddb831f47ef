"""The archive as Iceberg tables: what readers of them find is what was archived, also later, and by other means."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import httpx2
import pytest
import pytest_asyncio
from pyiceberg.catalog.sql import SqlCatalog

from shards.archive import iceberg
from tests.support.archiving import BOTH, left, restored, use
from tests.support.commands import Finished, run_command
from tests.support.ledger import fetch
from tests.support.months import packed
from tests.support.object_store import faulty_s3
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

NAMES = {"vehicle": "vehicle_id, tenant_id, timestamp, soc", "meter": "meter_id, tenant_id, timestamp, voltage"}


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str], tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=4) as made:
        await use(made, f"file://{tmp_path}/archive")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def register(cluster: TestCluster, *options: str, **env: str) -> Finished:
    return await run_command("archive", "register", *options, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, **env})


def rows_of(folder: Path, kind: str) -> list[tuple[Any, ...]]:
    """What is in the files, without Iceberg."""
    query = f"SELECT {NAMES[kind]} FROM read_parquet('{folder}/archive/v1/kind={kind}/**/*.parquet') ORDER BY 1, 2, 3"
    return duckdb.connect().execute(query).fetchall()


@contextmanager
def table_of(dsn: str, folder: Path, kind: str) -> Iterator[Any]:
    with closing(iceberg.own_catalog(dsn, f"file://{folder}/archive")) as catalog:
        yield catalog.load_table(("voltroute", kind))


def rows_in(dsn: str, folder: Path, kind: str) -> list[tuple[Any, ...]]:
    with table_of(dsn, folder, kind) as table:
        connection = duckdb.connect().register("found", table.scan().to_arrow())
        return connection.execute(f"SELECT {NAMES[kind]} FROM found ORDER BY 1, 2, 3").fetchall()


async def test_tables_hold_what_is_archived(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    refused = await register(cluster, "--iceberg")
    assert (refused.code, "nothing was archived yet" in refused.err) == (3, True)
    await packed(client, cluster)
    await left(cluster)
    told = await register(cluster, "--iceberg", "--json")
    assert told.code == 0, told.err
    tables = {each["kind"]: each for each in told.json["tables"]}
    assert set(tables) == {"vehicle", "meter"}
    for kind, table in tables.items():
        assert (table["added"], table["removed"]) == (table["objects"], 0)
        there = await asyncio.to_thread(rows_in, cluster.catalog_dsn, tmp_path, kind)
        assert there == rows_of(tmp_path, kind)
        assert there
    again = (await register(cluster, "--iceberg", "--json")).json["tables"]
    assert [(each["added"], each["removed"], each["metadata"]) for each in again] == [
        (0, 0, each["metadata"]) for each in told.json["tables"]
    ]
    some, every = await asyncio.to_thread(of_may, cluster.catalog_dsn, tmp_path)
    assert 0 < some < every
    await restored(cluster)  # it is in the archive, too
    assert [each["added"] for each in (await register(cluster, "--iceberg", "--json")).json["tables"]] == [0, 0]


def of_may(dsn: str, folder: Path) -> tuple[int, int]:
    """Files that are planned for a month, and all: by the partition, and what statistics of files say."""
    with table_of(dsn, folder, "vehicle") as table:
        some = len(list(table.scan(row_filter="timestamp < '2026-06-01T00:00:00+00:00'").plan_files()))
        return some, len(list(table.scan().plan_files()))


async def test_a_field_more_and_objects_that_are_gone(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    await packed(client, cluster)
    await left(cluster)
    assert (await register(cluster, "--iceberg")).code == 0
    added = await run_command(
        "kind", "extend", "vehicle", "driving", env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    )
    assert added.code == 0, added.err
    await left(cluster, policies=BOTH)  # --drop-after: the objects go
    told = await register(cluster, "--iceberg", "--json")
    assert told.code == 0, told.err
    for table in told.json["tables"]:
        assert (table["objects"], table["added"]) == (0, 0)
        assert table["removed"] > 0
    assert await asyncio.to_thread(rows_in, cluster.catalog_dsn, tmp_path, "vehicle") == []
    with table_of(cluster.catalog_dsn, tmp_path, "vehicle") as table:
        assert {"odometer_km", "outside_temp"} <= {each.name for each in table.schema().fields}


async def test_a_catalog_of_ones_own(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    """As pyiceberg is configured; and what is refused."""
    await packed(client, cluster)
    await left(cluster)
    other = {
        "PYICEBERG_CATALOG__LAKE__TYPE": "sql",
        "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{tmp_path}/lake.db",
        "PYICEBERG_CATALOG__LAKE__WAREHOUSE": f"file://{tmp_path}/lake",
    }
    told = await register(cluster, "--iceberg", "--catalog", "lake", **other)
    assert told.code == 0, told.err
    with closing(SqlCatalog("lake", uri=other["PYICEBERG_CATALOG__LAKE__URI"])) as lake:
        assert lake.load_table(("voltroute", "meter")).scan().to_arrow().num_rows > 0
    found = await fetch(cluster.catalog_dsn, "SELECT count(*) FROM pg_namespace WHERE nspname = 'iceberg'")
    assert found[0][0] == 0  # only where its own is asked for
    for options, code, why in (
        ((), 2, "--iceberg: it is the only kind of table so far"),
        (("--iceberg", "--catalog", "nowhere"), 2, "--catalog nowhere:"),
    ):
        refused = await register(cluster, *options, **other)
        assert (refused.code, why in refused.err) == (code, True), refused.err


async def test_objects_in_s3(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gives access is in the environment for both; when the store fails, nothing is committed, and it is told."""
    with faulty_s3(monkeypatch) as (url, proxy):
        await use(cluster, url)
        await packed(client, cluster)
        await left(cluster)
        proxy.mode = "cut"
        failed = await register(cluster, "--iceberg")
        assert (failed.code, "a-secret-of-tests" in failed.err + failed.out) == (1, False), failed.err
        host, port = proxy.target  # the proxy knows no chunks, as pyarrow sends them
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        told = await register(cluster, "--iceberg", "--json")
        assert told.code == 0, told.err
        for table in told.json["tables"]:
            assert table["metadata"].startswith(f"{url}/iceberg/{table['kind']}/metadata/")
            assert table["objects"] == table["added"] > 0


async def test_another_clusters_table(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    await packed(client, cluster)
    await left(cluster)
    assert (await register(cluster, "--iceberg")).code == 0
    with table_of(cluster.catalog_dsn, tmp_path, "vehicle") as table, table.transaction() as transaction:
        transaction.set_properties({iceberg.CLUSTER: "somebody"})
    refused = await register(cluster, "--iceberg")
    assert (refused.code, "voltroute.vehicle is of another cluster, somebody" in refused.err) == (3, True), refused.err
