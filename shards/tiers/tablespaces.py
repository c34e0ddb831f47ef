"""A frozen leaf goes to another tablespace, as it is: copied beside it, and put in its place.

    frozen -copy, some devices at a time-> whole -old snapshots gone-> in the leaf's place, which is dropped

ALTER TABLE SET TABLESPACE would lock readers out, and writers' look for repeats, for as long as it copies. Here nobody
waits for more than a moment. The caller holds the bucket, as for every step; it may do anything between two of them.
"""

import contextlib
from typing import Final

import asyncpg

from shards.errors import ClusterError, Refused
from shards.policy import Policies
from shards.postgres.connections import Connection
from shards.postgres.sql import LOCK_TIMEOUT, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage.packing import differing
from shards.tiers.due import Leaf
from shards.tiers.steps import Kept, next_devices

_NAME: Final = "voltroute_copy_"  # then the leaf's OID
_BEGUN: Final = "voltroute copy"
_WHOLE: Final = "voltroute copy, whole"
_NAME_OF: Final = "SELECT $2 || to_regclass(format('public.%I', $1::text))::oid"
# A table in its database's own tablespace names none.
_SPACE: Final = """(
    SELECT s.spcname::text FROM pg_tablespace AS s, pg_database AS d
    WHERE d.datname = current_database() AND s.oid = coalesce(nullif(c.reltablespace, 0), d.dattablespace)
)"""
_COPY: Final = f"""
SELECT {_SPACE} AS tablespace, obj_description(c.oid, 'pg_class') = $2 AS whole
FROM pg_class AS c WHERE c.oid = to_regclass(format('public.%I', $1::text))
"""
_INDEXES: Final = """
SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(format('public.%I', $1::text))
"""
_CONSTRAINT: Final = "SELECT pg_get_partition_constraintdef(to_regclass(format('public.%I', $1::text)))"
_PLACE: Final = """
SELECT pg_get_expr(c.relpartbound, c.oid) AS bound, p.relname::text AS parent
FROM pg_class AS c JOIN pg_inherits AS i ON i.inhrelid = c.oid JOIN pg_class AS p ON p.oid = i.inhparent
WHERE c.oid = to_regclass(format('public.%I', $1::text))
"""
# Whoever has a snapshot of before the copy was whole would not see its rows.
_SEEN: Final = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity AS a
    WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()
        AND (a.datname = current_database() OR a.datname IS NULL) AND age(a.backend_xmin) >= age(d.xmin)
) OR EXISTS (
    SELECT FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL AND age(s.xmin) >= age(d.xmin)
)
FROM pg_description AS d
WHERE d.objoid = to_regclass(format('public.%I', $1::text)) AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
"""
_NO_NEW_LEAVES: Final = "SELECT pg_advisory_xact_lock(hashtext('voltroute.partitions'), $1::integer)"
_TRIGGER: Final = "CREATE TRIGGER frozen BEFORE INSERT ON {0} FOR EACH ROW EXECUTE FUNCTION refuse_frozen()"
_COPIES: Final = f"""
SELECT c.relname::text AS name, {_SPACE} AS tablespace, b.bucket, b.kind
FROM pg_class AS c
JOIN pg_description AS d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
LEFT JOIN pg_inherits AS i ON i.inhrelid::text = substr(c.relname, length($2) + 1)
LEFT JOIN bucket_table AS b ON b.table_oid = i.inhparent AND b.role = 'history'
WHERE d.description IN ($1, $3) AND starts_with(c.relname, $2)
"""
_CHECK: Final = "SELECT has_tablespace_privilege(current_user, $1, 'CREATE')"
_EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_tablespace WHERE spcname = $1)"


async def check(connection: Connection, tablespace: str) -> None:
    """Refused unless the server has it, and the shard's owner may use it."""
    if not await connection.fetchval(_EXISTS, tablespace):
        raise Refused(f"there is no tablespace {tablespace}: CREATE TABLESPACE makes one, on every server")
    if not await connection.fetchval(_CHECK, tablespace):
        raise Refused(f"its owner may not use tablespace {tablespace}: GRANT CREATE ON TABLESPACE gives that right")


async def place_some(kept: Kept, leaf: Leaf, tablespace: str) -> tuple[int, int]:
    """Copy the next devices, or put the copy in the leaf's place; how many readings were copied, and if somebody waits.

    The second is 1 while an old statement may still read the leaf, or somebody has a lock: then nothing was done.
    """
    connection = kept.connection
    name = await connection.fetchval(_NAME_OF, leaf.name, _NAME)
    found = await connection.fetch(_COPY, name, _WHOLE)
    if not found or found[0]["tablespace"] != tablespace:
        await check(connection, tablespace)
        await _begin(kept, leaf, name, tablespace)
    elif found[0]["whole"]:
        if await connection.fetchval(_SEEN, name):
            return 0, 1
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            await _put(kept, leaf, name)
            return 0, 0
        return 0, 1
    copied = await _copy_some(kept, leaf, name)
    if not copied:
        await connection.execute(f"ANALYZE {quote_identifier(name)}")
        # The last of all that is written: who sees this sees the rows.
        await connection.execute(f"COMMENT ON TABLE {quote_identifier(name)} IS '{_WHOLE}'")
        await kept.at("after copy")
    return copied, 0


