"""The fence, in either direction, and the cutover. Here the order of statements is safety; each line says why."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import asyncpg

from shards.errors import MoveError, ShardUnavailable
from shards.moves import carrier, rebalances
from shards.moves.passes import Passes, forward
from shards.moves.phases import Move, Phase, Recorded, Role, Step
from shards.moves.record import Held, Replaced
from shards.moves.work import Sides, Work, enter
from shards.postgres.sessions import FENCING
from shards.postgres.transactions import transaction

FENCE_MAX_S: Final = 2.0
CLOSE_GOOD_S: Final = 0.3
CLOSE_PASSES_MAX: Final = 20
END: Final = datetime(9998, 1, 1, tzinfo=UTC)

_FENCE: Final = "SELECT fence_tables($1::bigint)"
_OPEN: Final = "SELECT open_tables($1::bigint)"
_ADOPT: Final = "SELECT adopt_tables($1::smallint, $2::bigint, $3::date)"
_FIRST_MONTH: Final = "SELECT first_month FROM owned_bucket WHERE bucket = $1"
_CLOCK_BEHIND: Final = "SELECT extract(epoch FROM $1::timestamptz - clock_timestamp())::float8"


class ClockBehind(ShardUnavailable):
    """The target's clock has not passed the fence yet: the bucket waits until it has."""


class CannotAttach(MoveError):
    """The target cannot take the bucket, for good: the source opens again, and the move is given up."""


async def fence(work: Work, move: Move) -> Move:
    """Close the bucket on the source, carry and compare the rest, hand the bucket over. Writers wait for this.

    TimeoutError when it would take them too long: then nothing has happened, and it is tried again.
    """
    async with work.both(move) as sides:
        await carrier.prepare_delta(sides[Role.TARGET])
        # Outside the fence, without its limits: whatever has come since the last pass, or after a change of runner.
        await forward(sides).catch_up(CLOSE_GOOD_S, CLOSE_PASSES_MAX)
        rows = await forward(sides).compare()
    async with work.both(move, FENCING) as sides:
        await carrier.prepare_delta(sides[Role.TARGET])
        await forward(sides).once()
        started = time.monotonic()
        new, tail = await close(forward(sides), FENCE_MAX_S)
        await work.at(move, Step.AFTER_FENCE)
        move = await cut_over(sides)
    pause_ms = (time.monotonic() - started) * 1000
    work.measure("pause_s", pause_ms / 1000)
    work.measure("rows", new)
    done = {"delta_rows": new, "tail_verified": rows + tail}
    await rebalances.progress(work.catalog, move.move_id, work.runner, work.deadline(), pause_ms=pause_ms, **done)
    return move


async def close(passes: Passes, max_s: float) -> tuple[int, int]:
    """Fence the giver for good; returns how many readings came last, and how many were compared.

    When anything fails inside, the giver's transaction rolls back: its record, its triggers, as if nothing had been.
    """
    sides, giver, taker = passes.sides, passes.giver, passes.taker
    since = await passes.mark()
    compared = (await sides.token(giver).read(sides[giver])).verified or since
    direction = await passes.direction()
    async with asyncio.timeout(max_s), transaction(direction.giver):
        # First the decision: the row lock makes an abort that is asked for at the same time lose, or win before.
        await sides.token(giver).change(direction.giver, passes.known, Recorded.FENCED)
        # Then the triggers. Creating them waits for every writer in flight, so that after this line no transaction that
        # began earlier can still commit a reading of this bucket.
        await direction.giver.execute(_FENCE, sides.move.move_id)
        # Only now the time: each reading of the bucket was ingested before it. Taken earlier, a writer that the line
        # above waited for would be later than its fence.
        await sides.token(giver).set_fenced(direction.giver)
        await sides.work.at(sides.move, Step.INSIDE_FENCE)
        async with transaction(direction.taker):
            # The taker's row is held, so that a successor cannot begin before this has committed or failed.
            await sides.token(taker).hold(direction.taker, passes.taker_state)
            new = await passes.last(direction, since)
        # Compared before the giver's COMMIT: a difference still rolls the fence back.
        tail = await direction.compare_history((min(compared, since), END))
        await direction.compare_changed_status(since)
    # The COMMIT above is the point of no return.
    return new, tail


