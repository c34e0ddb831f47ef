"""A shard's own record of a move: the authority on going on or giving up, and the fencing token of the runner."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from shards.errors import MoveError, Refused
from shards.moves.phases import Move, Recorded, Role, check_record
from shards.postgres.connections import Connection
from shards.postgres.sessions import MOVER
from shards.postgres.transactions import transaction

_FIELDS: Final = "state, low_water, fenced_at, verified"
_CLAIM: Final = f"""
INSERT INTO bucket_move (move_id, bucket, role, runner, low_water)
SELECT $1, $2, $3, $4, $5 FROM (SELECT FROM runner_seen WHERE generation <= $4 FOR SHARE) AS still_leads
ON CONFLICT (bucket) DO UPDATE SET runner = excluded.runner
WHERE bucket_move.move_id = excluded.move_id AND bucket_move.role = excluded.role
    AND bucket_move.runner <= excluded.runner
RETURNING {_FIELDS}
"""
_TAKE_OVER: Final = f"""
UPDATE bucket_move SET runner = $3 WHERE move_id = $1 AND role = $2 AND runner <= $3 RETURNING {_FIELDS}
"""
_LOOK: Final = f"SELECT {_FIELDS} FROM bucket_move WHERE move_id = $1 AND role = $2"
_HAS: Final = """
SELECT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1) OR EXISTS (SELECT FROM bucket_table WHERE bucket = $1)
"""
_OTHER: Final = "SELECT move_id FROM bucket_move WHERE bucket = $1"
_READ: Final = f"{_LOOK} AND runner = $3"
_HOLD: Final = "SELECT state FROM bucket_move WHERE move_id = $1 AND role = $2 AND runner = $3 FOR SHARE"
_CHANGE: Final = """
UPDATE bucket_move SET state = $5 WHERE move_id = $1 AND role = $2 AND runner = $3 AND state = $4
"""
_FORCE: Final = "UPDATE bucket_move SET state = $4 WHERE move_id = $1 AND role = $2 AND runner = $3"
_FENCED: Final = """
UPDATE bucket_move SET fenced_at = clock_timestamp() WHERE move_id = $1 AND role = $2 AND runner = $3
RETURNING fenced_at
"""
_LOW_WATER: Final = "UPDATE bucket_move SET low_water = $4 WHERE move_id = $1 AND role = $2 AND runner = $3"
_VERIFIED: Final = "UPDATE bucket_move SET verified = $4 WHERE move_id = $1 AND role = $2 AND runner = $3"
_SET_COPIED: Final = "INSERT INTO copied_leaf (move_id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_COPIED: Final = "SELECT name FROM copied_leaf WHERE move_id = $1"
_FORGET_COPIED: Final = "DELETE FROM copied_leaf WHERE move_id = $1"
_FORGET_TABLES: Final = "DELETE FROM move_table WHERE move_id = $1"
_FORGET: Final = "DELETE FROM bucket_move WHERE move_id = $1 AND role = $2 AND runner = $3"
_TABLES: Final = "SELECT root, name FROM tables_of_move($1)"
_SEEN: Final = """
UPDATE runner_seen SET generation = $1 WHERE generation <= $1 RETURNING generation
"""
# Sessions of runners with an older generation: whoever is paused or cut off holds nothing up, and commits nothing.
_END_OLDER: Final = f"""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
    AND application_name ~ '^{MOVER} \\d+$' AND substring(application_name FROM '\\d+$')::bigint < $1
"""


class Replaced(MoveError):
    """Another runner has taken over, or the catalog asked for something else: this one must stop."""


class Held(MoveError):
    """A record or a table is not as this release would have left it: never guessed, held for an operator."""


@dataclass(frozen=True)
class BucketMove:
    """Where a shard says that a move is."""

    state: Recorded
    low_water: datetime | None
    fenced_at: datetime | None
    verified: datetime | None = None


async def look(connection: Connection, move: Move, role: Role) -> BucketMove | None:
    """The record as it is, whoever runs the move; None when there is none."""
    record = await connection.fetchrow(_LOOK, move.move_id, role)
    return None if record is None else _read(record)


def _read(record: asyncpg.Record) -> BucketMove:
    return BucketMove(Recorded(record["state"]), record["low_water"], record["fenced_at"], record["verified"])


async def has_bucket(connection: Connection, move: Move) -> bool:
    """Whether the shard owns the move's bucket, or has a table of it attached."""
    return bool(await connection.fetchval(_HAS, move.bucket))


def application(generation: int) -> str:
    """The application_name of a runner's sessions."""
    return f"{MOVER} {generation}"


async def end_older_runners(connection: Connection, generation: int) -> None:
    """End what earlier runners left open on this shard, and let them claim nothing more. Replaced by a later one."""
    if await connection.fetchval(_SEEN, generation) is None:
        raise Replaced(_REPLACED)
    await connection.execute(_END_OLDER, generation)


