"""One move, step by step. Each step can be repeated: whoever resumes looks at what the source says and goes on."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Final
from urllib.parse import unquote, urlsplit

from shards import carrier, fingerprints, preflight, rebalances
from shards.bucket_moves import SOURCE, TARGET, Replaced, Token, look
from shards.catalog import Catalog, ShardRecord, deadline_in
from shards.errors import ShardError
from shards.moves import Move, Phase
from shards.pools import Connection
from shards.sessions import FENCING, SessionLimits, owner_session

CATALOG_TIMEOUT_S: Final = 5.0
CATCHUP_GOOD_S: Final = 0.4  # a pass this short leaves little for the fence
PASSES_MAX: Final = 50
CLOSE_S: Final = 30.0
FENCE_MAX_S: Final = 2.0
LEAVES_AT_ONCE: Final = 2
PROGRESS_S: Final = 0.5
BEGINNING: Final = datetime(1, 1, 2, tzinfo=UTC)
END: Final = datetime(9998, 1, 1, tzinfo=UTC)
CLOCK_WAIT_MAX_S: Final = 2.0

_FENCE: Final = "SELECT fence_bucket($1::smallint)"
_PREPARE: Final = "SELECT prepare_bucket($1::smallint, $2::bigint)"
_ADOPT: Final = "SELECT adopt_bucket($1::smallint, $2::date)"
_FIRST_MONTH: Final = "SELECT first_month FROM owned_bucket WHERE bucket = $1"
_CLOCK_BEHIND: Final = "SELECT extract(epoch FROM $1::timestamptz - clock_timestamp())::float8"
_ADOPTED: Final = """
UPDATE bucket_move SET state = 'attached', fenced_at = $3
WHERE move_id = $1 AND role = 'target' AND runner = $2 AND state IN ('copying', 'attached')
"""

# Told before and after everything that is committed: for the log, and for tests that end the process there.
Step = Callable[[Move, str], Awaitable[None]]


# Told what was carried and how long writers waited: "rows", "bytes" (each adds up), "lag_s", "pause_s".
Measure = Callable[[str, float], None]


async def no_step(_move: Move, _name: str) -> None:
    """Nobody wants to know."""


def no_measure(_name: str, _value: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Work:
    """What a mover works with: the catalog, both shards, who it works for, how fast it may."""

    catalog: Catalog
    source: ShardRecord
    target: ShardRecord
    runner: int
    throttle: carrier.Throttle
    step: Step = no_step
    measure: Measure = no_measure

    def token(self, move: Move, role: str) -> Token:
        """The right to write on one of the two shards."""
        return Token(move, role, self.runner)

    def deadline(self) -> float:
        """For one call of the catalog."""
        return deadline_in(CATALOG_TIMEOUT_S)


def login_of(dsn: str) -> str | None:
    """The user of a DSN."""
    user = urlsplit(dsn).username
    return unquote(user) if user else None


async def enter(work: Work, move: Move, phase: Phase) -> Move:
    """The next phase, written down in the catalog; Replaced when somebody asked for something else meanwhile."""
    await work.step(move, f"before entering {phase}")
    if not await rebalances.enter(work.catalog, move, phase, work.deadline()):
        message = f"the move is not in {move.phase} any more"
        raise Replaced(message)
    moved = replace(move, phase=phase)
    await work.step(moved, f"after entering {phase}")
    return moved


@asynccontextmanager
async def both(
    work: Work, move: Move, limits: SessionLimits | None = None
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Sessions on source and target, with this runner's token on both. Replaced when one knows nothing of the move."""
    async with owner_session(work.source, limits) as source, owner_session(work.target, limits) as target:
        for role, connection in ((SOURCE, source), (TARGET, target)):
            if await work.token(move, role).take_over(connection) is None:
                message = f"the {role} knows nothing of the move"
                raise Replaced(message)
        yield source, target


async def begin(work: Work, move: Move) -> Move:
    """Check that the move can be made; then record it on both shards and make the target's empty tables."""
    await preflight.check(work.source, work.target, move)
    async with owner_session(work.source) as source, owner_session(work.target) as target:
        mark = await carrier.low_water(source, login_of(work.source.reader_dsn))
        await work.step(move, "before claim")
        await work.token(move, SOURCE).claim(source, mark)
        await work.step(move, "after claim")
        await _prepare(work, move, source, target)
    return await enter(work, move, Phase.BACKFILL)


