"""Registering the archive as Iceberg tables, for readers that want a table instead of files."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from shards.archive import iceberg
from shards.archive.iceberg import Table
from shards.archive.store import Archive
from shards.catalog import archive as ledger
from shards.catalog import kinds as catalogued
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused

TIMEOUT_S: Final = 10.0
_IS_THERE: Final = f"SELECT to_regnamespace('{iceberg.SCHEMA}') IS NOT NULL"
_SCHEMA: Final = f"CREATE SCHEMA {iceberg.SCHEMA}"


async def register(catalog: Catalog, name: str | None = None) -> Sequence[Table]:
    """Make a table of each kind's objects, in a catalog of pyiceberg's configuration, or in the catalog's own database.

    Refused when there is no archive, or nothing was ever archived.
    """
    deadline = deadline_in(TIMEOUT_S)
    archive = await Archive.of(catalog, (await catalog.info(deadline)).cluster_id)
    if archive.current is None:
        raise Refused("there is no archive: `voltroute lifecycle policy set --archive-after 90d --archive-to URL`")
    url, entries = archive.current.url, await ledger.entries(catalog, deadline)
    kinds = {entry.kind for entry in entries if entry.object is not None}
    if not kinds:
        raise Refused("nothing was archived yet: `voltroute archive list` shows what is on its way")
    for each in {url, *(entry.store for entry in entries if entry.store is not None)}:
        iceberg.check_store(each)
    tables = await asyncio.to_thread(iceberg.named_catalog, name) if name else await _own(catalog, url, deadline)
    declared = (await catalogued.known(catalog, deadline)).by_name
    found = []
    try:
        for kind in sorted(kinds & declared.keys()):
            wanted = {
                f"{entry.store}/{entry.object}": entry.readings
                for entry in entries
                if entry.kind == kind and entry.object is not None and entry.state in ledger.STORED
            }
            found.append(await asyncio.to_thread(iceberg.put, tables, declared[kind], url, archive.cluster_id, wanted))
    finally:
        await asyncio.to_thread(tables.close)
    return found


async def _own(catalog: Catalog, url: str, deadline: float) -> Any:
    async with catalog.pool.connection(deadline) as connection:
        if not await connection.fetchval(_IS_THERE):  # who may make none can use one that is there
            await connection.execute(_SCHEMA)
    return await asyncio.to_thread(iceberg.own_catalog, catalog.dsn, url)
