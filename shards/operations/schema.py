"""Bringing the schema of every database of a cluster up to this release, and its shards to say who they are."""

from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, ShardError
from shards.operations.identity import close_catalog, sign
from shards.operations.shards import logins_of
from shards.postgres import migrate
from shards.postgres.logins import make_logins
from shards.postgres.migrate import Report
from shards.postgres.sessions import BRIEF, owner_session

TIMEOUT_S: Final = 10.0


async def bring_up(catalog_dsn: str) -> list[Report]:
    """Migrate the catalog, then all shards in parallel; a report for each."""
    first = await migrate.migrate(catalog_dsn, {})
    if first[0].error:
        return first
    await close_catalog(catalog_dsn)
    catalog = Catalog(catalog_dsn)
    try:
        info = await catalog.info(deadline_in(TIMEOUT_S))
        records = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
    finally:
        await catalog.close()
    reports = await migrate.migrate(None, {name: record.owner_dsn for name, record in records.items()})
    logins = logins_of(info.cluster_id, records)
    for index, report in enumerate(reports):
        if report.error is None:
            try:
                async with owner_session(records[report.database], BRIEF) as connection:
                    await sign(connection, info.cluster_id, report.database)
                    await make_logins(connection, logins)
            except (ShardError, ClusterError) as error:
                reports[index] = Report(report.database, report.version, report.applied, error=str(error))
    return first + reports


async def status(catalog_dsn: str) -> list[Report]:
    """Versions and pending migrations; changes nothing."""
    catalog = Catalog(catalog_dsn)
    try:
        await catalog.info(deadline_in(TIMEOUT_S))
        records = await catalog.shards(deadline_in(TIMEOUT_S))
    finally:
        await catalog.close()
    return await migrate.status(catalog_dsn, {record.name: record.owner_dsn for record in records})
