"""Removing what a move leaves: the source's frozen copy, an aborted target, a target that was rolled back.

Nothing is dropped before the side that stays was found to hold all of it; what it lacks is carried there first.
"""

from typing import Final

from shards.moves import carrier, horizons, rebalances
from shards.moves.carrier import Direction
from shards.moves.differences import Difference, difference
from shards.moves.fingerprints import Different
from shards.moves.phases import Move, Phase, Recorded, Role, Step
from shards.moves.record import BucketMove, Held, Replaced, Token, has_bucket, look
from shards.moves.work import Work, enter
from shards.postgres.connections import Connection
from shards.postgres.sessions import owner_session
from shards.postgres.sql import quote_identifier
from shards.postgres.transactions import transaction
from shards.shard import ShardRecord

_TABLES: Final = """
SELECT t.root, t.name, coalesce(i.inhdetachpending, false) AS pending FROM move_table AS t
JOIN pg_inherits AS i ON i.inhrelid = t.table_oid
WHERE t.move_id = $1 ORDER BY t.root
"""
_PENDING: Final = """
SELECT i.inhparent::regclass::text AS root, i.inhrelid::regclass::text AS name
FROM every_root AS r JOIN pg_inherits AS i ON i.inhparent = to_regclass('public.' || r.root)
WHERE i.inhdetachpending
"""
_DISOWN: Final = "DELETE FROM owned_bucket WHERE bucket = $1"
_DROP: Final = "SELECT drop_bucket_copy($1::smallint, $2::bigint)"
_OWNS: Final = """
SELECT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1)
    AND (SELECT count(*) FROM bucket_table WHERE bucket = $1 AND role = 'history' AND NOT detaching)
        = (SELECT count(*) FROM root_table)
"""
_UNFENCE: Final = "SELECT unfence_tables($1::bigint)"


_GIVEN_UP: Final = frozenset({Recorded.COPYING, Recorded.ABORTED, Recorded.RETURNED})


async def abort(work: Work, move: Move) -> Move:
    """Give a move up, unless the source is fenced: then it goes on. Dropping everything on the target loses nothing."""
    async with work.session(Role.SOURCE) as source:
        token = work.token(move, Role.SOURCE)
        known = await token.take_over(source)
        if known is not None and known.state is Recorded.FENCED:
            return await enter(work, move, Phase.CUTOVER)
        if known is not None and known.state not in _GIVEN_UP:
            raise Held(f"giving up move {move.move_id} finds {move.source} {known.state}")
        if known is not None and known.state is Recorded.COPYING:
            await work.at(move, Step.BEFORE_GIVE_UP)
            await token.change(source, Recorded.COPYING, Recorded.ABORTED)
            await work.at(move, Step.AFTER_GIVE_UP)
        async with work.session(Role.TARGET) as target:
            ours = await work.token(move, Role.TARGET).take_over(target)
            if ours is not None:  # else the tables there are not ours
                if ours.state not in {Recorded.COPYING, Recorded.ABORTED}:
                    raise Held(f"giving up move {move.move_id} finds {move.target} {ours.state}")
                await _drop(work, move, target, Role.TARGET, ours.state)
        await _leave(work, move, source, Role.SOURCE)
        await work.at(move, Step.AFTER_FORGET)
    return await enter(work, move, Phase.ABORTED)


async def clean_up(work: Work, move: Move) -> Move:
    """After a cutover: the source's frozen copy goes, the target keeps the bucket."""
    return await _end(work, move, (Role.TARGET, Recorded.ATTACHED), Phase.DONE)


async def clean_up_rollback(work: Work, move: Move) -> Move:
    """After a rollback: the target's copy goes, the source, which owns the bucket again, keeps it."""
    return await _end(work, move, (Role.SOURCE, Recorded.RETURNED), Phase.ROLLED_BACK)


async def _end(work: Work, move: Move, keeps: tuple[Role, Recorded], phase: Phase) -> Move:
    """Compare the copy with the side that keeps the bucket once more, then remove it."""
    keeper, copy = keeps[0], keeps[0].other
    async with work.session(copy) as goes, work.session(keeper) as stays:
        known = await work.token(move, copy).take_over(goes)
        ours = await work.token(move, keeper).take_over(stays)
        await _check_ended(move, goes, known, copy)
        if known is not None and known.state is Recorded.FENCED:
            await _check_keeper(move, stays, ours, keeps)
            await _make_superset(work, move, (goes, stays), keeper)
        if known is not None:
            await _remove(work, move, goes, copy, known)
        await _leave(work, move, stays, keeper)
        await work.at(move, Step.AFTER_FORGET)
    return await enter(work, move, phase)


async def _leave(work: Work, move: Move, connection: Connection, role: Role) -> None:
    """The side that stays has nothing of the move any more: no fence that was opened, no record."""
    token = work.token(move, role)
    async with transaction(connection):
        if await token.take_over(connection) is not None:
            await connection.execute(_UNFENCE, move.move_id)
            await token.forget(connection)