async def _prepare(work: Work, move: Move, source: Connection, target: Connection) -> None:
    token = work.token(move, TARGET)
    if await token.take_over(target) is not None:
        return
    await work.step(move, "before prepare")
    async with source.transaction(), target.transaction():
        await work.token(move, SOURCE).hold(source)  # no abort can slip in between, and leave these tables behind
        await token.claim(target)
        await target.execute(_PREPARE, move.bucket, move.move_id)
    await work.step(move, "after prepare")


async def backfill(work: Work, move: Move) -> Move:
    """Copy every leaf that is not copied yet, some at a time."""
    progress = _Progress(work, move)
    async with both(work, move) as (source, target):
        copied = await work.token(move, TARGET).copied(target)
        wanted = await carrier.leaves(source, move.bucket)
        async with target.transaction():
            await work.token(move, TARGET).hold(target)
            await carrier.make_leaves(target, move.bucket, wanted)
    await progress.expect(sum(leaf.rows for leaf in wanted), sum(leaf.size_bytes for leaf in wanted))
    # What was empty when its size was read holds nothing from before the mark: the delta brings what came since.
    full = (leaf for leaf in wanted if leaf.size_bytes and leaf.name not in copied)
    todo = sorted(full, key=lambda leaf: leaf.size_bytes)
    async with asyncio.TaskGroup() as group:
        for _ in range(min(LEAVES_AT_ONCE, len(todo))):
            group.create_task(_copy_leaves(work, move, todo, progress))
    await progress.flush()
    return await enter(work, move, Phase.CATCHUP)


async def _copy_leaves(work: Work, move: Move, todo: list[carrier.Leaf], progress: "_Progress") -> None:
    async with owner_session(work.source) as source, owner_session(work.target) as target:
        while todo:
            leaf = todo.pop()
            await work.step(move, "before leaf")
            rows = await carrier.copy_leaf(source, target, leaf, work.token(move, TARGET), progress.passed)
            await work.step(move, "after leaf")
            work.measure("rows", rows)
            progress.rows += rows


async def catch_up(work: Work, move: Move) -> Move:
    """Passes over what was ingested meanwhile, until one is short."""
    async with both(work, move) as (source, target):
        await carrier.prepare_delta(target)
        for _ in range(PASSES_MAX):
            started = time.monotonic()
            mark, new = await _pass(work, move, source, target)
            seconds = time.monotonic() - started
            lag_s = (datetime.now(UTC) - mark).total_seconds()
            work.measure("lag_s", lag_s)
            work.measure("rows", new)
            await rebalances.progress(
                work.catalog, move.move_id, work.deadline(), delta_rows=new, lag_s=lag_s, passes=1
            )
            if seconds < CATCHUP_GOOD_S:
                break
    return await enter(work, move, Phase.VERIFY)


async def _pass(work: Work, move: Move, source: Connection, target: Connection) -> tuple[datetime, int]:
    """One pass: the new mark, and the number of rows carried. The mark is taken before what is read after it."""
    known = await work.token(move, SOURCE).read(source)
    if known.state != "copying" or known.low_water is None:
        raise Replaced("the source is not copying any more")
    mark = await carrier.low_water(source, login_of(work.source.reader_dsn))
    await work.step(move, "before pass")
    async with target.transaction():
        await work.token(move, TARGET).hold(target)
        await carrier.make_leaves(target, move.bucket, await carrier.leaves(source, move.bucket))
        new = await carrier.carry_delta(source, target, move.bucket, known.low_water, work.throttle.passed)
    await work.step(move, "after pass")
    await work.token(move, SOURCE).set_low_water(source, mark)
    await work.step(move, "after mark")
    return mark, new


async def verify(work: Work, move: Move) -> Move:
    """Compare all rows up to the mark on both sides; then catch up with what came during that."""
    async with both(work, move) as (source, target):
        await asyncio.gather(carrier.settle(source, move.bucket), carrier.settle(target, move.bucket))
        await carrier.prepare_delta(target)
        await _pass(work, move, source, target)
        mark = await _mark(work, move, source)
        rows = await fingerprints.compare_history(source, target, move.bucket, BEGINNING, mark)
        await rebalances.progress(work.catalog, move.move_id, work.deadline(), rows_verified=rows)
        await _pass(work, move, source, target)
    return await enter(work, move, Phase.FENCE)


