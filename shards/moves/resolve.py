"""Carrying out what an operator decided about a held move: one side keeps the bucket, with every reading of both.

First the other side takes no more writes, then what only it has is carried over by key, then the keeper owns the
bucket, then the map says so. From there the ordinary cleanup continues, which compares once more before any drop.
"""

from typing import Final

from shards.moves import carrier, decisions, horizons, rebalances
from shards.moves.carrier import Direction
from shards.moves.cleanup import finish_detaches
from shards.moves.differences import carry_difference, difference
from shards.moves.fingerprints import Different, Tables
from shards.moves.phases import Move, Phase, Recorded, Role
from shards.moves.record import Held, Replaced, has_bucket
from shards.moves.work import Work
from shards.postgres.connections import Connection
from shards.postgres.sql import LIFECYCLE_XACT
from shards.postgres.transactions import transaction

_CLAIM_TABLES: Final = "SELECT claim_tables($1::smallint, $2::bigint)"
_FENCE: Final = "SELECT fence_tables($1::bigint)"
_OPEN: Final = "SELECT open_tables($1::bigint)"
_UNFENCE: Final = "SELECT unfence_tables($1::bigint)"
_ADOPT: Final = "SELECT adopt_tables($1::smallint, $2::bigint, $3::date)"
_FIRST_MONTH: Final = "SELECT first_month FROM owned_bucket WHERE bucket = $1"


async def resolve(work: Work, move: Move) -> Move:
    """The move as it is then. Different when readings differ under one key, and that was not accepted."""
    keeper, other = _roles(move)
    if move.keeper_alone:
        return await _alone(work, move, keeper)
    async with work.session(keeper) as kept, work.session(other) as left:
        # First whether the keeper has anything: the other side is not shut for a side that could not take over.
        ours = await _tables(work, move, kept, keeper)
        if ours is None:
            raise Held(f"{move.shard(keeper)} has no tables of bucket {move.bucket}: keep the {other}")
        theirs = await _tables(work, move, left, other)
        if theirs is None and await has_bucket(left, move):
            raise Held(f"{move.shard(other)} has bucket {move.bucket}, and not all its tables: see `voltroute check`")
        if theirs is None:
            await work.token(move, other).forget(left)
            return await _end(work, move, kept, keeper)
        await _shut(work, move, left, other)
        await _merge(work, move, await Direction.between(move.bucket, left, kept, (theirs, ours)))
        await _own(work, move, kept, keeper)
    phase = Phase.CLEANUP if keeper is Role.TARGET else Phase.ROLLBACK_CLEANUP
    return await _publish(work, move, move.shard(keeper), phase)


async def _alone(work: Work, move: Move, keeper: Role) -> Move:
    """The other shard is gone for good. A target that never had tables cannot keep anything: the move just ends."""
    async with work.session(keeper) as kept:
        if await _tables(work, move, kept, keeper) is None:
            await work.token(move, keeper).forget(kept)
            return await _publish(work, move, None, Phase.ABORTED)
        return await _end(work, move, kept, keeper)


async def _end(work: Work, move: Move, connection: Connection, keeper: Role) -> Move:
    """The keeper owns the bucket and there is nothing on the other side to be cleaned up."""
    await _own(work, move, connection, keeper)
    async with transaction(connection):
        await connection.execute(_UNFENCE, move.move_id)
        # Before the move ends: afterwards nobody would come back for the record.
        await work.token(move, keeper).forget(connection)
    return await _publish(work, move, move.shard(keeper), Phase.DONE if keeper is Role.TARGET else Phase.ROLLED_BACK)


def _roles(move: Move) -> tuple[Role, Role]:
    if move.keeper is None:
        raise Held("nobody decided who keeps the bucket")
    return move.keeper, move.keeper.other


async def _tables(work: Work, move: Move, connection: Connection, role: Role) -> Tables | None:
    """The side's tables of the bucket: those of the move, or, when their record is lost, those attached. None: none."""
    token = work.token(move, role)
    await finish_detaches(connection)
    async with transaction(connection):
        await connection.execute(LIFECYCLE_XACT, move.bucket)  # as a move's beginning
        if await token.take_over(connection) is None:
            await token.claim(connection)
        if not await connection.fetchval(_CLAIM_TABLES, move.bucket, move.move_id):
            return None
    tables = await token.tables(connection)
    return tables if await carrier.has_all(connection, tables) else None


async def _shut(work: Work, move: Move, connection: Connection, role: Role) -> None:
    """No more writes on the side that gives the bucket up, whatever its record says."""
    async with transaction(connection):
        await work.token(move, role).force(connection, Recorded.FENCED)
        await connection.execute(_FENCE, move.move_id)
        await work.token(move, role).set_fenced(connection)


async def _merge(work: Work, move: Move, direction: Direction) -> None:
    await carrier.prepare_delta(direction.taker)
    token = work.token(move, _roles(move)[0])
    carried = await carry_difference(direction, lambda: token.hold(direction.taker), work.throttle.passed)
    await rebalances.healed(work.catalog, move.move_id, work.runner, carried, work.deadline())
    found = await difference(direction, work.throttle.passed)
    if found.missing or found.statuses_behind or (found.differ and not move.keeper_forced):
        keeper, other = _roles(move)
        raise Different(
            f"{found.words(move.shard(other), move.shard(keeper))}: nothing was dropped; --accept-differences keeps "
            f"those of {move.shard(keeper)}"
        )


async def _own(work: Work, move: Move, connection: Connection, keeper: Role) -> None:
    """The keeper takes writes: attached, without a fence, by its own word."""
    month = await connection.fetchval(_FIRST_MONTH, move.bucket)
    if month is None:
        month = (await work.catalog.info(work.deadline())).first_month
    state = Recorded.ATTACHED if keeper is Role.TARGET else Recorded.RETURNED
    async with transaction(connection):
        await work.token(move, keeper).force(connection, state)
        await connection.execute(_OPEN, move.move_id)
        await connection.execute(_ADOPT, move.bucket, move.move_id, month)
        await horizons.forget_rollups(move.bucket, connection)  # whatever of them was carried, and when


async def _publish(work: Work, move: Move, owner: str | None, phase: Phase) -> Move:
    moved = await decisions.resolved(work.catalog, move, (owner, phase), work.runner, work.deadline())
    if moved is None:
        raise Replaced(f"the catalog has move {move.move_id} elsewhere, or another runner leads")
    return moved
