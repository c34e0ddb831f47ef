"""Making a cluster on PostgreSQL servers that exist: schema, logins, buckets, map. Every step can be repeated."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Final

from shards.buckets import HASH_SEED, check_bucket_count
from shards.catalog.database import Catalog, ClusterInfo, register
from shards.clock import deadline_in
from shards.errors import Refused, SchemaError
from shards.moves.placement import spread
from shards.operations.identity import Identity, ask, close_catalog, sign
from shards.operations.shape import days_ahead
from shards.operations.shards import logins_of
from shards.postgres import migrate
from shards.postgres.dsn import check_dsn
from shards.postgres.logins import Logins, make_logins
from shards.postgres.sessions import open_session
from shards.postgres.transactions import transaction
from shards.shard import check_name
from shards.storage.partitions import month_of
from shards.storage.shaping import BUCKETS_AT_ONCE

STEP_TIMEOUT_S: Final = 60.0
_ATTACH: Final = "SELECT attach_bucket($1::smallint, $2, $3::date[])"

# Told of what was done, in words: for whoever waits.
Progress = Callable[[str], None]


def silently(_text: str) -> None:
    """Nobody waits."""


async def init_cluster(
    catalog_dsn: str, shards: Mapping[str, str], bucket_count: int, progress: Progress = silently
) -> ClusterInfo:
    """Make a cluster, finish one whose making was interrupted, or only refresh how its shards are reached.

    `shards`: name -> owner DSN. InvalidArgument for bad names or numbers, Refused when a database is not what it would
    have to be, SchemaError when one could not be prepared. Each step has its own deadline.
    """
    check_bucket_count(bucket_count)
    for name in shards:
        check_name(name)
    for dsn in (catalog_dsn, *shards.values()):
        check_dsn(dsn)
    owners = spread(bucket_count, list(shards))
    answers = await _ask_all(catalog_dsn, shards)
    _raise_errors(await migrate.migrate(catalog_dsn, {}, STEP_TIMEOUT_S))
    await close_catalog(catalog_dsn)
    catalog = Catalog(catalog_dsn)
    try:
        await _create(catalog, bucket_count)
        info = await catalog.info(deadline_in(STEP_TIMEOUT_S))
        await _check(catalog, info, shards, answers)
        _raise_errors(await migrate.migrate(None, shards, STEP_TIMEOUT_S))
        progress(f"schema of the catalog and {len(shards)} shards is in place")
        await _register(catalog, info, shards, answers)
        if await catalog.shard_map(deadline_in(STEP_TIMEOUT_S)) is None:
            await _give_out(info, shards, owners, progress)
            await catalog.publish_first_map(owners, deadline_in(STEP_TIMEOUT_S))
        return await catalog.info(deadline_in(STEP_TIMEOUT_S))
    finally:
        await catalog.close()


async def _create(catalog: Catalog, bucket_count: int) -> None:
    first_month = month_of(datetime.now(UTC))
    await catalog.create_cluster(bucket_count, HASH_SEED, first_month, deadline_in(STEP_TIMEOUT_S))


async def _ask_all(catalog_dsn: str, shards: Mapping[str, str]) -> Mapping[str, Identity]:
    """What each database says of itself; Refused when two names mean one database, or the catalog's."""
    names = ["catalog", *shards]
    found = await asyncio.gather(*(ask(n, dsn) for n, dsn in zip(names, (catalog_dsn, *shards.values()), strict=True)))
    places: dict[str, str] = {}
    for name, identity in zip(names, found, strict=True):
        if identity.place in places:
            raise Refused(f"{places[identity.place]} and {name} are one database: each needs its own")
        places[identity.place] = name
    catalog, answers = found[0], dict(zip(shards, found[1:], strict=True))
    if catalog.has_shard:
        raise Refused(f"the catalog's database is shard {catalog.name or ''} of a cluster: it needs one of its own")
    return answers


async def _check(
    catalog: Catalog, info: ClusterInfo, shards: Mapping[str, str], answers: Mapping[str, Identity]
) -> None:
    """Refused unless each database is new, or the very shard that the cluster knows by that name."""
    deadline = deadline_in(STEP_TIMEOUT_S)
    known = {record.name: record for record in await catalog.shards(deadline)}
    shard_map = await catalog.shard_map(deadline)
    if known and shard_map is not None and set(known) != set(shards):
        message = (
            f"the cluster has the shards {', '.join(sorted(known))}, not {', '.join(sorted(shards))}: "
            "its shards are changed with `voltroute shard`, not by making it again"
        )
        raise Refused(message)
    for name, identity in answers.items():
        identity.check(info.cluster_id, name)
        if name in known:
            identity.check_lineage(known[name])
        mapped = shard_map.by_shard.get(name, ()) if shard_map else None
        if mapped is not None and identity.cluster_id is None and not set(mapped) <= set(identity.owned):
            raise Refused(
                f"{name} owns {len(mapped)} buckets by the map, and the database behind that DSN has "
                f"{len(identity.owned)} of them: it is another one"
            )
        if mapped is None and identity.owned and identity.cluster_id is None:
            raise Refused(f"{name}: that database owns buckets of another cluster")


def _raise_errors(reports: list[migrate.Report]) -> None:
    failed = [f"{report.database}: {report.error}" for report in reports if report.error]
    if failed:
        raise SchemaError("; ".join(failed))


async def _register(
    catalog: Catalog, info: ClusterInfo, shards: Mapping[str, str], answers: Mapping[str, Identity]
) -> None:
    known = {record.name: record for record in await catalog.shards(deadline_in(STEP_TIMEOUT_S))}
    logins = logins_of(info.cluster_id, known)
    await asyncio.gather(*(prepare(name, dsn, info, logins) for name, dsn in shards.items()))
    async with catalog.membership(deadline_in(STEP_TIMEOUT_S)) as connection:
        for name, dsn in shards.items():
            own = answers[name]
            await register(connection, replace(logins.record(name, dsn), system=own.system, timeline=own.timeline))


async def prepare(name: str, dsn: str, info: ClusterInfo, logins: Logins) -> None:
    """Sign a shard's database, and make the logins with which routers reach it."""
    async with open_session(name, dsn) as connection:
        await sign(connection, info.cluster_id, name)
        await make_logins(connection, logins)


async def _give_out(info: ClusterInfo, shards: Mapping[str, str], owners: tuple[str, ...], progress: Progress) -> None:
    days = days_ahead(info)
    done = 0

    def count(buckets: int) -> None:
        nonlocal done
        done += buckets
        progress(f"{done} of {len(owners)} buckets have their tables")

    await asyncio.gather(
        *(
            attach_buckets(
                name, dsn, [b for b, owner in enumerate(owners) if owner == name], (info.first_month, days), count
            )
            for name, dsn in shards.items()
        )
    )


async def attach_buckets(
    name: str,
    dsn: str,
    buckets: list[int],
    leaves: tuple[date, list[date]],
    count: Callable[[int], None] = lambda _done: None,
) -> None:
    """Make a shard the owner of new buckets; `leaves`: the cluster's first month, and those to make partitions for."""
    async with open_session(name, dsn) as connection:
        for start in range(0, len(buckets), BUCKETS_AT_ONCE):
            some = buckets[start : start + BUCKETS_AT_ONCE]
            async with asyncio.timeout(STEP_TIMEOUT_S), transaction(connection):
                for bucket in some:
                    await connection.execute(_ATTACH, bucket, *leaves)
            count(len(some))