async def _mark(work: Work, move: Move, source: Connection) -> datetime:
    known = await work.token(move, SOURCE).read(source)
    if known.low_water is None:
        raise Replaced("the source has no mark")
    return known.low_water


async def fence(work: Work, move: Move) -> Move:
    """Close the bucket on the source, carry and compare the rest, hand the bucket over. Writers wait for this.

    TimeoutError when it would take them too long: then nothing has happened, and it is tried again.
    """
    await _come_close(work, move)
    async with both(work, move, FENCING) as (source, target):
        await carrier.prepare_delta(target)
        await _pass(work, move, source, target)
        since = await _mark(work, move, source)
        started = time.monotonic()
        async with asyncio.timeout(FENCE_MAX_S), source.transaction():
            await work.token(move, SOURCE).change(source, "copying", "fenced")
            await source.execute(_FENCE, move.bucket)
            await work.token(move, SOURCE).set_fenced(source)
            await work.step(move, "inside fence")
            async with target.transaction():
                await work.token(move, TARGET).hold(target)
                await carrier.make_leaves(target, move.bucket, await carrier.leaves(source, move.bucket))
                new = await carrier.carry_delta(source, target, move.bucket, since)
                await carrier.carry_status(source, target, move.bucket)
            tail = await fingerprints.compare_history(source, target, move.bucket, since, END)
            await fingerprints.compare_status(source, target, move.bucket)
        await work.step(move, "after fence")
        move = await cut_over(work, move, source, target)
    pause_ms = (time.monotonic() - started) * 1000
    work.measure("pause_s", pause_ms / 1000)
    work.measure("rows", new)
    done = {"delta_rows": new, "tail_verified": tail}
    await rebalances.progress(work.catalog, move.move_id, work.deadline(), pause_ms=pause_ms, **done)
    return move


async def _come_close(work: Work, move: Move) -> None:
    """A pass without the fence's limits, when the last one is long ago: a runner was away, say."""
    async with both(work, move) as (source, target):
        mark = await _mark(work, move, source)
        if (datetime.now(UTC) - mark).total_seconds() > CLOSE_S:
            await carrier.prepare_delta(target)
            await _pass(work, move, source, target)


async def cut_over(work: Work, move: Move, source: Connection, target: Connection) -> Move:
    """The target owns the bucket: first by its own word, then by the map's. Only forward from here."""
    known = await work.token(move, SOURCE).read(source)
    if known.state != "fenced" or known.fenced_at is None:
        raise Replaced("the source is not fenced")
    if move.phase is not Phase.CUTOVER:
        move = await enter(work, move, Phase.CUTOVER)
    await _wait_for_clock(target, known.fenced_at)
    month: date = await source.fetchval(_FIRST_MONTH, move.bucket)
    await work.step(move, "before adopt")
    async with target.transaction():
        if await target.execute(_ADOPTED, move.move_id, work.runner, known.fenced_at) != "UPDATE 1":
            raise Replaced("the target was taken over by another runner")
        await target.execute(_ADOPT, move.bucket, month)
    await work.step(move, "after adopt")
    await rebalances.hand_over(work.catalog, move, move.source, move.target, Phase.CLEANUP, work.deadline())
    await work.step(move, "after cutover")
    return replace(move, phase=Phase.CLEANUP, cut_over_at=datetime.now(UTC))


async def _wait_for_clock(target: Connection, fenced_at: datetime) -> None:
    """`ingested_at` does not go back across a move: what is copied was ingested before anything the target ingests."""
    behind = float(await target.fetchval(_CLOCK_BEHIND, fenced_at))
    if behind > 0:
        await asyncio.sleep(min(behind, CLOCK_WAIT_MAX_S))


async def resume_cutover(work: Work, move: Move) -> Move:
    """The cutover of a move whose runner was lost between fence and map."""
    async with both(work, move) as (source, target):
        return await cut_over(work, move, source, target)


async def is_fenced(work: Work, move: Move) -> bool:
    """Whether the source has decided: then there is only one way."""
    async with owner_session(work.source) as source:
        known = await look(source, move, SOURCE)
        return known is not None and known.state == "fenced"


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
        await rebalances.progress(
            self._work.catalog, self._move.move_id, self._work.deadline(), rows_total=rows, bytes_total=size
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
            self._work.deadline(),
            rows_done=self.rows,
            bytes_done=self._bytes,
            copy_s=seconds,
        )
