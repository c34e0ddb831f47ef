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

import asyncpg
import orjson

from shards.backup import manifest
from shards.backup.manifest import CATALOG, FORMAT, Manifest, Part
from shards.backup.programs import Programs, programs_for
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, Refused
from shards.moves import rebalances
from shards.postgres.connections import Connection
from shards.postgres.sessions import MOVER, SessionLimits, open_session
from shards.together import together

TIMEOUT_S: Final = 10.0
APPLICATION: Final = f"{MOVER} of backups"  # it inserts nothing that the mark of a move, or of rollups, must wait for
PIN_ATTEMPTS: Final = 50
PIN_PAUSE_S: Final = 0.2
# It stands idle while others dump.
PINNED: Final = SessionLimits(statement_timeout_s=60.0, lock_timeout_s=0.5, idle_in_transaction_s=0.0)
ROWS_LEFT_OUT: Final = "public.shard"  # of the catalog: where shards are is said anew, before anybody can read it
_PIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_SNAPSHOT: Final = "SELECT pg_export_snapshot()"
_TABLES: Final = """
SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class AS c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
"""
# To whom somebody has granted something: roles that a dump does not hold.
_ROLES: Final = """
SELECT coalesce(array_agg(DISTINCT a.grantee::regrole::text), '{}') FROM pg_class AS c, aclexplode(c.relacl) AS a
WHERE c.relnamespace = 'public'::regnamespace AND a.grantee <> 0
    AND a.grantee <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""
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

        await together(map(dump, pinned))
    shards = {each.name: each.part for each in pinned if each.name != CATALOG}
    part = next(each.part for each in pinned if each.name == CATALOG)
    made = Manifest(FORMAT, info.cluster_id, info.bucket_count, point, datetime.now(UTC), part, shards)
    await asyncio.to_thread(manifest.write, wanted.folder, made)
    return made


async def _dump(each: _Pinned, wanted: Wanted) -> None:
    programs: Programs = await asyncio.to_thread(programs_for, each.part.version, wanted.binaries)
    each.part.program = programs.version
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
    return point, [
        *shards,
        _Pinned(CATALOG, whole.dsn, whole.snapshot, Part(whole.part.version, roles=whole.part.roles)),
    ]


async def _snapshot(connection: Connection) -> str:
    """Of a database none of whose tables is dropped while it is held: pg_dump locks them only when its turn comes."""
    for _ in range(PIN_ATTEMPTS):
        await connection.execute(_PIN)
        try:
            tables = await connection.fetchval(_TABLES)
            if tables:
                await connection.execute(f"LOCK TABLE {tables} IN ACCESS SHARE MODE")
            return str(await connection.fetchval(_SNAPSHOT))
        except (asyncpg.UndefinedTableError, asyncpg.LockNotAvailableError):  # one is being dropped: it is gone soon
            await connection.execute("ROLLBACK")
            await asyncio.sleep(PIN_PAUSE_S)
    raise ClusterError("tables are being dropped, or locked, all the time: try again")


@asynccontextmanager
async def _pinned(name: str, dsn: str) -> AsyncIterator[_Pinned]:
    async with open_session(name, dsn, PINNED, APPLICATION) as connection:
        snapshot = await _snapshot(connection)
        part = Part(connection.get_server_version().major)
        if name == CATALOG:
            rows: dict[str, Any] = {each["name"]: orjson.loads(each["row"]) for each in await connection.fetch(_ROWS)}
            part.row = rows
        part.roles = list(await connection.fetchval(_ROLES))
        if name != CATALOG:
            part.owned = list(await connection.fetchval(_OWNED))
            if await connection.fetchval(_MOVING):
                raise Refused(f"{name} takes part in a move: see `voltroute check`")
        yield _Pinned(name, dsn, snapshot, part)
