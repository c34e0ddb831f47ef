"""A cluster under load through a router, whose ledger must hold at the end whatever happened to runners and servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shards.catalog.database import Catalog
from shards.moves.placement import PlannedMove
from shards.operations import check
from tests.support.ledger import fetch, statuses, stored
from tests.support.load import Recorder
from tests.support.moving import leftovers
from tests.support.routers import router_process
from tests.support.servers import TestCluster


@dataclass
class Loaded:
    """A cluster under load, and what its router acknowledged."""

    cluster: TestCluster
    catalog: Catalog
    recorder: Recorder

    async def owner(self, bucket: int) -> str:
        sql = "SELECT s.name FROM bucket_map JOIN shard AS s USING (shard_id) WHERE bucket = $1"
        return str((await fetch(self.cluster.catalog_dsn, sql, bucket))[0]["name"])

    async def next_move(self, bucket: int = 0) -> PlannedMove:
        source = await self.owner(bucket)
        names = list(self.cluster.shards)
        return PlannedMove(bucket, source, names[(names.index(source) + 1) % len(names)])

    async def one_writer(self) -> None:
        """Whatever was interrupted: never two shards that accept writes of one bucket."""
        rules = await check.check(self.catalog)
        assert [rule for rule in rules if not rule.ok and rule.name.startswith("at most one")] == []

    async def whole(self) -> None:
        assert await leftovers(self.cluster) == []
        assert [rule for rule in await check.check(self.catalog) if not rule.ok] == []

    async def nothing_lost(self) -> None:
        rows = [(device, moment) for _, device, moment in await stored(self.cluster.shards)]
        assert len(rows) == len(set(rows))
        assert self.recorder.acknowledged <= set(rows)
        newest = dict(sorted(rows))  # of a device's readings the last one stays
        assert await statuses(self.cluster.shards) == newest


@asynccontextmanager
async def loaded(cluster: TestCluster, **env: str) -> AsyncIterator[Loaded]:
    """Load from before the block to its end, through a router that runs no moves; then nothing may be lost."""
    catalog, recorder, until = Catalog(cluster.catalog_dsn), Recorder(), asyncio.Event()
    settings = {"VOLTROUTE_RUNNER": "false", "VOLTROUTE_LOG_LEVEL": "error", **env}
    async with router_process(cluster.catalog_dsn, **settings) as router:
        load = asyncio.create_task(recorder.run(router.url, until, workers=2))
        await recorder.more(100)
        under = Loaded(cluster, catalog, recorder)
        try:
            yield under
            await recorder.more(20)
        finally:
            until.set()
            await load
        await under.nothing_lost()
        await catalog.close()