async def _check_ended(move: Move, connection: Connection, known: BucketMove | None, role: Role) -> None:
    """Held unless the copy's record says that it is kept or being dropped; without one nothing of it may be there."""
    if known is None:
        if await has_bucket(connection, move):
            raise Held(f"{move.shard(role)} has bucket {move.bucket}, but no record of move {move.move_id}")
    elif known.state not in {Recorded.FENCED, Recorded.DROPPING}:
        raise Held(f"the old copy on {move.shard(role)} should be fenced, and is {known.state}")


async def _check_keeper(
    move: Move, connection: Connection, known: BucketMove | None, wanted: tuple[Role, Recorded]
) -> None:
    """Held unless the side that stays says so itself: its record, its ownership, its tables."""
    role, state = wanted
    if known is None or known.state is not state:
        raise Held(f"{move.shard(role)} should be {state} for move {move.move_id}, and is {known and known.state}")
    if not await connection.fetchval(_OWNS, move.bucket):
        raise Held(f"{move.shard(role)} should own bucket {move.bucket}, and does not")


async def _make_superset(work: Work, move: Move, sides: tuple[Connection, Connection], keeper: Role) -> None:
    """Carry what only the old copy has to the keeper, by key. Different when rows differ under one key."""
    giver_role = keeper.other
    tables = await work.token(move, giver_role).tables(sides[0]), await work.token(move, keeper).tables(sides[1])
    direction = await Direction.between(move.bucket, *sides, tables)
    found = await difference(direction, work.throttle.passed)
    if found.missing or found.statuses_behind:
        await carrier.prepare_delta(direction.taker)
        async with transaction(direction.taker):
            await work.token(move, keeper).hold(direction.taker)
            await carrier.make_leaves(direction)
            healed = await carrier.carry_hours(direction, found.hours, work.throttle.passed)
            await carrier.carry_days(direction, found.days, work.throttle.passed)
            await carrier.carry_all_status(direction, work.throttle.passed)
            await horizons.forget_rollups(move.bucket, direction.taker)
        await rebalances.healed(work.catalog, move.move_id, work.runner, healed, work.deadline())
        found = await difference(direction, work.throttle.passed)
    # What an operator accepted is that values differ, never that something is missing.
    if found.missing or found.statuses_behind or (found.differ and not move.keeper_forced):
        raise Different(f"verification failed: {found.words(move.shard(giver_role), move.shard(keeper))}")


async def compare_kept(source: ShardRecord, target: ShardRecord, move: Move) -> Difference:
    """The copy that is kept after a cutover beside its new owner, as they are now. Held when there is none."""
    async with owner_session(source) as at_source, owner_session(target) as at_target:
        if await look(at_source, move, Role.SOURCE) is None:
            raise Held("the copy is not kept any more")
        theirs = await Token(move, Role.SOURCE, 0).tables(at_source)
        ours = await Token(move, Role.TARGET, 0).tables(at_target)
        return await difference(await Direction.between(move.bucket, at_source, at_target, (theirs, ours)))


async def _remove(work: Work, move: Move, connection: Connection, role: Role, known: BucketMove) -> None:
    token = work.token(move, role)
    if known.state is Recorded.FENCED:
        async with transaction(connection):
            # One transaction: who is replaced between the two lines has done neither.
            await token.change(connection, Recorded.FENCED, Recorded.DROPPING)
            await connection.execute(_DISOWN, move.bucket)
        await work.at(move, Step.AFTER_DROPPING)
    await _drop(work, move, connection, role, Recorded.DROPPING)


async def _drop(work: Work, move: Move, connection: Connection, role: Role, state: Recorded) -> None:
    """Take a move's tables out of the roots, without stopping readers or writers, and drop them.

    A detach that was interrupted is finished first: PostgreSQL allows one at a time for each root.
    """
    token = work.token(move, role)
    await finish_detaches(connection)
    for record in await connection.fetch(_TABLES, move.move_id):
        await work.at(move, Step.BEFORE_DETACH)
        # DETACH CONCURRENTLY takes no transaction, so the right is checked right before. Who is paused in between and
        # wakes later names a table that no later move has: names carry the move's number.
        if (await token.read(connection)).state is not state:
            raise Replaced(f"move {move.move_id} is not {state} on {move.shard(role)} any more")
        await connection.execute(
            f"ALTER TABLE {quote_identifier(record['root'])} "
            f"DETACH PARTITION {quote_identifier(record['name'])} CONCURRENTLY"
        )
        await work.at(move, Step.AFTER_DETACH)
    async with transaction(connection):
        await token.hold(connection, state)
        await connection.execute(_DROP, move.bucket, move.move_id)
        await token.forget(connection)
    await work.at(move, Step.AFTER_DROP)


async def finish_detaches(connection: Connection) -> None:
    """Finish what an interrupted DETACH CONCURRENTLY left."""
    for record in await connection.fetch(_PENDING):
        await connection.execute(f"ALTER TABLE {record['root']} DETACH PARTITION {record['name']} FINALIZE")
