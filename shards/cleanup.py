"""Removing what a move leaves: the source's frozen copy, an aborted target, a target that was rolled back."""

from typing import Final

from shards import fingerprints
from shards.bucket_moves import SOURCE, TARGET, BucketMove, Replaced, Token, look
from shards.catalog import ShardRecord
from shards.fingerprints import bucket_table
from shards.kinds import KINDS
from shards.mover import BEGINNING, Work, enter
from shards.moves import Move, Phase
from shards.pools import Connection
from shards.sessions import owner_session
from shards.sql import quote_identifier

_ATTACHED: Final = """
SELECT t.root, t.name, to_regclass(format('public.%I', t.name)) IS NOT NULL AS there,
    i.inhrelid IS NOT NULL AS attached, coalesce(i.inhdetachpending, false) AS pending
FROM bucket_tables($1::smallint) AS t
LEFT JOIN pg_inherits AS i ON i.inhrelid = to_regclass(format('public.%I', t.name))
"""
_PENDING: Final = """
SELECT i.inhparent::regclass::text AS root, i.inhrelid::regclass::text AS name
FROM pg_inherits AS i WHERE i.inhdetachpending
"""
_DISOWN: Final = "DELETE FROM owned_bucket WHERE bucket = $1"


async def abort(work: Work, move: Move) -> Move:
    """Give a move up, unless the source is fenced: then it goes on. Dropping everything on the target loses nothing."""
    async with owner_session(work.source) as source:
        token = work.token(move, SOURCE)
        known = await token.take_over(source)
        if known is not None and known.state == "fenced":
            return await enter(work, move, Phase.CUTOVER)
        if known is not None and known.state == "copying":
            await work.step(move, "before give up")
            await token.change(source, "copying", "aborted")
            await work.step(move, "after give up")
        async with owner_session(work.target) as target:
            if await work.token(move, TARGET).take_over(target) is not None:  # else the tables there are not ours
                await _drop(work, move, target, work.token(move, TARGET))
        await token.forget(source)
        await work.step(move, "after forget")
    return await enter(work, move, Phase.ABORTED)


async def clean_up(work: Work, move: Move) -> Move:
    """Compare the frozen copy once more with its target, then remove it."""
    async with owner_session(work.source) as source, owner_session(work.target) as target:
        token = work.token(move, SOURCE)
        known = await token.take_over(source)
        if known is not None and known.state == "fenced":
            await _compare(source, target, move, known)
            await token.change(source, "fenced", "dropping")
            await work.step(move, "after dropping")
        if known is not None:
            await _drop(work, move, source, token)
        await work.token(move, TARGET).forget(target)
        await work.step(move, "after forget")
    return await enter(work, move, Phase.DONE)


async def clean_up_rollback(work: Work, move: Move) -> Move:
    """Remove the target's copy after a rollback."""
    async with owner_session(work.source) as source, owner_session(work.target) as target:
        token = work.token(move, TARGET)
        known = await token.take_over(target)
        if known is not None and known.state == "fenced":
            await token.change(target, "fenced", "dropping")
        if known is not None:
            await _drop(work, move, target, token)
        await work.token(move, SOURCE).forget(source)
    return await enter(work, move, Phase.ROLLED_BACK)


async def _compare(source: Connection, target: Connection, move: Move, known: BucketMove) -> int:
    """Everything that the source had is on the target: number of readings. Different otherwise: nothing is dropped."""
    if known.fenced_at is None:
        message = "the source was never fenced"
        raise Replaced(message)
    return await fingerprints.compare_history(source, target, move.bucket, BEGINNING, known.fenced_at)


async def compare_kept(source: ShardRecord, target: ShardRecord, move: Move) -> int:
    """Number of readings of a copy that is kept after its cutover, all of which the new owner has; or Different."""
    async with owner_session(source) as at_source, owner_session(target) as at_target:
        known = await look(at_source, move, SOURCE)
        if known is None:
            message = "the copy is not kept any more"
            raise Replaced(message)
        return await _compare(at_source, at_target, move, known)


async def _drop(work: Work, move: Move, connection: Connection, token: Token) -> None:
    """Take a bucket's tables out of the roots, without stopping readers or writers, and drop them.

    A detach that was interrupted is finished first: PostgreSQL allows one at a time for each root.
    """
    await finish_detaches(connection)
    await connection.execute(_DISOWN, move.bucket)
    for record in await connection.fetch(_ATTACHED, move.bucket):
        if record["attached"]:
            await work.step(move, "before detach")
            await connection.execute(
                f"ALTER TABLE {quote_identifier(record['root'])} "
                f"DETACH PARTITION {quote_identifier(record['name'])} CONCURRENTLY"
            )
            await work.step(move, "after detach")
    async with connection.transaction():
        for kind in KINDS:
            for root in (kind.history, kind.status):
                await connection.execute(f"DROP TABLE IF EXISTS {quote_identifier(bucket_table(root, move.bucket))}")
        await token.forget(connection)
    await work.step(move, "after drop")


async def finish_detaches(connection: Connection) -> None:
    """Finish what an interrupted DETACH CONCURRENTLY left."""
    for record in await connection.fetch(_PENDING):
        await connection.execute(f"ALTER TABLE {record['root']} DETACH PARTITION {record['name']} FINALIZE")
