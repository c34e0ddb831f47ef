"""What must hold before a move begins; a red check ends it with its reason."""

from typing import Final

from shards.catalog import ShardRecord
from shards.disk import disk_free
from shards.errors import ClusterError
from shards.moves import Move
from shards.pools import Connection
from shards.sessions import owner_session

SKEW_MAX_S: Final = 1.0
OLD_TRANSACTION_S: Final = 60

ROOM: Final = 1.2
_SIZE: Final = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class AS c
WHERE c.relkind = 'r' AND c.relname ~ ('_b' || lpad($1::smallint::text, 4, '0') || '(_|$)')
"""
_FACTS: Final = """
SELECT
    pg_is_in_recovery() AS replica,
    (SELECT max(version) FROM schema_migration) AS version,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS sees_transactions,
    (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()) AS prepared,
    extract(epoch FROM clock_timestamp())::float8 AS clock,
    EXISTS (SELECT FROM owned_bucket WHERE bucket = $1) AS owned,
    (SELECT string_agg(name, ', ') FROM bucket_tables($1) WHERE to_regclass(format('public.%I', name)) IS NOT NULL)
        AS tables,
    (SELECT move_id FROM bucket_move WHERE bucket = $1) AS move_id,
    (SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
       AND xact_start < now() - make_interval(secs => $2)) AS old_transactions
"""


class Unfit(ClusterError):
    """The move cannot be made as things are."""


async def check(source: ShardRecord, target: ShardRecord, move: Move) -> None:
    """Unfit when a move cannot be made, with the reason and what to do about it."""
    async with owner_session(source) as at_source, owner_session(target) as at_target:
        here = (await at_source.fetch(_FACTS, move.bucket, OLD_TRANSACTION_S))[0]
        there = (await at_target.fetch(_FACTS, move.bucket, OLD_TRANSACTION_S))[0]
        skew = await _skew(at_source, at_target)
        needed = int(await at_source.fetchval(_SIZE, move.bucket) * ROOM)
        free = await disk_free(at_target)
    reasons = [
        (here["replica"], f"{source.name} is a replica"),
        (there["replica"], f"{target.name} is a replica"),
        (here["version"] != there["version"], "the shards have different schema versions: `voltroute migrate up`"),
        (not here["owned"], f"{source.name} does not own bucket {move.bucket}"),
        (not here["sees_transactions"], f"grant pg_read_all_stats to the owner of {source.name}"),
        (here["prepared"], f"{source.name} has a prepared transaction: commit it or roll it back"),
        (here["old_transactions"], f"{source.name} has a transaction older than {OLD_TRANSACTION_S} s: end it"),
        (here["move_id"] not in {None, move.move_id}, f"{source.name} has bucket {move.bucket} in another move"),
        (there["move_id"] not in {None, move.move_id}, f"{target.name} has bucket {move.bucket} in another move"),
        (
            there["move_id"] is None and there["tables"],
            f"{target.name} has tables of bucket {move.bucket} left over: {there['tables']}; see `voltroute check`",
        ),
        (
            free is not None and free < needed,
            f"{target.name} has {(free or 0) / 2**20:,.0f} MiB free, bucket {move.bucket} needs {needed / 2**20:,.0f}",
        ),
        (abs(skew) > SKEW_MAX_S, f"the clocks of {source.name} and {target.name} are {skew:.1f} s apart"),
    ]
    for wrong, reason in reasons:
        if wrong:
            raise Unfit(reason)


async def _skew(source: Connection, target: Connection) -> float:
    """How far the target's clock is ahead, in seconds; asked in a sandwich, so that a slow answer is not skew."""
    clock = "SELECT extract(epoch FROM clock_timestamp())::float8"
    before = await source.fetchval(clock)
    there = await target.fetchval(clock)
    after = await source.fetchval(clock)
    return float(there) - (float(before) + float(after)) / 2
