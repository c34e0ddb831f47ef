"""Tenants and keys for the tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from shards.catalog.database import Catalog
from shards.catalog.keys import Right, Wanted
from shards.operations import tenants
from tests.support.servers import TestCluster

EVERYTHING = tuple(Right)


@asynccontextmanager
async def catalog_of(cluster: TestCluster) -> AsyncIterator[Catalog]:
    """The cluster's catalog, for operations."""
    catalog = Catalog(cluster.catalog_dsn)
    try:
        yield catalog
    finally:
        await catalog.close()


@dataclass(frozen=True)
class Made:
    """A key that was made."""

    key_id: str
    text: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text}"}


async def new_key(cluster: TestCluster, tenant: str = "default", **wanted: Any) -> Made:
    """A key that may do everything, unless `scopes` says otherwise."""
    async with catalog_of(cluster) as catalog:
        record, text = await tenants.create_key(catalog, tenant, Wanted(**{"scopes": EVERYTHING, **wanted}))
    return Made(record.key_id, text)


async def new_tenant(cluster: TestCluster, name: str, *pins: str, rate: float | None = None, buckets: int = 4) -> Made:
    """A tenant, and a key of it that may do everything."""
    async with catalog_of(cluster) as catalog:
        await tenants.create_tenant(catalog, name, rate, pins, buckets, None)
    return await new_key(cluster, name)
