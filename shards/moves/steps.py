"""The phases of a move before its fence. Each can be repeated: whoever resumes looks at the shards."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

from shards.errors import Cause, ShardError, ShardUnavailable
from shards.moves import carrier, fingerprints, horizons, preflight, rebalances
from shards.moves.carrier import Direction
from shards.moves.fingerprints import Different
from shards.moves.passes import Passes, forward
from shards.moves.phases import Move, Phase, Recorded, Role, Step
from shards.moves.record import Held
from shards.moves.work import Work, enter
from shards.postgres.connections import Connection
from shards.postgres.dsn import login_of
from shards.postgres.sql import LIFECYCLE_XACT
from shards.postgres.transactions import transaction
from shards.storage import marks
from shards.storage.roots import StoredKind
from shards.storage.tables import Leaf

CATCHUP_GOOD_S: Final = 0.4  # a pass this short leaves little for the fence
PASSES_MAX: Final = 50
COPIES_AT_ONCE: Final = 2
PROGRESS_S: Final = 0.5
_PREPARE: Final = "SELECT prepare_copy($1::smallint, $2::bigint, $3::text[])"
_TIERED: Final = "SELECT DISTINCT kind FROM bucket_table WHERE bucket = $1 AND role = 'packed' AND NOT detaching"
_LEFT: Final = "SELECT count(*) FROM packed_leaf WHERE bucket = $1"
_CLAIM_TABLES: Final = "SELECT claim_tables($1::smallint, $2::bigint)"
_UNDROPPED: Final = "bucket {} has {} packed leaves that are not dropped yet: see `voltroute lifecycle status`"


async def begin(work: Work, move: Move) -> Move:
    """Check that the move can be made; then record it on both shards and make the target's empty tables."""
    await preflight.check(work.source, work.target, move)
    async with work.session(Role.SOURCE) as source, work.session(Role.TARGET) as target:
        mark, now = await marks.low_water(source, login_of(work.source.reader_dsn))
        work.clocks[Role.SOURCE].is_trusted(now)  # from here on the source's clock is watched
        await work.at(move, Step.BEFORE_CLAIM)
        async with transaction(source):
            # From here to the claim's commit no step of the lifecycle is under way, and after it none begins.
            await source.execute(LIFECYCLE_XACT, move.bucket)
            if left := await source.fetchval(_LEFT, move.bucket):
                raise ShardUnavailable(move.source, _UNDROPPED.format(move.bucket, left), cause=Cause.BUSY)
            known = await work.token(move, Role.SOURCE).claim(source, mark)
            if known.low_water == mark:  # ours, just now: nothing was carried by a mark of somebody else's
                work.clocks[Role.SOURCE].trust()
            await source.execute(_CLAIM_TABLES, move.bucket, move.move_id)
            if not await carrier.has_all(source, await work.token(move, Role.SOURCE).tables(source)):
                raise Held(f"{move.source} does not have all tables of bucket {move.bucket}: see `voltroute check`")
        await work.at(move, Step.AFTER_CLAIM)
        await _prepare(work, move, source, target)
    return await enter(work, move, Phase.BACKFILL)


async def _prepare(work: Work, move: Move, source: Connection, target: Connection) -> None:
    token = work.token(move, Role.TARGET)
    if await token.take_over(target) is not None:
        return
    await work.at(move, Step.BEFORE_PREPARE)
    async with transaction(source), transaction(target):
        # No abort can slip in between, and leave these tables behind: it must change the row that is held here.
        await work.token(move, Role.SOURCE).hold(source, Recorded.COPYING)
        await token.claim(target)
        tiered = [record["kind"] for record in await source.fetch(_TIERED, move.bucket)]
        await target.execute(_PREPARE, move.bucket, move.move_id, tiered)
        await horizons.carry_horizons(move.bucket, source, target)
    await work.at(move, Step.AFTER_PREPARE)


