"""Making a cluster on PostgreSQL servers that exist: schema, logins, buckets, map. Every step can be repeated."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime

import asyncpg

from shards import migrate
from shards.buckets import HASH_SEED, check_bucket_count
from shards.catalog import Catalog, ClusterInfo, ShardRecord, check_names, deadline_in
from shards.driver import translated
from shards.dsn import check_dsn
from shards.errors import ClusterError, Refused
from shards.logins import Logins, make_logins
from shards.membership import logins_of
from shards.partitions import month_of, runway
from shards.placement import spread

_ATTACH = "SELECT attach_bucket($1::smallint, $2, $3::date[])"


async def init_cluster(
    catalog_dsn: str, shards: Mapping[str, str], bucket_count: int, timeout_s: float = 60.0
) -> ClusterInfo:
    """Make a cluster, finish one whose making was interrupted, or only refresh how its shards are reached.

    `shards`: name -> owner DSN. InvalidArgument for bad names or numbers, Refused when another cluster is there,
    ClusterError with a report when a database could not be prepared.
    """
    check_bucket_count(bucket_count)
    check_names(shards)
    for dsn in (catalog_dsn, *shards.values()):
        check_dsn(dsn)
    owners = spread(bucket_count, list(shards))
    _raise_errors(await migrate.migrate(catalog_dsn, shards, timeout_s))
    catalog = Catalog(catalog_dsn)
    try:
        deadline = deadline_in(timeout_s)
        await catalog.create_cluster(bucket_count, HASH_SEED, month_of(datetime.now(UTC)), deadline)
        info = await catalog.info(deadline)
        await _register(catalog, info, shards, deadline, timeout_s)
        if await catalog.shard_map(deadline) is None:
            await _give_out(info, shards, owners)
            await catalog.publish_first_map(owners, deadline)
        return await catalog.info(deadline)
    finally:
        await catalog.close()


def _raise_errors(reports: list[migrate.Report]) -> None:
    failed = [f"{report.database}: {report.error}" for report in reports if report.error]
    if failed:
        raise ClusterError("; ".join(failed))


async def _register(
    catalog: Catalog, info: ClusterInfo, shards: Mapping[str, str], deadline: float, timeout_s: float
) -> None:
    known = {record.name: record for record in await catalog.shards(deadline)}
    if known and await catalog.shard_map(deadline) is not None and set(known) != set(shards):
        message = (
            f"the cluster has the shards {', '.join(sorted(known))}, not {', '.join(sorted(shards))}: "
            "its shards are changed with `voltroute shard`, not by making it again"
        )
        raise Refused(message)
    logins = logins_of(info.cluster_id, known)
    await asyncio.gather(*(_make_logins(name, dsn, logins, timeout_s) for name, dsn in shards.items()))
    for name, dsn in shards.items():
        writer, reader = logins.dsns(dsn)
        await catalog.register(ShardRecord(name, "active", dsn, writer, reader), deadline)


async def _make_logins(name: str, dsn: str, logins: Logins, timeout_s: float) -> None:
    with translated(name):
        await make_logins(dsn, logins, timeout_s)


async def _give_out(info: ClusterInfo, shards: Mapping[str, str], owners: tuple[str, ...]) -> None:
    months = runway(datetime.now(UTC))
    await asyncio.gather(
        *(
            _attach(name, dsn, [b for b, owner in enumerate(owners) if owner == name], info.first_month, months)
            for name, dsn in shards.items()
        )
    )


async def _attach(name: str, dsn: str, buckets: list[int], earliest: date, months: list[date]) -> None:
    with translated(name):
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            # A few buckets a transaction: each table takes an entry of the lock table until the commit.
            for start in range(0, len(buckets), 8):
                async with connection.transaction():
                    for bucket in buckets[start : start + 8]:
                        await connection.execute(_ATTACH, bucket, earliest, [m for m in months if m >= earliest])
        finally:
            connection.terminate()