@dataclass(frozen=True)
class Token:
    """A runner's right to write on a shard for a move: the generation of its leadership."""

    move: Move
    role: Role
    runner: int

    @property
    def _key(self) -> tuple[int, Role, int]:
        return self.move.move_id, self.role, self.runner

    async def claim(self, connection: Connection, low_water: datetime | None = None) -> BucketMove:
        """Make the record, or take an existing one over. Refused when the bucket is in another move on this shard."""
        values = (self.move.move_id, self.move.bucket, self.role, self.runner, low_water)
        record = await connection.fetchrow(_CLAIM, *values)
        if record is not None:
            return _read(record)
        other = await connection.fetchval(_OTHER, self.move.bucket)
        if other is None or other == self.move.move_id:
            raise Replaced(_REPLACED)
        message = f"bucket {self.move.bucket} is still in another move there: see `voltroute check`"
        raise Refused(message)

    async def take_over(self, connection: Connection) -> BucketMove | None:
        """The record, with this runner in it; None when there is none. Replaced when a later runner has it."""
        record = await connection.fetchrow(_TAKE_OVER, *self._key)
        if record is not None:
            return _read(record)
        if await look(connection, self.move, self.role) is not None:
            raise Replaced(_REPLACED)
        return None

    async def read(self, connection: Connection) -> BucketMove:
        """The record as it is now. Replaced when it is not this runner's any more."""
        record = await connection.fetchrow(_READ, *self._key)
        if record is None:
            raise Replaced(_REPLACED)
        return _read(record)

    async def hold(self, connection: Connection, *expected: Recorded) -> None:
        """Until the transaction's end no other runner can take over. Replaced when one has, or the state is another."""
        state = await connection.fetchval(_HOLD, *self._key)
        if state is None or (expected and state not in expected):
            raise Replaced(_REPLACED)

    async def change(self, connection: Connection, before: Recorded, after: Recorded) -> None:
        """The decision: `before` -> `after` in one row. Replaced when the record is not in `before`, or not ours."""
        check_record(self.role, before, after)
        if await connection.execute(_CHANGE, *self._key, before, after) != "UPDATE 1":
            raise Replaced(_REPLACED)

    async def force(self, connection: Connection, state: Recorded) -> None:
        """Any state, by an operator's decision. Replaced when the record is not this runner's any more."""
        if await connection.execute(_FORCE, *self._key, state) != "UPDATE 1":
            raise Replaced(_REPLACED)

    async def set_fenced(self, connection: Connection) -> datetime:
        """Every row of the bucket was ingested before now: call it when the fence is up."""
        moment = await connection.fetchval(_FENCED, *self._key)
        if not isinstance(moment, datetime):
            raise Replaced(_REPLACED)
        return moment

    async def set_low_water(self, connection: Connection, mark: datetime) -> None:
        """Where the next pass starts: everything ingested before is on the other side."""
        if await connection.execute(_LOW_WATER, *self._key, mark) != "UPDATE 1":
            raise Replaced(_REPLACED)

    async def set_verified(self, connection: Connection, mark: datetime) -> None:
        """Everything ingested before was compared with the other side."""
        if await connection.execute(_VERIFIED, *self._key, mark) != "UPDATE 1":
            raise Replaced(_REPLACED)

    async def tables(self, connection: Connection) -> Mapping[str, str]:
        """Root -> table of the move on this shard. NotAsRecorded when one is another than was recorded."""
        found = {record["root"]: record["name"] for record in await connection.fetch(_TABLES, self.move.move_id)}
        if not found:
            raise Held(f"{self.move.shard(self.role)} has no tables recorded for move {self.move.move_id}")
        return found

    async def set_copied(self, connection: Connection, leaf: str) -> None:
        """A table is on the target, in the transaction that copied it (and holds the move)."""
        await connection.execute(_SET_COPIED, self.move.move_id, leaf)

    async def copied(self, connection: Connection) -> frozenset[str]:
        """The tables that are whole."""
        return frozenset(record["name"] for record in await connection.fetch(_COPIED, self.move.move_id))

    async def forget(self, connection: Connection) -> None:
        """The shard has nothing of this move any more; a record that is gone already stays gone."""
        async with transaction(connection):
            # The record goes first: if it is another runner's by now, nothing else is touched.
            if await connection.execute(_FORGET, *self._key) != "DELETE 1":
                if await look(connection, self.move, self.role) is not None:
                    raise Replaced(_REPLACED)
                return
            await connection.execute(_FORGET_COPIED, self.move.move_id)
            await connection.execute(_FORGET_TABLES, self.move.move_id)


_REPLACED: Final = "the move was taken over by another runner, or is not where this one believes it"