async def backfill(work: Work, move: Move) -> Move:
    """Copy every table that is not copied yet, some at a time."""
    progress = _Progress(work, move)
    async with work.both(move) as sides:
        direction = await forward(sides).direction()
        copied = await sides.token(Role.TARGET).copied(direction.taker)
        async with transaction(direction.taker):
            await sides.token(Role.TARGET).hold(direction.taker, Recorded.COPYING)
            wanted = [*await carrier.make_leaves(direction), *await carrier.late_of(direction)]
        theirs, ours = direction.theirs, direction.ours
    await progress.expect(sum(leaf.rows for leaf in wanted), sum(leaf.size_bytes for leaf in wanted))
    # What was empty when its size was read holds nothing from before the mark: the delta brings what came since.
    full = [leaf for leaf in wanted if leaf.size_bytes and ours[leaf.kind.history] + leaf.suffix not in copied]
    todo: list[Leaf | StoredKind] = [*sorted(full, key=lambda leaf: leaf.size_bytes)]
    flat = (*direction.kinds, *direction.rollups)
    todo += [kind for kind in flat if carrier.statuses_of(kind, move.bucket) not in copied]
    async with asyncio.TaskGroup() as group:
        for _ in range(min(COPIES_AT_ONCE, len(todo))):
            group.create_task(_copy(work, move, todo, (theirs, ours), progress))
    await progress.flush()
    return await enter(work, move, Phase.CATCHUP)


async def _copy(
    work: Work,
    move: Move,
    todo: list[Leaf | StoredKind],
    tables: tuple[fingerprints.Tables, fingerprints.Tables],
    progress: "_Progress",
) -> None:
    async with work.session(Role.SOURCE) as source, work.session(Role.TARGET) as target:
        direction, token = await Direction.between(move.bucket, source, target, tables), work.token(move, Role.TARGET)
        while todo:
            each = todo.pop()
            await work.at(move, Step.BEFORE_LEAF)
            if isinstance(each, Leaf):
                rows = await carrier.copy_leaf(direction, direction.known(each), token, progress.passed)
                work.measure("rows", rows)
                progress.rows += rows
            else:
                await carrier.copy_status(direction, direction.kind(each.name), token, progress.passed)
            await work.at(move, Step.AFTER_LEAF)


async def catch_up(work: Work, move: Move) -> Move:
    """Passes over what was ingested meanwhile, until one is short."""
    async with work.both(move) as sides:
        await carrier.prepare_delta(sides[Role.TARGET])
        passes = forward(sides)
        for _ in range(PASSES_MAX):
            started = time.monotonic()
            new = await passes.once()
            seconds = time.monotonic() - started
            await _tell(passes, new)
            if seconds < CATCHUP_GOOD_S:
                break
    return await enter(work, move, Phase.VERIFY)


async def _tell(passes: Passes, new: int) -> None:
    work = passes.sides.work
    lag_s = max((datetime.now(UTC) - await passes.mark()).total_seconds(), 0.0)
    await rebalances.progress(
        work.catalog, passes.sides.move.move_id, work.runner, work.deadline(), delta_rows=new, lag_s=lag_s, passes=1
    )


async def verify(work: Work, move: Move) -> Move:
    """Compare all rows up to the mark on both sides; then catch up with what came during that."""
    async with work.both(move) as sides:
        passes = forward(sides)
        direction = await passes.direction()
        await carrier.settle(direction)
        await carrier.prepare_delta(direction.taker)
        await passes.once()
        rows = await passes.compare()
        if days := await direction.differing_days():
            raise Different(f"verification failed: {len(days)} packed days differ")
        await direction.compare_rollups()
        await rebalances.progress(work.catalog, move.move_id, work.runner, work.deadline(), rows_verified=rows)
        await passes.once()
    return await enter(work, move, Phase.FENCE)


class _Progress:
    """Counts rows and bytes of a backfill, and tells the catalog now and then."""

    def __init__(self, work: Work, move: Move) -> None:
        self._work = work
        self._move = move
        self._told = self._started = time.monotonic()
        self._bytes = 0
        self.rows = 0

    async def expect(self, rows: int, size: int) -> None:
        """What there is to do, by PostgreSQL's estimate."""
        work = self._work
        await rebalances.progress(
            work.catalog, self._move.move_id, work.runner, work.deadline(), rows_total=rows, bytes_total=size
        )

    async def passed(self, size: int) -> None:
        """So many bytes went through."""
        self._bytes += size
        self._work.measure("bytes", size)
        await self._work.throttle.passed(size)
        if time.monotonic() - self._told > PROGRESS_S:
            self._told = time.monotonic()
            try:
                await self._tell(0.0)
            except ShardError:  # the catalog is away: the copy goes on
                return

    async def flush(self) -> None:
        """The last word on this backfill."""
        await self._tell(time.monotonic() - self._started)

    async def _tell(self, seconds: float) -> None:
        await rebalances.progress(
            self._work.catalog,
            self._move.move_id,
            self._work.runner,
            self._work.deadline(),
            rows_done=self.rows,
            bytes_done=self._bytes,
            copy_s=seconds,
        )
