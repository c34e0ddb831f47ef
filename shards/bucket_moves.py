"""A shard's own record of a move: the authority on going on or giving up, and the fencing token of the runner."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from shards.errors import ClusterError, Refused
from shards.moves import Move
from shards.pools import Connection

SOURCE: Final = "source"
TARGET: Final = "target"

_CLAIM: Final = """
INSERT INTO bucket_move (move_id, bucket, role, runner, low_water) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (bucket) DO UPDATE SET runner = excluded.runner
WHERE bucket_move.move_id = excluded.move_id AND bucket_move.role = excluded.role
    AND bucket_move.runner <= excluded.runner
RETURNING state, low_water, fenced_at
"""
_TAKE_OVER: Final = """
UPDATE bucket_move SET runner = $3 WHERE move_id = $1 AND role = $2 AND runner <= $3
RETURNING state, low_water, fenced_at
"""
_LOOK: Final = "SELECT state, low_water, fenced_at FROM bucket_move WHERE move_id = $1 AND role = $2"
_READ: Final = f"{_LOOK} AND runner = $3"
_HOLD: Final = "SELECT state FROM bucket_move WHERE move_id = $1 AND role = $2 AND runner = $3 FOR SHARE"
_CHANGE: Final = """
UPDATE bucket_move SET state = $5 WHERE move_id = $1 AND role = $2 AND runner = $3 AND state = $4
"""
_FENCED: Final = "UPDATE bucket_move SET fenced_at = clock_timestamp() WHERE move_id = $1 AND role = $2"
_LOW_WATER: Final = "UPDATE bucket_move SET low_water = $4 WHERE move_id = $1 AND role = $2 AND runner = $3"
_SET_COPIED: Final = "INSERT INTO copied_leaf (move_id, name) VALUES ($1, $2)"
_COPIED: Final = "SELECT name FROM copied_leaf WHERE move_id = $1"
_FORGET_COPIED: Final = "DELETE FROM copied_leaf WHERE move_id = $1"
_FORGET: Final = "DELETE FROM bucket_move WHERE move_id = $1 AND role = $2"


class Replaced(ClusterError):
    """Another runner has taken over: this one must stop."""


@dataclass(frozen=True)
class BucketMove:
    """Where a shard says that a move is."""

    state: str
    low_water: datetime | None
    fenced_at: datetime | None


async def look(connection: Connection, move: Move, role: str) -> BucketMove | None:
    """The record as it is, whoever runs the move; None when there is none."""
    record = await connection.fetchrow(_LOOK, move.move_id, role)
    return None if record is None else _read(record)


def _read(record: asyncpg.Record) -> BucketMove:
    return BucketMove(record["state"], record["low_water"], record["fenced_at"])


@dataclass(frozen=True)
class Token:
    """A runner's right to write on a shard for a move: the generation of its leadership."""

    move: Move
    role: str
    runner: int

    async def claim(self, connection: Connection, low_water: datetime | None = None) -> BucketMove:
        """Make the record, or take an existing one over. Refused when the bucket is in another move on this shard."""
        values = (self.move.move_id, self.move.bucket, self.role, self.runner, low_water)
        record = await connection.fetchrow(_CLAIM, *values)
        if record is not None:
            return _read(record)
        if await look(connection, self.move, self.role) is not None:
            raise Replaced(_REPLACED)
        message = f"bucket {self.move.bucket} is still in another move there: see `voltroute check`"
        raise Refused(message)

    async def take_over(self, connection: Connection) -> BucketMove | None:
        """The record, with this runner in it; None when there is none. Replaced when a later runner has it."""
        record = await connection.fetchrow(_TAKE_OVER, self.move.move_id, self.role, self.runner)
        if record is not None:
            return _read(record)
        if await look(connection, self.move, self.role) is not None:
            raise Replaced(_REPLACED)
        return None

    async def read(self, connection: Connection) -> BucketMove:
        """The record as it is now. Replaced when it is not this runner's any more."""
        record = await connection.fetchrow(_READ, self.move.move_id, self.role, self.runner)
        if record is None:
            raise Replaced(_REPLACED)
        return _read(record)

    async def hold(self, connection: Connection) -> str:
        """State of the move; until the transaction's end no other runner can take over. Replaced when one has."""
        state = await connection.fetchval(_HOLD, self.move.move_id, self.role, self.runner)
        if state is None:
            raise Replaced(_REPLACED)
        return str(state)

    async def change(self, connection: Connection, before: str, after: str) -> None:
        """The decision: `before` -> `after` in one row. Replaced when the record is not in `before`, or not ours."""
        values = (self.move.move_id, self.role, self.runner, before, after)
        if await connection.execute(_CHANGE, *values) != "UPDATE 1":
            raise Replaced(_REPLACED)

    async def set_fenced(self, connection: Connection) -> None:
        """Every row of the bucket was ingested before now: call it when the fence is up."""
        await connection.execute(_FENCED, self.move.move_id, self.role)

    async def set_low_water(self, connection: Connection, mark: datetime) -> None:
        """Where the next pass starts: everything ingested before is on the target."""
        values = (self.move.move_id, self.role, self.runner, mark)
        if await connection.execute(_LOW_WATER, *values) != "UPDATE 1":
            raise Replaced(_REPLACED)

    async def set_copied(self, connection: Connection, leaf: str) -> None:
        """A leaf is on the target, in the transaction that copied it (and holds the move)."""
        await connection.execute(_SET_COPIED, self.move.move_id, leaf)

    async def copied(self, connection: Connection) -> frozenset[str]:
        """The leaves that are whole."""
        return frozenset(record["name"] for record in await connection.fetch(_COPIED, self.move.move_id))

    async def forget(self, connection: Connection) -> None:
        """The shard has nothing of this move any more."""
        await connection.execute(_FORGET_COPIED, self.move.move_id)
        await connection.execute(_FORGET, self.move.move_id, self.role)


_REPLACED: Final = "the move was taken over by another runner, or is not where this one believes it"
