"""What must hold before a move begins; a red check ends it with its reason."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from shards.errors import Cause, MoveError, ShardUnavailable
from shards.moves.phases import Move
from shards.postgres.connections import Connection
from shards.postgres.disk import disk_free
from shards.postgres.sessions import MOVER, owner_session
from shards.shard import ShardRecord
from shards.storage import tables

SKEW_MAX_S: Final = 1.0
OLD_TRANSACTION_S: Final = 60

ROOM: Final = 1.2
_FACTS: Final = """
SELECT
    pg_is_in_recovery() AS replica,
    (SELECT max(version) FROM schema_migration) AS version,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS sees_transactions,
    (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()) AS prepared,
    extract(epoch FROM clock_timestamp())::float8 AS clock,
    EXISTS (SELECT FROM owned_bucket WHERE bucket = $1) AS owned,
    EXISTS (SELECT FROM bucket_table WHERE bucket = $1) AS attached,
    (SELECT name FROM shard_identity) AS name,
    (SELECT move_id FROM bucket_move WHERE bucket = $1) AS move_id,
    (SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
       AND NOT starts_with(application_name, $3) AND xact_start < now() - make_interval(secs => $2)
    ) AS old_transactions
"""


class Unfit(MoveError):
    """The move cannot be made as things are."""


@dataclass(frozen=True)
class _Side:
    name: str
    facts: Any
    foreign: list[tables.Foreign]
    loose: list[str]

    def strangers(self, bucket: int) -> list[str]:
        """What would be in this bucket's way: in the tree, or beside it under a name of this bucket."""
        mark = f"_b{bucket:04d}_"
        found = [each.what for each in self.foreign]
        return found + [f"{name} is attached nowhere" for name in self.loose if mark in f"{name}_"]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


async def check(source: ShardRecord, target: ShardRecord, move: Move) -> None:
    """Unfit when a move cannot be made, with the reason and what to do about it."""
    async with owner_session(source) as at_source, _let_in(target) as at_target:
        here = await _look(source.name, at_source, move.bucket)
        there = await _look(target.name, at_target, move.bucket)
        skew = await _skew(at_source, at_target)
        needed = int(await tables.size_of(at_source, move.bucket) * ROOM)
        free = await disk_free(at_target)
    for wrong, reason in [
        *_of_source(here, move),
        *_of_target(there, move),
        (
            here.facts["version"] != there.facts["version"],
            "the shards have different schema versions: `voltroute migrate up`",
        ),
        (
            free is not None and free < needed,
            f"{target.name} has {_mib(free or 0)} free, bucket {move.bucket} needs {_mib(needed)}",
        ),
        (abs(skew) > SKEW_MAX_S, f"the clocks of {source.name} and {target.name} are {skew:.1f} s apart"),
    ]:
        if wrong:
            raise Unfit(reason)


@asynccontextmanager
async def _let_in(target: ShardRecord) -> AsyncIterator[Connection]:
    """A session of the target. Unfit when its disk is so full that it can let nobody in.

    PostgreSQL writes its cache of relations when a session begins and the cache is not there.
    """
    try:
        async with owner_session(target) as session:
            yield session
    except ShardUnavailable as error:
        if error.shard == target.name and error.cause is Cause.DISK_FULL:
            message = f"{target.name} has no room at all: {error.detail}"
            raise Unfit(message) from error
        raise


async def _look(name: str, connection: Connection, bucket: int) -> _Side:
    facts = (await connection.fetch(_FACTS, bucket, OLD_TRANSACTION_S, MOVER))[0]
    return _Side(name, facts, await tables.foreign(connection, bucket), await tables.loose(connection))


def _of_source(side: _Side, move: Move) -> list[tuple[object, str]]:
    facts, name, strangers = side.facts, side.name, side.strangers(move.bucket)
    return [
        (facts["replica"], f"{name} is a replica"),
        (facts["name"] not in {None, name}, f"the database of {name} says that it is {facts['name']}"),
        (not facts["owned"], f"{name} does not own bucket {move.bucket}"),
        (not facts["sees_transactions"], f"grant pg_read_all_stats to the owner of {name}"),
        (facts["prepared"], f"{name} has a prepared transaction: commit it or roll it back"),
        (facts["old_transactions"], f"{name} has a transaction older than {OLD_TRANSACTION_S} s: end it"),
        (facts["move_id"] not in {None, move.move_id}, f"{name} has bucket {move.bucket} in another move"),
        (strangers, f"{name} has tables that voltroute did not make: {'; '.join(strangers)}; see `voltroute check`"),
    ]


def _of_target(side: _Side, move: Move) -> list[tuple[object, str]]:
    facts, name, strangers = side.facts, side.name, side.strangers(move.bucket)
    return [
        (facts["replica"], f"{name} is a replica"),
        (facts["name"] not in {None, name}, f"the database of {name} says that it is {facts['name']}"),
        (not facts["sees_transactions"], f"grant pg_read_all_stats to the owner of {name}"),
        (facts["move_id"] not in {None, move.move_id}, f"{name} has bucket {move.bucket} in another move"),
        (
            facts["move_id"] is None and (facts["owned"] or facts["attached"]),
            f"{name} has bucket {move.bucket} already: see `voltroute check`",
        ),
        (strangers, f"{name} has tables that voltroute did not make: {'; '.join(strangers)}; see `voltroute check`"),
    ]


async def _skew(source: Connection, target: Connection) -> float:
    """How far the target's clock is ahead, in seconds; asked in a sandwich, so that a slow answer is not skew."""
    clock = "SELECT extract(epoch FROM clock_timestamp())::float8"
    before = await source.fetchval(clock)
    there = await target.fetchval(clock)
    after = await source.fetchval(clock)
    return float(there) - (float(before) + float(after)) / 2
