"""A backup of a whole cluster, while everything runs: each database as a snapshot sees it, all taken at one point.

The rule that makes them one: while the snapshots are taken no bucket moves and no shard comes or goes, so that every
bucket is in exactly one of them, where the catalog's says that it is. What was acknowledged before the first one is in
them, wherever. Dumping takes as long as it takes; moves may begin meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from shards.backup import manifest
from shards.backup.manifest import CATALOG, FORMAT, Manifest, Part
from shards.backup.programs import Programs, programs_for
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused
from shards.moves import rebalances
from shards.postgres.sessions import SessionLimits, open_session

TIMEOUT_S: Final = 10.0
PINNED: Final = SessionLimits(statement_timeout_s=60.0, idle_in_transaction_s=0.0)  # it stands idle while others dump
ROWS_LEFT_OUT: Final = "public.shard"  # of the catalog: where shards are is said anew, before anybody can read it
_PIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_SNAPSHOT: Final = "SELECT pg_export_snapshot()"
_OWNED: Final = "SELECT coalesce(array_agg(bucket ORDER BY bucket), '{}') FROM owned_bucket"
_MOVING: Final = "SELECT count(*) FROM bucket_move"
_ROWS: Final = "SELECT name, to_jsonb(shard)::text AS row FROM shard"

Told = Callable[[str], None]


@dataclass(frozen=True)
class _Pinned:
    """A database whose snapshot is held."""

    name: str
    dsn: str
    snapshot: str
    part: Part


@dataclass(frozen=True)
class Wanted:
    """`jobs`: processes for one database; `parallel`: databases at once. `binaries`: a folder with pg_dump."""

    folder: Path
    jobs: int = 1
    parallel: int = 2
    binaries: Path | None = None


async def backup(catalog: Catalog, wanted: Wanted, told: Told = lambda _name: None) -> Manifest:
    """Dump all databases. Refused while buckets move; ClusterError when a dump fails: the folder is no backup then."""
    info = await catalog.info(deadline_in(TIMEOUT_S))
    manifest.begin(wanted.folder)
    async with AsyncExitStack() as stack:
        point, pinned = await _pin_all(catalog, stack)
        limit = asyncio.Semaphore(wanted.parallel)

        async def dump(each: _Pinned) -> None:
            async with limit:
                await _dump(each, wanted)
                told(each.name)

        async with asyncio.TaskGroup() as group:
            for each in pinned:
                group.create_task(dump(each))
    shards = {each.name: each.part for each in pinned if each.name != CATALOG}
    part = next(each.part for each in pinned if each.name == CATALOG)
    made = Manifest(FORMAT, info.cluster_id, info.bucket_count, point, datetime.now(UTC), part, shards)
    await asyncio.to_thread(manifest.write, wanted.folder, made)
    return made


async def _dump(each: _Pinned, wanted: Wanted) -> None:
    programs: Programs = await asyncio.to_thread(programs_for, each.part.version, wanted.binaries)
    without = (ROWS_LEFT_OUT,) if each.name == CATALOG else ()
    await programs.dump(each.dsn, each.snapshot, wanted.folder / each.name, wanted.jobs, without)


async def _pin_all(catalog: Catalog, stack: AsyncExitStack) -> tuple[datetime, list[_Pinned]]:
    """The point, and every database from then on; the catalog last, so that it knows what shards did before."""
    async with catalog.membership(deadline_in(60.0)) as connection:
        if await rebalances.open_moves(catalog, deadline_in(TIMEOUT_S)):
            raise Refused(
                "buckets are moving: wait for the rebalance, or `voltroute rebalance cancel`, and its cleanup"
            )
        point: datetime = await connection.fetchval("SELECT clock_timestamp()")
        records = await catalog.shards(deadline_in(TIMEOUT_S))
        shards = [await stack.enter_async_context(_pinned(record.name, record.owner_dsn)) for record in records]
        whole = await stack.enter_async_context(_pinned(CATALOG, catalog.dsn))
        rows = whole.part.row
        for each in shards:
            each.part.row = rows[each.name]
    return point, [*shards, _Pinned(CATALOG, whole.dsn, whole.snapshot, Part(whole.part.version))]


@asynccontextmanager
async def _pinned(name: str, dsn: str) -> AsyncIterator[_Pinned]:
    async with open_session(name, dsn, PINNED, "voltroute backup") as connection:
        await connection.execute(_PIN)
        snapshot = await connection.fetchval(_SNAPSHOT)
        part = Part(connection.get_server_version().major)
        if name == CATALOG:
            rows: dict[str, Any] = {each["name"]: orjson.loads(each["row"]) for each in await connection.fetch(_ROWS)}
            part.row = rows
        else:
            part.owned = list(await connection.fetchval(_OWNED))
            if await connection.fetchval(_MOVING):
                raise Refused(f"{name} takes part in a move: see `voltroute check`")
        yield _Pinned(name, dsn, snapshot, part)
