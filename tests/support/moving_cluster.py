"""A cluster with readings in every bucket, whose buckets a test moves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import httpx2
import mmh3

from shards.catalog.database import Catalog
from shards.moves.placement import PlannedMove
from shards.operations import check
from tests.support.ledger import stored
from tests.support.moving import leftovers
from tests.support.readings import ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

BUCKETS = 8
TO_S2 = PlannedMove(0, "s1", "s2")


@dataclass
class Moving:
    """A cluster of three shards with readings in every bucket, a router, and the catalog."""

    cluster: TestCluster
    client: httpx2.AsyncClient
    catalog: Catalog

    def device(self, bucket: int) -> str:
        return next(f"D-{n}" for n in range(60) if mmh3.hash(f"D-{n}", 0, signed=False) % BUCKETS == bucket)

    async def keys(self) -> list[tuple[str, datetime]]:
        return sorted((device, moment) for _, device, moment in await stored(self.cluster.shards))

    async def whole(self) -> None:
        """Nothing is left over, and the invariants hold."""
        assert await leftovers(self.cluster) == []
        broken = [rule for rule in await check.check(self.catalog) if not rule.ok]
        assert broken == []


@asynccontextmanager
async def moving_cluster(servers: list[str]) -> AsyncIterator[Moving]:
    """Three shards, sixty devices of each kind with three readings each."""
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, in_process(cluster, runner=False) as client:
        catalog = Catalog(cluster.catalog_dsn)
        readings = [meter(f"D-{n}", minute) for n in range(60) for minute in (1, 2, 3)]
        readings += [vehicle(f"V-{n}", minute) for n in range(60) for minute in (1, 2, 3)]
        await ingest(client, readings)
        yield Moving(cluster, client, catalog)
        await catalog.close()
