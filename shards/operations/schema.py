"""Bringing the schema of every database of a cluster up to this release, and its shards to say who they are."""

from typing import Final

from shards.catalog import kinds as catalogued
from shards.catalog.database import NAME, Catalog, forget_old_reader, set_new_logins
from shards.clock import deadline_in
from shards.errors import ClusterError, Refused, ShardError
from shards.operations.identity import close_catalog, sign
from shards.operations.shards import logins_of
from shards.postgres import migrate
from shards.postgres.dsn import with_login
from shards.postgres.logins import Logins, make_logins, retire_reader
from shards.postgres.migrate import Report
from shards.postgres.sessions import BRIEF, open_session, owner_session
from shards.shard import ShardRecord

TIMEOUT_S: Final = 10.0
MIGRATE_S: Final = 900.0  # of one database; statuses of many millions of devices are copied once


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
    reports = await migrate.migrate(None, {name: record.owner_dsn for name, record in records.items()}, MIGRATE_S)
    logins = logins_of(info.cluster_id, records)
    for index, report in enumerate(reports):
        if report.error is None:
            record = records[report.database]
            try:
                async with owner_session(record, BRIEF) as connection:
                    await sign(connection, info.cluster_id, report.database)
                    await make_logins(connection, logins)
                if not record.has_tenants:
                    await _tell_query_login(catalog_dsn, record, logins)
            except (ShardError, ClusterError) as error:
                reports[index] = Report(report.database, report.version, report.applied, error=str(error))
    if all(report.error is None for report in reports):
        await _keep_built_in(catalog_dsn)
    return first + reports


async def _keep_built_in(catalog_dsn: str) -> None:
    """Only when every shard has the columns for it: routers write to them from then on."""
    catalog = Catalog(catalog_dsn)
    try:
        async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
            await catalogued.lock(connection)
            await catalogued.keep_built_in(connection)
    finally:
        await catalog.close()


async def _tell_query_login(catalog_dsn: str, record: ShardRecord, logins: Logins) -> None:
    """From now on routers that know tenants read with the login that sees one; those of before keep theirs."""
    query = with_login(record.reader_dsn, logins.query, logins.query_password)
    monitor = with_login(record.reader_dsn, logins.monitor, logins.monitor_password)
    async with open_session(NAME, catalog_dsn, BRIEF) as connection:
        await set_new_logins(connection, record.name, query, monitor)


async def retire_old_reader(catalog_dsn: str) -> list[str]:
    """Take its rights from the login of routers before there were tenants: there must be none left. Names the shards.

    Refused when a shard has no other login yet.
    """
    catalog = Catalog(catalog_dsn)
    try:
        info = await catalog.info(deadline_in(TIMEOUT_S))
        records = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
    finally:
        await catalog.close()
    behind = sorted(name for name, record in records.items() if not record.has_tenants)
    if behind:
        raise Refused(f"{', '.join(behind)} has no other login yet: `voltroute migrate up` makes it")
    old = [record for record in records.values() if record.old_reader_dsn is not None]
    logins = logins_of(info.cluster_id, records)
    for record in old:
        async with owner_session(record, BRIEF) as connection:
            await retire_reader(connection, logins)
        async with open_session(NAME, catalog_dsn, BRIEF) as connection:
            await forget_old_reader(connection, record.name)
    return [record.name for record in old]


async def status(catalog_dsn: str) -> list[Report]:
    """Versions and pending migrations; changes nothing. A catalog that is behind cannot be read: then of it alone."""
    first = await migrate.status(catalog_dsn, {})
    if first[0].pending or first[0].error:
        return first
    catalog = Catalog(catalog_dsn)
    try:
        await catalog.info(deadline_in(TIMEOUT_S))
        records = await catalog.shards(deadline_in(TIMEOUT_S))
    finally:
        await catalog.close()
    return first + await migrate.status(None, {record.name: record.owner_dsn for record in records})