async def _begin(kept: Kept, leaf: Leaf, name: str, tablespace: str) -> None:
    connection, source, copy = kept.connection, quote_identifier(leaf.name), quote_identifier(name)
    space = quote_identifier(tablespace)
    async with transaction(connection):
        await connection.execute(f"DROP TABLE IF EXISTS {copy}")
        await connection.execute(f"CREATE TABLE {copy} (LIKE {source} INCLUDING ALL) TABLESPACE {space}")
        for (index,) in await connection.fetch(_INDEXES, name):  # they would be where the leaf's are
            await connection.execute(f"ALTER INDEX {quote_identifier(index)} SET TABLESPACE {space}")
        # ATTACH believes it, instead of reading all rows.
        holds = await connection.fetchval(_CONSTRAINT, leaf.name)
        await connection.execute(f"ALTER TABLE {copy} ADD CONSTRAINT of_leaf CHECK ({holds})")
        await connection.execute(f"COMMENT ON TABLE {copy} IS '{_BEGUN}'")


async def _copy_some(kept: Kept, leaf: Leaf, name: str) -> int:
    """The copy tells how far it came: devices go in the order of their IDs. ClusterError when it differs."""
    connection, key, source, copy = kept.connection, kept.shape.key, quote_identifier(leaf.name), quote_identifier(name)
    last = await connection.fetchval(f"SELECT max({key}) FROM {copy}") or ""
    upto, total = await next_devices(kept, leaf, last)
    if total:
        which = f"{key} > $1 AND {key} <= $2"
        async with transaction(connection):
            await connection.execute(
                f"INSERT INTO {copy} SELECT * FROM {source} WHERE {which} ORDER BY {key}, timestamp", last, upto
            )
            one, other = (f"(SELECT * FROM {each} WHERE {which})" for each in (source, copy))
            if wrong := await connection.fetchval(differing(kept.shape, one, other), last, upto):
                raise ClusterError(f"{leaf.name}: {wrong} readings of devices up to {upto} were not copied as they are")
            await kept.at("inside copy")
    return total


async def _put(kept: Kept, leaf: Leaf, name: str) -> None:
    """From this COMMIT on the copy is the leaf. ClusterError when it does not hold as much: then it is copied anew."""
    connection, source, copy = kept.connection, quote_identifier(leaf.name), quote_identifier(name)
    counts = [await connection.fetchval(f"SELECT count(*) FROM {each}") for each in (source, copy)]
    if counts[0] != counts[1]:  # a move healed the leaf after a part of it was copied, say
        await connection.execute(f"DROP TABLE {copy}")
        raise ClusterError(f"{leaf.name} has {counts[0]} readings, and {counts[1]} were copied: it is copied anew")
    place = (await connection.fetch(_PLACE, leaf.name))[0]
    parent = quote_identifier(place["parent"])
    async with transaction(connection):
        await connection.execute(LOCK_TIMEOUT)
        await connection.execute(_NO_NEW_LEAVES, kept.tiers.bucket)
        # First, and without the other leaves: whoever waits for it plans anew, and finds the copy.
        await connection.execute(f"LOCK TABLE ONLY {parent}, ONLY {source} IN ACCESS EXCLUSIVE MODE")
        await connection.execute(_TRIGGER.format(copy))
        await connection.execute(f"ALTER TABLE {parent} DETACH PARTITION {source}")
        await connection.execute(f"DROP TABLE {source}")
        await connection.execute(f"ALTER TABLE {copy} RENAME TO {source}")
        await connection.execute(f"ALTER TABLE {parent} ATTACH PARTITION {source} {place['bound']}")
        await connection.execute(f"ALTER TABLE {source} DROP CONSTRAINT of_leaf")
        await connection.execute(f"COMMENT ON TABLE {source} IS NULL")
        await kept.at("inside swap")
    await kept.at("after swap")


async def sweep(connection: Connection, policies: Policies) -> None:
    """Drop copies that nobody goes on with: of buckets that were moved away, or by a policy that is another one now."""
    for record in await connection.fetch(_COPIES, _BEGUN, _NAME, _WHOLE):
        policy = None if record["bucket"] is None else policies.of(record["kind"], record["bucket"])
        if policy is None or policy.tablespace != record["tablespace"]:
            await connection.execute(f"DROP TABLE IF EXISTS {quote_identifier(record['name'])}")
