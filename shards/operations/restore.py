"""A backup into databases that hold nothing: the cluster as it was at the backup's point, in other places.

Shards come first, the catalog last, with the shards' new places in it before it can be read: whoever reads it finds
everything, and nobody is sent to where the shards were.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import orjson

from shards.backup import manifest as manifests
from shards.backup.manifest import CATALOG, Manifest, Part
from shards.backup.programs import programs_for
from shards.errors import InvalidArgument, Refused
from shards.operations.identity import Identity, ask, close_catalog
from shards.operations.shards import logins_of
from shards.postgres.dsn import check_dsn, login_of, with_login
from shards.postgres.logins import Logins, make_logins, make_roles
from shards.postgres.sessions import SessionLimits, open_session
from shards.postgres.transactions import transaction
from shards.shard import ShardRecord, ShardState
from shards.together import together

LIMITS: Final = SessionLimits(statement_timeout_s=3600.0)
_TABLES: Final = """
SELECT count(*) FROM pg_class AS c
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND classid = 'pg_class'::regclass AND deptype = 'e')
UNION ALL
SELECT count(*) FROM pg_proc AS f WHERE pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = f.oid AND classid = 'pg_proc'::regclass AND deptype = 'e')
ORDER BY 1 DESC LIMIT 1
"""
_MISSING: Final = """
SELECT array_agg(role) FROM unnest($1::text[]) AS role WHERE to_regrole(role) IS NULL
"""
# Leaves that were published as packed are known by their identity, which is another one here.
_LEAVES: Final = """
WITH gone AS (DELETE FROM packed_leaf RETURNING *)
INSERT INTO packed_leaf (table_oid, published_at, bucket, kind, name)
SELECT to_regclass(format('public.%I', name)), published_at, bucket, kind, name FROM gone
WHERE to_regclass(format('public.%I', name)) IS NOT NULL
"""
_ROW: Final = (
    "INSERT INTO shard OVERRIDING SYSTEM VALUE SELECT * FROM jsonb_populate_record(NULL::shard, $1::text::jsonb)"
)
_OWNER: Final = "owner_dsn"
_RETIRED: Final = "retired.invalid"
# Rows of a table alone: everything of the catalog that a row of a shard must come before.
_FIRST: Final = ("pre-data", "data")
_THEN: Final = ("post-data",)

Told = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """Where to: the catalog's database, and each shard's by its name, as their owner."""

    folder: Path
    catalog_dsn: str
    shards: Mapping[str, str]
    jobs: int = 1
    binaries: Path | None = None


async def restore(wanted: Wanted, told: Told = lambda _name: None) -> Manifest:
    """Refused unless every database is empty; ClusterError when the backup is damaged, or PostgreSQL refuses something.

    What fails in the middle leaves databases that are not empty: make them anew, and repeat.
    """
    manifest = manifests.read(wanted.folder)
    if manifest.shards.keys() != wanted.shards.keys():
        have, given = (", ".join(sorted(each)) for each in (manifest.shards, wanted.shards))
        raise InvalidArgument(f"the backup has the shards {have}, and places were given for {given or 'none'}")
    for dsn in (wanted.catalog_dsn, *wanted.shards.values()):
        check_dsn(dsn)
    records = {name: _record(name, part.row) for name, part in manifest.shards.items()}
    logins = logins_of(manifest.cluster_id, records)
    await _check_places(manifest, wanted, logins)
    await asyncio.to_thread(manifests.verify, wanted.folder, manifest)
    await together(_shard(wanted, manifest, place, logins, told) for place in wanted.shards.items())
    await _catalog(wanted, manifest)
    told(CATALOG)
    return manifest


async def _check_places(manifest: Manifest, wanted: Wanted, logins: Logins) -> None:
    """Refused unless all are empty, new enough, different ones, and have the roles to which something was granted."""
    places: dict[str, str] = {}
    for name, dsn in {CATALOG: wanted.catalog_dsn, **wanted.shards}.items():
        found = await ask(name, dsn)
        if found.place in places:
            raise Refused(f"{places[found.place]} and {name} are one database: each needs its own")
        places[found.place] = name
        _check_empty(name, found)
        part = manifest.catalog if name == CATALOG else manifest.shards[name]
        async with open_session(name, dsn, LIMITS) as connection:
            if await connection.fetchval(_TABLES):
                raise Refused(f"{name}: that database has tables, or functions: name an empty one")
            if (version := connection.get_server_version().major) < part.version:
                raise Refused(f"{name}: PostgreSQL {version} is older than the backup's, which is {part.version}")
            if missing := await connection.fetchval(
                _MISSING, [each for each in part.roles if each not in logins.passwords]
            ):
                raise Refused(f"{name}: something was granted to {', '.join(missing)}: make these roles there first")
            programs_for(version, wanted.binaries, part.program)


def _check_empty(name: str, found: Identity) -> None:
    if found.cluster_id is not None:
        raise Refused(
            f"{name}: that database is shard {found.name} of the cluster {found.cluster_id}: name an empty one"
        )
    if found.has_catalog or found.has_shard:
        raise Refused(f"{name}: that database holds a cluster: name an empty one")


def _record(name: str, row: Mapping[str, Any]) -> ShardRecord:
    """What the catalog knew of a shard."""
    reader, old = row.get("query_dsn") or row["reader_dsn"], row["reader_dsn"]
    is_retired = _RETIRED in old
    return ShardRecord(
        name,
        ShardState(row["state"]),
        row[_OWNER],
        row["writer_dsn"],
        reader,
        old_reader_dsn=None if is_retired else old,
        monitor_dsn=row.get("monitor_dsn"),
    )


async def _shard(wanted: Wanted, manifest: Manifest, place: tuple[str, str], logins: Logins, told: Told) -> None:
    name, dsn = place
    part = manifest.shards[name]
    async with open_session(name, dsn, LIMITS) as connection:
        await make_roles(connection, logins)  # rights and policies name them
    await _restore(wanted, name, dsn, part)
    async with open_session(name, dsn, LIMITS) as connection:
        async with transaction(connection):
            await connection.execute(_LEAVES)
        await make_logins(connection, logins)
        await connection.execute("ANALYZE")
    found = await ask(name, dsn)
    if (found.cluster_id, found.name, list(found.owned)) != (manifest.cluster_id, name, part.owned):
        raise Refused(
            f"{name}: what was restored is shard {found.name} of {found.cluster_id}, which is not the backup's"
        )
    told(name)


async def _catalog(wanted: Wanted, manifest: Manifest) -> None:
    dsn = wanted.catalog_dsn
    await _restore(wanted, CATALOG, dsn, manifest.catalog, _FIRST)
    async with open_session(CATALOG, dsn, LIMITS) as connection, transaction(connection):
        for name, part in manifest.shards.items():
            await connection.execute(_ROW, orjson.dumps(_moved(part.row, wanted.shards[name])).decode())
    await _restore(wanted, CATALOG, dsn, manifest.catalog, _THEN)
    await close_catalog(dsn)


async def _restore(wanted: Wanted, name: str, dsn: str, part: Part, sections: tuple[str, ...] = ()) -> None:
    async with open_session(name, dsn, LIMITS) as connection:
        version = connection.get_server_version().major
    programs = await asyncio.to_thread(programs_for, version, wanted.binaries, part.program)
    await programs.restore(dsn, wanted.folder / name, wanted.jobs, sections)


def _moved(row: Mapping[str, Any], owner_dsn: str) -> dict[str, Any]:
    """A shard's row, with the same logins in another place."""
    forgotten = {"system_identifier": None, "timeline": 0}  # other servers: routers learn which
    found = {**row, **{column: value for column, value in forgotten.items() if column in row}}
    for column, dsn in row.items():
        if column.endswith("_dsn") and dsn is not None and _RETIRED not in dsn:
            password = unquote(urlsplit(dsn).password or "")
            found[column] = owner_dsn if column == _OWNER else with_login(owner_dsn, login_of(dsn) or "", password)
    return found
