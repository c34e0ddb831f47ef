"""Rows from a query of one shard into a table of another, in PostgreSQL's binary format, never whole in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from shards.moves.throttle import Passed
from shards.postgres.connections import Connection

CHUNKS_AHEAD: Final = 8
STALL_TIMEOUT_S: Final = 30.0


async def pipe(
    giver: Connection,
    query: str,
    arguments: Sequence[object],
    taker: Connection,
    table: str,
    columns: Sequence[str],
    passed: Passed,
) -> int:
    """COPY a query's rows into a table of the other shard; returns their number. TimeoutError when nothing moves."""
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(CHUNKS_AHEAD)

    async def take(chunk: bytes) -> None:
        await passed(len(chunk))
        async with asyncio.timeout(STALL_TIMEOUT_S):
            await chunks.put(bytes(chunk))

    async def read() -> None:
        await giver.copy_from_query(query, *arguments, output=take, format="binary")
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
        done = await taker.copy_to_table(table, source=give(), columns=list(columns), format="binary")
        return int(done.rpartition(" ")[2])

    try:
        async with asyncio.TaskGroup() as group:  # whichever side fails ends the other
            group.create_task(read())
            writing = group.create_task(write())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return writing.result()
