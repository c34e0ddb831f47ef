"""Carrying a bucket's rows from one shard to another: leaf by leaf, then what was ingested since."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from shards.bucket_moves import Token
from shards.errors import ClusterError
from shards.fingerprints import bucket_table
from shards.kinds import KINDS, Kind
from shards.pools import Connection
from shards.sessions import MOVER
from shards.sql import quote_identifier

CHUNKS_AHEAD: Final = 8
STALL_TIMEOUT_S: Final = 30.0
BUSY_PAUSE_S: Final = 0.05
SHARE_WHEN_BUSY: Final = 0.3  # of the time, while readings wait for their transaction

_LEAVES: Final = """
SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound, pg_stat_get_live_tuples(c.oid) AS rows,
    pg_relation_size(c.oid) AS size_bytes
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass($1) AND NOT i.inhdetachpending
ORDER BY c.relname
"""
_BOUND: Final = re.compile(r"FOR VALUES FROM \((.*)\) TO \((.*)\)")
_MAKE_LEAF: Final = "SELECT make_leaf($1, $2, $3, $4)"

# A transaction that began before the mark may still commit readings ingested before it: the mark is the oldest of
# these, and a little before, because a backend takes its transaction's time a moment before it shows it.
_LOW_WATER: Final = """
SELECT least(min(xact_start), clock_timestamp()) - interval '2 seconds' AS mark,
    (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()) AS prepared
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend'
    AND application_name <> $1 AND usename IS DISTINCT FROM $2 AND pid <> pg_backend_pid()
"""


# Told of every chunk's size; waits as long as the copy should.
Passed: TypeAlias = Callable[[int], Awaitable[None]]


async def at_full_speed(_size: int) -> None:
    """Inside a fence writers wait: nothing may hold the copy up."""


@dataclass
class Throttle:
    """Keeps a copy below a rate, and out of the way while `busy()` says that readings wait."""

    bytes_per_s_max: int | None = None
    busy: Callable[[], bool] = lambda: False
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _started: float = field(default_factory=time.monotonic)
    _bytes: int = 0
    _last: float = field(default_factory=time.monotonic)

    async def passed(self, size: int) -> None:
        """`size` more bytes went through: wait as long as they call for."""
        self._bytes += size
        now = time.monotonic()
        if self.bytes_per_s_max is not None:
            ahead = self._started + self._bytes / self.bytes_per_s_max - now
            if ahead > 0:
                await self.sleep(min(ahead, 1.0))
        elif self.busy():
            worked = min(now - self._last, BUSY_PAUSE_S)
            await self.sleep(worked * (1 / SHARE_WHEN_BUSY - 1))
        self._last = time.monotonic()


@dataclass(frozen=True)
class Leaf:
    """A partition of one bucket's history; rows are PostgreSQL's estimate."""

    kind: Kind
    name: str
    lower: str
    upper: str
    rows: int
    size_bytes: int


async def leaves(connection: Connection, bucket: int) -> list[Leaf]:
    """The leaves of a bucket's two history tables."""
    found = []
    for kind in KINDS:
        for record in await connection.fetch(_LEAVES, bucket_table(kind.history, bucket)):
            bound = _BOUND.fullmatch(record["bound"])
            if bound is None:
                message = f"{record['name']} has bounds of an unknown form: {record['bound']}"
                raise ClusterError(message)
            found.append(Leaf(kind, record["name"], bound[1], bound[2], record["rows"], record["size_bytes"]))
    return found


async def make_leaves(target: Connection, bucket: int, wanted: list[Leaf]) -> None:
    """Make those leaves that the target does not have yet."""
    for leaf in wanted:
        parent = bucket_table(leaf.kind.history, bucket)
        await target.fetchval(_MAKE_LEAF, parent, leaf.name, leaf.lower, leaf.upper)


async def low_water(source: Connection, reader_login: str | None) -> datetime:
    """The mark up to which the source's history is complete. ClusterError when that cannot be known."""
    record = (await source.fetch(_LOW_WATER, MOVER, reader_login))[0]
    if record["prepared"]:
        message = (
            "a prepared transaction is open on the source: what it holds cannot be seen; commit it or roll it back"
        )
        raise ClusterError(message)
    mark: datetime = record["mark"]
    return mark


