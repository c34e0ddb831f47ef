"""Schema migrations: plain forward-only SQL files, applied once each, under a lock, with a checksum."""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from shards.errors import ClusterError, SchemaError, ShardError
from shards.postgres.connections import Connection
from shards.postgres.sessions import open_session
from shards.postgres.transactions import transaction

CATALOG: Final = "catalog"
SHARD: Final = "shard"
SERVER_VERSION_MIN: Final = 15
_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('voltroute.migrate'))"
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '5s'"  # rather fail and be repeated than queue up traffic behind us
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_EXISTS: Final = "SELECT to_regclass('public.schema_migration') IS NOT NULL"
_APPLIED: Final = "SELECT version, name, checksum FROM schema_migration ORDER BY version"
_RECORD: Final = "INSERT INTO schema_migration (version, name, checksum) VALUES ($1, $2, $3)"


@dataclass(frozen=True)
class Migration:
    """One file: NNNN_name.sql."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True)
class Report:
    """What was found or done on one database. `error` is None when all is well."""

    database: str
    version: int
    applied: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    error: str | None = None


def load(target: str) -> list[Migration]:
    """The migrations of `catalog` or `shard`, ascending. SchemaError when versions have gaps or repeat."""
    found = [
        Migration(int(match[1]), match[2], file.read_text(encoding="utf-8"))
        for file in resources.files("migrations").joinpath(target).iterdir()
        if (match := _FILE.fullmatch(file.name))
    ]
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        message = f"the {target} migrations are not numbered 1, 2, 3, ..."
        raise SchemaError(message)
    return found


def pending(known: list[Migration], applied: list[tuple[int, str, str]]) -> list[Migration]:
    """The migrations still to apply. SchemaError when an applied one was changed since, or is unknown here."""
    for (version, name, checksum), migration in zip(applied, known, strict=False):
        if (version, checksum) != (migration.version, migration.checksum):
            message = f"migration {version:04d}_{name} was applied with other content than this release has"
            raise SchemaError(message)
    if len(applied) > len(known):
        version, name, _ = applied[-1]
        message = f"the database is at {version:04d}_{name}, newer than this release: update voltroute"
        raise SchemaError(message)
    return known[len(applied) :]


async def _apply(connection: Connection, known: list[Migration]) -> list[Migration]:
    if connection.get_server_version().major < SERVER_VERSION_MIN:
        message = (
            f"PostgreSQL {connection.get_server_version().major} is too old: {SERVER_VERSION_MIN} or newer is needed"
        )
        raise SchemaError(message)
    async with transaction(connection):
        await connection.execute(_LOCK)
        await connection.execute(_LOCK_TIMEOUT)
        await connection.execute(_TABLE)
        applied = [tuple(record) for record in await connection.fetch(_APPLIED)]
        todo = pending(known, applied)
        for migration in todo:
            await connection.execute(migration.sql)
            await connection.execute(_RECORD, migration.version, migration.name, migration.checksum)
    return todo


def _label(migration: Migration) -> str:
    return f"{migration.version:04d}_{migration.name}"


async def _one(database: str, dsn: str, target: str, timeout_s: float, *, apply: bool) -> Report:
    known = load(target)
    try:
        async with asyncio.timeout(timeout_s), open_session(database, dsn) as connection:
            if apply:
                done = await _apply(connection, known)
                return Report(database, len(known), applied=tuple(map(_label, done)))
            there = await connection.fetchval(_EXISTS)
            rows = [tuple(record) for record in await connection.fetch(_APPLIED)] if there else []
            todo = pending(known, rows)
            return Report(database, len(rows), pending=tuple(map(_label, todo)))
    except TimeoutError:
        return Report(database, 0, error=f"no answer within {timeout_s:g} s")
    except (ShardError, ClusterError) as error:
        return Report(database, 0, error=error.detail if isinstance(error, ShardError) else str(error))


async def migrate(catalog_dsn: str | None, shards: Mapping[str, str], timeout_s: float = 60.0) -> list[Report]:
    """Bring the catalog (if given) and all shards up to date, in parallel; a report for each, never an exception."""
    return await _all(catalog_dsn, shards, timeout_s, apply=True)


async def status(catalog_dsn: str | None, shards: Mapping[str, str], timeout_s: float = 10.0) -> list[Report]:
    """Versions and pending migrations of the catalog and all shards; changes nothing."""
    return await _all(catalog_dsn, shards, timeout_s, apply=False)


async def _all(catalog_dsn: str | None, shards: Mapping[str, str], timeout_s: float, *, apply: bool) -> list[Report]:
    jobs = [_one(name, dsn, SHARD, timeout_s, apply=apply) for name, dsn in shards.items()]
    if catalog_dsn is not None:
        jobs.insert(0, _one(CATALOG, catalog_dsn, CATALOG, timeout_s, apply=apply))
    return list(await asyncio.gather(*jobs))
