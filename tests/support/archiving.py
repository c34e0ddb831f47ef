"""Taking months of a test cluster's history out of their shards, and bringing them back."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

from shards.archive.runner import Archiver
from shards.archive.store import Store
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.kinds import KINDS
from shards.operations import archive as operation
from shards.operations.archive import Outcome, Wanted
from shards.policy import Policy
from shards.tiers.runner import Result
from shards.tiers.watching import Watch, watch_nothing
from tests.support.ledger import execute
from tests.support.servers import TestCluster
from tests.support.tiering import records_of

ARCHIVED: Mapping[str, Policy] = {
    kind.name: Policy(kind.name, timedelta(0), timedelta(microseconds=1)) for kind in KINDS
}
DROPPED: Mapping[str, Policy] = {
    kind.name: Policy(kind.name, timedelta(0), None, timedelta(microseconds=1)) for kind in KINDS
}


@asynccontextmanager
async def catalog_of(cluster: TestCluster) -> AsyncIterator[Catalog]:
    catalog = Catalog(cluster.catalog_dsn)
    try:
        yield catalog
    finally:
        await catalog.close()


async def use(cluster: TestCluster, url: str) -> None:
    """The cluster's archive is there from now on."""
    async with catalog_of(cluster) as catalog:
        info = await catalog.info(deadline_in(10))
    await Store.open(url).claim(info.cluster_id)
    await execute(
        cluster.catalog_dsn,
        f"INSERT INTO archive_store (url) VALUES ('{url}') ON CONFLICT (is_one) DO UPDATE SET url = excluded.url",
    )


async def leave(
    cluster: TestCluster, watch: Watch = watch_nothing, policies: Mapping[str, Policy] = ARCHIVED
) -> list[Result]:
    """All that is due leaves its shard, one shard after the other."""
    async with catalog_of(cluster) as catalog:
        cluster_id = (await catalog.info(deadline_in(10))).cluster_id
        store = await Store.of(catalog, cluster_id)
        archivers = [
            Archiver(record, catalog, cluster_id, policies, store, watch=watch) for record in await records_of(cluster)
        ]
        return [await each.run() for each in archivers]


async def left(cluster: TestCluster, watch: Watch = watch_nothing, policies: Mapping[str, Policy] = ARCHIVED) -> None:
    """The same, when nothing of it may fail, nor wait for a reader."""
    while True:
        results = await leave(cluster, watch, policies)
        failed = {name: why for result in results for name, why in result.failed.items()}
        assert failed == {}, failed
        if not any(result.waiting for result in results):
            return


async def restored(
    cluster: TestCluster,
    wanted: Wanted | None = None,
    watch: Watch = watch_nothing,
    keep: timedelta = timedelta(days=1),
) -> Outcome:
    async with catalog_of(cluster) as catalog:
        return await operation.restore(catalog, wanted or Wanted(), keep, lambda _entry, _why: None, watch)
