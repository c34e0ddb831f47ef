"""Undoing a cutover while the source's copy is still kept: the same passes and the same fence, the other way round."""

import time
from typing import Final

from shards.moves import carrier, horizons, rebalances
from shards.moves.fence import CLOSE_GOOD_S, CLOSE_PASSES_MAX, FENCE_MAX_S, close
from shards.moves.passes import backward
from shards.moves.phases import Move, Phase, Recorded, Role, Step
from shards.moves.record import Held, Replaced, has_bucket
from shards.moves.work import Sides, Work, enter
from shards.postgres.sessions import FENCING
from shards.postgres.transactions import transaction

TOO_LATE: Final = "too late for a rollback: the source's copy is being removed"
_OPEN: Final = "SELECT open_tables($1::bigint)"


async def roll_back(work: Work, move: Move) -> Move:
    """Catch the kept copy up, fence the target, carry the rest, open the source, and give it the bucket again."""
    async with work.session(Role.SOURCE) as source:
        if await work.token(move, Role.SOURCE).take_over(source) is None and not await has_bucket(source, move):
            return await _too_late(work, move)
    async with work.both(move) as sides:
        kept, ours = sides.records[Role.SOURCE].state, sides.records[Role.TARGET].state
        if kept is Recorded.DROPPING:
            return await _too_late(work, move)
        if (kept, ours) not in _EXPECTED:
            raise Held(f"a rollback of move {move.move_id} finds {move.source} {kept} and {move.target} {ours}")
        if ours is Recorded.ATTACHED:
            # What the target took since the cutover, however much it is, goes back while it goes on taking more.
            await carrier.prepare_delta(sides[Role.SOURCE])
            await backward(sides).catch_up(CLOSE_GOOD_S, CLOSE_PASSES_MAX)
            # Otherwise the fence reads every page that has no summary yet: all that was just carried.
            back = await backward(sides).direction()
            await carrier.settle(back)
    async with work.both(move, FENCING) as sides:
        started = time.monotonic()
        if sides.records[Role.TARGET].state is Recorded.ATTACHED:
            await carrier.prepare_delta(sides[Role.SOURCE])
            await backward(sides).once()
            started = time.monotonic()
            await close(backward(sides), FENCE_MAX_S)
            await work.at(move, Step.AFTER_REVERSE_FENCE)
    # In a session with the usual patience: after the point of no return an autovacuum is waited for, and ends.
    async with work.both(move) as sides:
        moved = await _give_back(sides)
    pause_ms = (time.monotonic() - started) * 1000
    await rebalances.progress(work.catalog, move.move_id, work.runner, work.deadline(), pause_ms=pause_ms)
    return moved


async def _too_late(work: Work, move: Move) -> Move:
    moved = await enter(work, move, Phase.CLEANUP)
    await rebalances.give_reason(work.catalog, move.move_id, work.runner, TOO_LATE, work.deadline())
    return moved


_EXPECTED: Final = {
    (Recorded.FENCED, Recorded.ATTACHED),
    (Recorded.FENCED, Recorded.FENCED),
    (Recorded.RETURNED, Recorded.FENCED),
}


async def _give_back(sides: Sides) -> Move:
    work, move, source = sides.work, sides.move, sides[Role.SOURCE]
    if (await sides.token(Role.SOURCE).read(source)).state is Recorded.FENCED:
        await work.at(move, Step.BEFORE_RETURN)
        async with transaction(source):
            # Only after the target's fence has committed: from this COMMIT on the source takes writes.
            await sides.token(Role.SOURCE).change(source, Recorded.FENCED, Recorded.RETURNED)
            await source.execute(_OPEN, move.move_id)
            await horizons.forget_rollups(move.bucket, source)
        await work.at(move, Step.AFTER_RETURN)
    moved = await rebalances.hand_over(
        work.catalog, move, (move.target, move.source), Phase.ROLLBACK_CLEANUP, work.runner, work.deadline()
    )
    if moved is None:
        raise Replaced(f"the catalog has move {move.move_id} elsewhere, or another runner leads")
    await work.at(moved, Step.AFTER_REVERSE_CUTOVER)
    return moved
