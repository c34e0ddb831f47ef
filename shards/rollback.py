"""Undoing a cutover while the source's copy is still kept: the same fence, the other way round."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Final

from shards import carrier, fingerprints, rebalances
from shards.bucket_moves import SOURCE, TARGET, BucketMove, Replaced
from shards.mover import END, Work, enter
from shards.moves import Move, Phase
from shards.pools import Connection
from shards.sessions import FENCING, owner_session

OVERLAP: Final = timedelta(seconds=5)
TOO_LATE: Final = "too late for a rollback: the source's copy is being removed"

_FENCE: Final = "SELECT fence_bucket($1::smallint)"
_UNFENCE: Final = "SELECT unfence_bucket($1::smallint)"


async def roll_back(work: Work, move: Move) -> Move:
    """Fence the target, carry back what it took since the cutover, open the source, and give it the bucket again."""
    async with owner_session(work.source, FENCING) as source, owner_session(work.target, FENCING) as target:
        kept = await work.token(move, SOURCE).take_over(source)
        ours = await work.token(move, TARGET).take_over(target)
        if ours is None or kept is None or kept.state not in {"fenced", "returned"}:
            moved = await enter(work, move, Phase.CLEANUP)
            await rebalances.give_reason(work.catalog, move.move_id, TOO_LATE, work.deadline())
            return moved
        started = time.monotonic()
        if ours.state == "attached":
            await carrier.prepare_delta(source)
            await _fence(work, move, source, target, kept)
        if kept.state == "fenced":
            await work.step(move, "before return")
            async with source.transaction():
                await work.token(move, SOURCE).change(source, "fenced", "returned")
                await source.execute(_UNFENCE, move.bucket)
            await work.step(move, "after return")
        phase = Phase.ROLLBACK_CLEANUP
        await rebalances.hand_over(work.catalog, move, move.target, move.source, phase, work.deadline())
    pause_ms = (time.monotonic() - started) * 1000
    await rebalances.progress(work.catalog, move.move_id, work.deadline(), pause_ms=pause_ms)
    return replace(move, phase=phase)


async def _fence(work: Work, move: Move, source: Connection, target: Connection, kept: BucketMove) -> None:
    if kept.fenced_at is None:
        message = "the source was never fenced"
        raise Replaced(message)
    since = kept.fenced_at - OVERLAP
    async with target.transaction():
        await work.token(move, TARGET).change(target, "attached", "fenced")
        await target.execute(_FENCE, move.bucket)
        async with source.transaction():
            await work.token(move, SOURCE).hold(source)
            await carrier.make_leaves(source, move.bucket, await carrier.leaves(target, move.bucket))
            await carrier.carry_delta(target, source, move.bucket, since)
            await carrier.carry_status(target, source, move.bucket)
        await fingerprints.compare_history(target, source, move.bucket, since, END)
        await fingerprints.compare_status(target, source, move.bucket)
    await work.step(move, "after reverse fence")
