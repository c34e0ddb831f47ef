"""Taking months of a test cluster's history out of their shards, and bringing them back."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg

from shards.archive.runner import Archiver
from shards.archive.store import Archive, Store
from shards.catalog import lifecycle
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.kinds import KINDS
from shards.operations import archive as operation
from shards.operations.archive import Outcome, Wanted
from shards.policy import Policies, Policy
from shards.tiers.runner import Result
from shards.tiers.watching import Watch, watch_nothing
from tests.support.ledger import execute
from tests.support.servers import TestCluster

AT_ONCE = timedelta(microseconds=1)
ARCHIVED: Mapping[str, Policy] = {each.name: Policy(each.name, timedelta(0), AT_ONCE) for each in KINDS}
DROPPED: Mapping[str, Policy] = {each.name: Policy(each.name, timedelta(0), None, AT_ONCE) for each in KINDS}
BOTH: Mapping[str, Policy] = {each.name: Policy(each.name, timedelta(0), AT_ONCE, 2 * AT_ONCE) for each in KINDS}
DAY = timedelta(days=1)


@asynccontextmanager
async def catalog_at(dsn: str) -> AsyncIterator[Catalog]:
    catalog = Catalog(dsn)
    try:
        yield catalog
    finally:
        await catalog.close()


async def use(cluster: TestCluster, url: str) -> None:
    """The cluster's archive is there from now on."""
    async with catalog_at(cluster.catalog_dsn) as catalog:
        info = await catalog.info(deadline_in(10))
    await Store.open(url).claim(info.cluster_id)
    await execute(
        cluster.catalog_dsn,
        f"INSERT INTO archive_store (url) VALUES ('{url}') ON CONFLICT (is_one) DO UPDATE SET url = excluded.url",
    )


async def leave_from(
    catalog: Catalog, watch: Watch = watch_nothing, policies: Mapping[str, Policy] = ARCHIVED
) -> list[Result]:
    """All that is due leaves its shard, one shard after the other."""
    archive = await Archive.of(catalog, (await catalog.info(deadline_in(10))).cluster_id)

    async def current() -> Policies:
        return Policies(policies)

    records = await catalog.shards(deadline_in(10))
    return [await Archiver(record, archive, current, watch=watch).run() for record in records]


async def leave(
    cluster: TestCluster, watch: Watch = watch_nothing, policies: Mapping[str, Policy] = ARCHIVED
) -> dict[str, str]:
    """The same, until nothing waits for a reader; what failed, and why."""
    async with catalog_at(cluster.catalog_dsn) as catalog:
        while True:
            results = await leave_from(catalog, watch, policies)
            failed = {name: why for result in results for name, why in result.failed.items()}
            if failed or not any(result.waiting for result in results):
                return failed


async def left(cluster: TestCluster, policies: Mapping[str, Policy] = ARCHIVED) -> None:
    """The same, when nothing of it may fail."""
    failed = await leave(cluster, policies=policies)
    assert failed == {}, failed


async def restore_from(
    catalog: Catalog, watch: Watch = watch_nothing, wanted: Wanted | None = None, keep: timedelta = DAY
) -> Outcome:
    """Months come back; all of them."""
    return await operation.restore(catalog, wanted or Wanted(), keep, lambda _entry, _why: None, watch)


async def restore(cluster: TestCluster, wanted: Wanted | None = None) -> Outcome:
    async with catalog_at(cluster.catalog_dsn) as catalog:
        return await restore_from(catalog, wanted=wanted)


async def restored(cluster: TestCluster, wanted: Wanted | None = None) -> None:
    """The same, when nothing of it may fail."""
    outcome = await restore(cluster, wanted)
    assert (outcome.failed, outcome.months > 0) == ({}, True)


async def old_snapshots(cluster: TestCluster) -> list[Any]:
    found: list[Any] = []
    for dsn in cluster.shards.values():
        session = await asyncpg.connect(dsn)
        await session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM vehicle_telemetry_packed")
        found.append(session)
    return found


async def set_all(catalog: Catalog, **spans: Any) -> None:
    async with catalog.membership(deadline_in(10)) as connection:
        for kind in KINDS:
            await lifecycle.set_policy(connection, Policy(kind.name, timedelta(days=1), **spans))