async def cut_over(sides: Sides) -> Move:
    """The target owns the bucket: first by its own word, then by the map's. Only forward from here."""
    work, move = sides.work, sides.move
    source, target = sides[Role.SOURCE], sides[Role.TARGET]
    known = await sides.token(Role.SOURCE).read(source)
    if sides.records[Role.TARGET].state is Recorded.ABORTED:
        raise CannotAttach(
            f"{move.target} could not attach bucket {move.bucket}"
        )  # an earlier runner was on its way back
    if known.state is not Recorded.FENCED or known.fenced_at is None:
        # A promoted replica or a restored backup without the fence's commit: it may have taken writes since.
        raise Held(f"{move.source} should be fenced for move {move.move_id}, and is {known.state}")
    if move.phase is not Phase.CUTOVER:
        move = await enter(work, move, Phase.CUTOVER)
    # Before the target takes a first write: its clock has passed the fence, so that `ingested_at` never goes back.
    await _check_clock(sides, known.fenced_at)
    month = await source.fetchval(_FIRST_MONTH, move.bucket)
    if month is None:
        raise Held(f"{move.source} does not own bucket {move.bucket} any more, though it is fenced there")
    await work.at(move, Step.BEFORE_ADOPT)
    async with transaction(target):
        # After the fence's COMMIT, never before: attached tables take writes. In one transaction with the record, so
        # that a runner that was replaced attaches nothing; repeated by the next runner, it changes nothing.
        state = (await sides.token(Role.TARGET).read(target)).state
        if state is Recorded.COPYING:
            await sides.token(Role.TARGET).change(target, Recorded.COPYING, Recorded.ATTACHED)
        elif state is not Recorded.ATTACHED:
            raise Held(f"{move.target} should hold the copy of move {move.move_id}, and is {state}")
        try:
            await target.execute(_ADOPT, move.bucket, move.move_id, month)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.SyntaxOrAccessError) as error:
            # Something made by hand is in the way, a DEFAULT partition with a row, say: waiting does not cure it.
            raise CannotAttach(f"{move.target} cannot attach bucket {move.bucket}: {error.args[0]}") from None
    await work.at(move, Step.AFTER_ADOPT)
    if (await sides.token(Role.SOURCE).read(source)).state is not Recorded.FENCED:
        # Somebody opened it while the target attached: both took writes, so neither may be taken for the whole.
        raise Held(f"{move.source} was opened by hand while {move.target} attached bucket {move.bucket}")
    # The map last: a router that reads it finds a target that already takes writes.
    moved = await rebalances.hand_over(
        work.catalog, move, (move.source, move.target), Phase.CLEANUP, work.runner, work.deadline()
    )
    if moved is None:
        raise Replaced(f"the catalog has move {move.move_id} elsewhere, or another runner leads")
    await work.at(move, Step.AFTER_CUTOVER)
    return moved


async def _check_clock(sides: Sides, fenced_at: datetime) -> None:
    """ClockBehind (tried again, however long it takes) while the target's clock is behind the fence."""
    for _ in range(2):
        behind = float(await sides[Role.TARGET].fetchval(_CLOCK_BEHIND, fenced_at))
        if behind <= 0:
            return
        if behind <= 1:
            await asyncio.sleep(behind)
    raise ClockBehind(
        sides.move.target,
        f"its clock is {behind:.1f} s behind the fence of bucket {sides.move.bucket}, which waits for it: set the "
        f"clock, or give the bucket back with `voltroute rebalance resolve {sides.move.move_id} --keep source`",
    )


async def resume_cutover(work: Work, move: Move) -> Move:
    """The cutover of a move whose runner was lost between fence and map."""
    async with work.both(move) as sides:
        return await cut_over(sides)


async def is_fenced(work: Work, move: Move) -> bool:
    """Whether the source has decided: then there is only one way."""
    async with work.both(move) as sides:
        return sides.records[Role.SOURCE].state is Recorded.FENCED


async def open_again(work: Work, move: Move) -> Move:
    """The way back from a fence whose target never attached anything: the source takes writes again."""
    async with work.both(move) as sides:
        target, source = sides[Role.TARGET], sides[Role.SOURCE]
        if sides.records[Role.TARGET].state is not Recorded.ABORTED:
            # First the target: from this COMMIT on nobody can let it attach, so that never two take writes.
            await sides.token(Role.TARGET).change(target, Recorded.COPYING, Recorded.ABORTED)
        if sides.records[Role.SOURCE].state is not Recorded.RETURNED:
            async with transaction(source):
                await sides.token(Role.SOURCE).change(source, Recorded.FENCED, Recorded.RETURNED)
                await source.execute(_OPEN, move.move_id)
    return await enter(work, replace(move, phase=Phase.CUTOVER), Phase.ABORT)