def _columns(kind: Kind, *, of_status: bool) -> list[str]:
    times = ["last_updated", "created_at"] if of_status else ["timestamp", "ingested_at"]
    return [*times, *kind.values, "bucket", "tenant_id", kind.id_column]


async def pipe(
    source: Connection,
    query: str,
    arguments: tuple[object, ...],
    target: Connection,
    table: str,
    columns: list[str],
    passed: Passed,
) -> int:
    """COPY a query's rows into a table of the other shard; returns their number. TimeoutError when nothing moves."""
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(CHUNKS_AHEAD)

    async def take(chunk: bytes) -> None:
        await passed(len(chunk))
        async with asyncio.timeout(STALL_TIMEOUT_S):
            await chunks.put(bytes(chunk))

    async def read() -> None:
        await source.copy_from_query(query, *arguments, output=take, format="binary")
        async with asyncio.timeout(STALL_TIMEOUT_S):
            await chunks.put(None)

    async def give() -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(STALL_TIMEOUT_S + 1):
                chunk = await chunks.get()
            if chunk is None:
                return
            yield chunk

    async def write() -> int:
        done = await target.copy_to_table(table, source=give(), columns=columns, format="binary")
        return int(done.rpartition(" ")[2])

    try:
        async with asyncio.TaskGroup() as group:  # whichever side fails ends the other
            group.create_task(read())
            writing = group.create_task(write())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return writing.result()


async def copy_leaf(source: Connection, target: Connection, leaf: Leaf, token: Token, passed: Passed) -> int:
    """Copy one leaf in a transaction of the target, from its beginning; returns the number of rows."""
    columns = _columns(leaf.kind, of_status=False)
    names = ", ".join(map(quote_identifier, columns))
    query = f"SELECT {names} FROM {quote_identifier(leaf.name)}"
    async with target.transaction():
        await token.hold(target)
        await target.execute(f"TRUNCATE {quote_identifier(leaf.name)}")
        rows = await pipe(source, query, (), target, leaf.name, columns, passed)
        await token.set_copied(target, leaf.name)
    return rows


async def prepare_delta(target: Connection) -> None:
    """Make the session's staging tables."""
    for kind in KINDS:
        table = quote_identifier(f"delta_{kind}")
        await target.execute(f"CREATE TEMP TABLE IF NOT EXISTS {table} (LIKE {kind.history}) ON COMMIT DELETE ROWS")


async def carry_delta(
    source: Connection, target: Connection, bucket: int, since: datetime, passed: Passed = at_full_speed
) -> int:
    """What the source ingested since then, inside the target's transaction; returns how many rows were new there."""
    new = 0
    for kind in KINDS:
        columns = _columns(kind, of_status=False)
        names = ", ".join(map(quote_identifier, columns))
        query = f"SELECT {names} FROM {quote_identifier(bucket_table(kind.history, bucket))} WHERE ingested_at >= $1"
        rows = await pipe(source, query, (since,), target, f"delta_{kind}", columns, passed)
        if rows:
            table = quote_identifier(bucket_table(kind.history, bucket))
            insert = f"INSERT INTO {table} ({names}) SELECT {names} FROM delta_{kind} ON CONFLICT DO NOTHING"
            new += int((await target.execute(insert)).rpartition(" ")[2])
    return new


async def carry_status(source: Connection, target: Connection, bucket: int, passed: Passed = at_full_speed) -> None:
    """Replace the target's statuses of a bucket, inside its transaction."""
    for kind in KINDS:
        columns = _columns(kind, of_status=True)
        table = bucket_table(kind.status, bucket)
        names = ", ".join(map(quote_identifier, columns))
        await target.execute(f"DELETE FROM {quote_identifier(table)}")
        await pipe(source, f"SELECT {names} FROM {quote_identifier(table)}", (), target, table, columns, passed)


async def settle(connection: Connection, bucket: int) -> None:
    """Summaries and statistics of a bucket as they should be before a fence, which then takes milliseconds."""
    for leaf in await leaves(connection, bucket):
        index = await connection.fetchval(_BRIN_OF, leaf.name)
        if index is not None:
            await connection.execute("SELECT brin_summarize_new_values($1::oid::regclass)", index)
        await connection.execute(f"ANALYZE {quote_identifier(leaf.name)}")


_BRIN_OF: Final = """
SELECT i.indexrelid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
WHERE i.indrelid = to_regclass($1) AND a.amname = 'brin'
"""
