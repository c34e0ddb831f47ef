"""Partitions: made ahead by housekeeping, on demand by writers, and late readings land in the past."""

from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.duties.partitions import extend
from shards.storage.partitions import MONTHS_AHEAD, month_of, runway
from tests.support.ledger import execute, fetch, stored
from tests.support.readings import ingest, meter
from tests.support.servers import TestCluster

LEAVES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE $1 ORDER BY 1"


async def leaves(dsn: str, bucket: int) -> list[str]:
    table = f"meter_telemetry_history_b{bucket:04d}_"
    return [str(record["relname"]).removeprefix(table) for record in await fetch(dsn, LEAVES, table + "%")]


async def drop_months(cluster: TestCluster, months: list[str]) -> None:
    for dsn in cluster.shards.values():
        for kind in ("meter", "vehicle"):
            for month in months:
                found = await fetch(dsn, LEAVES, f"{kind}_telemetry_history_b%_{month}")
                for record in found:
                    await execute(dsn, f"DROP TABLE {record['relname']}")


@pytest.fixture
def months() -> list[str]:
    return [f"{month:%Y_%m}" for month in runway(datetime.now(UTC))]


async def test_a_new_bucket_has_the_past_and_three_months(cluster: TestCluster, months: list[str]) -> None:
    assert len(months) == MONTHS_AHEAD + 1 == 3
    assert await leaves(cluster.shards["s1"], 0) == [*months, "past"]


async def test_a_missing_month_is_made_by_the_first_reading(
    client: httpx2.AsyncClient, cluster: TestCluster, months: list[str]
) -> None:
    await drop_months(cluster, months)
    now = datetime.now(UTC).isoformat()
    readings = [{**meter(f"M-{n}"), "timestamp": now} for n in range(64)]
    assert (await ingest(client, readings))["accepted"] == 64
    assert len(await stored(cluster.shards)) == 64
    assert await leaves(cluster.shards["s1"], 0) == [months[0], "past"]


async def test_the_runway_is_extended_bucket_by_bucket(
    client: httpx2.AsyncClient, cluster: TestCluster, months: list[str]
) -> None:
    await drop_months(cluster, months[1:])
    catalog = Catalog(cluster.catalog_dsn)
    records = await catalog.shards(deadline_in(5))
    await catalog.close()
    blocker = f"meter_telemetry_history_b0000_{months[2]}"
    await execute(cluster.shards["s1"], f"CREATE TABLE {blocker} (made_by_hand int)")
    first = {record.name: await extend(record, "month") for record in records}
    assert all(made.error is None and made.extended for made in first.values())
    assert first["s1"].extended is not None
    assert {bucket: blocker in why for bucket, why in first["s1"].extended.failed.items()} == {0: True}
    await execute(cluster.shards["s1"], f"DROP TABLE {blocker}")
    again = [await extend(record, "month") for record in records]
    assert sum(made.extended.made for made in again if made.extended) == 2 * 2  # of the bucket that failed, rolled back
    assert all(made.extended is not None and made.extended.failed == {} for made in again)
    for bucket in range(16):
        shard = list(cluster.shards)[bucket % 4]
        assert await leaves(cluster.shards[shard], bucket) == [*months, "past"]


async def test_what_is_older_than_the_cluster_goes_to_the_past_leaf(
    client: httpx2.AsyncClient, cluster: TestCluster
) -> None:
    first = month_of(datetime.now(UTC))
    before = datetime(first.year, first.month, 1, tzinfo=UTC) - timedelta(seconds=1)
    await ingest(client, {**meter("OLD"), "timestamp": before.isoformat()})
    dsn = cluster.shards[cluster.owner("OLD")]
    (row,) = await fetch(
        dsn, "SELECT tableoid::regclass::text AS leaf FROM meter_telemetry_history WHERE meter_id = 'OLD'"
    )
    assert row["leaf"].endswith("_past")
