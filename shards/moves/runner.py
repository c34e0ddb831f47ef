"""Carrying out the open moves of a cluster: a leader's duty."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, NotAsRecorded, ShardError, ShardUnavailable, WriteConflict
from shards.moves import cleanup, decisions, fence, rebalances, rollback, steps
from shards.moves.fence import CannotAttach
from shards.moves.fingerprints import Different
from shards.moves.phases import ABORTABLE, ENDED, Move, Phase, Rebalance, RebalanceState, outcome, startable
from shards.moves.preflight import Unfit
from shards.moves.record import Held, Replaced
from shards.moves.resolve import resolve
from shards.moves.throttle import Throttle
from shards.moves.work import CATALOG_TIMEOUT_S, Measure, Watch, Work, enter, measure_nothing, watch_nothing
from shards.shard import ShardRecord

TICK_S: Final = 0.25
BACKOFF_MAX_S: Final = 5.0
ATTEMPTS_MAX: Final = 8  # of a step that fails for a reason that waiting hardly cures
_WAITING: Final = frozenset({Phase.CLEANUP, Phase.ROLLBACK_CLEANUP})
_DROPPING: Final = frozenset({Phase.CLEANUP, Phase.ROLLBACK_CLEANUP, Phase.ABORT})
_FENCING: Final = frozenset({Phase.FENCE, Phase.CUTOVER, Phase.ROLLBACK})
_TRANSIENT: Final = (ShardUnavailable, WriteConflict, TimeoutError, OSError)


@dataclass
class Watcher:
    """What a runner tells its surroundings; each may be left as it is."""

    step: Watch = watch_nothing
    failed: Callable[[Move, Exception], None] = lambda _move, _error: None
    entered: Callable[[Move], None] = lambda _move: None
    busy: Callable[[], bool] = lambda: False
    measure: Measure = measure_nothing


@dataclass
class Moves:
    """Works on the open moves while this process leads."""

    catalog: Catalog
    watcher: Watcher = field(default_factory=Watcher)
    phases: Counter[Phase] = field(default_factory=Counter)  # open moves, as of the last look at the catalog
    held: int = 0  # of these, moves that wait for an operator
    _tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def run(self, generation: int) -> None:
        """Until cancelled. A catalog that is unreachable only makes it wait."""
        try:
            while True:
                with contextlib.suppress(ShardError, ClusterError):
                    await self._tick(generation)
                await self._pause()
        finally:
            self.phases.clear()
            self.held = 0
            await self._stop_tasks()
            self.watcher.measure("lag_s", 0.0)

    async def _pause(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.01)
        else:
            await asyncio.sleep(TICK_S)

    async def _stop_tasks(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _tick(self, generation: int) -> None:
        """Give every move that may run a task, and end a rebalance that has none left."""
        deadline = deadline_in(CATALOG_TIMEOUT_S)
        self._tasks = {number: task for number, task in self._tasks.items() if not task.done()}
        rebalance = await rebalances.open_rebalance(self.catalog, deadline)
        if rebalance is None:
            self.phases.clear()
            self.held = 0
            return
        moves = await rebalances.open_moves(self.catalog, deadline)
        self.phases = Counter(move.phase for move in moves)
        self.held = sum(1 for move in moves if move.held)
        if not moves:
            await self._end(rebalance, deadline)
            return
        records = {record.name: record for record in await self.catalog.shards(deadline)}
        for move in startable(moves, rebalance.parallel_max, new=rebalance.state is RebalanceState.RUNNING):
            if move.move_id not in self._tasks and _is_due(move, rebalance):
                self._tasks[move.move_id] = asyncio.create_task(self._carry(move, rebalance, records, generation))

    async def _end(self, rebalance: Rebalance, deadline: float) -> None:
        moves = await rebalances.moves_of(self.catalog, rebalance.rebalance_id, deadline)
        state = RebalanceState.FAILED if rebalance.state is RebalanceState.FAILED else outcome(moves)
        if state is not None:
            await rebalances.end(self.catalog, rebalance.rebalance_id, state, deadline)

    async def _carry(self, move: Move, rebalance: Rebalance, records: dict[str, ShardRecord], generation: int) -> None:
        """Take a move as far as it goes now, through whatever fails on the way."""
        gone = {move.source, move.target} - records.keys()
        if gone and not (move.keeper_alone and move.keeper and move.shard(move.keeper) in records):
            await self._hold(move, generation, f"{', '.join(sorted(gone))} is no shard of this cluster any more")
            return
        throttle = Throttle(rebalance.bytes_per_s_max, self.watcher.busy)
        work = Work(
            self.catalog,
            records.get(move.source) or records[move.target],
            records.get(move.target) or records[move.source],
            generation,
            throttle,
            self.watcher.step,
            self.watcher.measure,
        )
        attempts = lasting = 0
        while move.phase not in ENDED:
            before = move.phase
            try:
                move = await self._advance(work, move)
            except Exception as raised:  # noqa: BLE001 - whatever it is, it is told and tried again
                error = _first(raised)
                attempts, lasting = attempts + 1, lasting + (not isinstance(error, _TRANSIENT))
                going_on = await self._failed(work, move, error, attempts, lasting)
                if going_on is None:
                    return
                move = going_on
                continue
            attempts = lasting = 0
            self.watcher.entered(move)
            if move.phase in _WAITING and before not in _WAITING:
                return  # its time comes later

    async def _failed(self, work: Work, move: Move, error: Exception, attempts: int, lasting: int) -> Move | None:
        """What to do about an error: the move to go on with, after a pause, or None to leave it."""
        if isinstance(error, Replaced):
            self.watcher.failed(move, error)
            return None  # the next tick looks at it anew
        if isinstance(error, CannotAttach):
            with contextlib.suppress(ShardError, ClusterError):
                moved = await fence.open_again(work, move)
                await self._give_up(moved, work.runner, error)
                return moved
        if isinstance(error, Different | Unfit | Held | NotAsRecorded) or lasting >= ATTEMPTS_MAX:
            await self._give_up(move, work.runner, error)
            return None
        await self._tell(move, work.runner, error)
        await asyncio.sleep(min(0.05 * 2**attempts, BACKOFF_MAX_S) * random.uniform(0.5, 1.5))
        return move if await self._is_still(move) else None

    async def _advance(self, work: Work, move: Move) -> Move:
        if move.keeper is not None or move.phase in _DROPPING | _FENCING:
            async with self._shards(move):
                return await self._step(work, move)
        return await self._step(work, move)

    async def _step(self, work: Work, move: Move) -> Move:
        if move.keeper is not None:
            return await resolve(work, move)
        if move.phase is Phase.FENCE and await fence.is_fenced(work, move):
            return await enter(work, move, Phase.CUTOVER)
        return await _STEPS[move.phase](work, move)

    @asynccontextmanager
    async def _shards(self, move: Move) -> AsyncIterator[None]:
        """No two moves fence or drop on one shard at a time: PostgreSQL allows one DETACH a root."""
        async with contextlib.AsyncExitStack() as stack:
            for name in sorted((move.source, move.target)):
                await stack.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            yield

    async def _give_up(self, move: Move, runner: int, error: Exception) -> None:
        """A move that must not go on: abort it, or, when the source may have decided, hold it for an operator."""
        self.watcher.failed(move, error)
        deadline = deadline_in(CATALOG_TIMEOUT_S)
        with contextlib.suppress(ShardError):
            abort = move.phase in ABORTABLE and move.keeper is None and not isinstance(error, Held | NotAsRecorded)
            await rebalances.fail(self.catalog, move, runner, str(error), deadline, abort=abort)
            if move.phase is Phase.ABORT and isinstance(error, CannotAttach):
                await rebalances.give_reason(self.catalog, move.move_id, runner, str(error), deadline)
            elif not abort:
                await decisions.hold(self.catalog, move.move_id, runner, str(error), deadline)

    async def _hold(self, move: Move, runner: int, reason: str) -> None:
        self.watcher.failed(move, Held(reason))
        with contextlib.suppress(ShardError):
            await decisions.hold(self.catalog, move.move_id, runner, reason, deadline_in(CATALOG_TIMEOUT_S))

    async def _tell(self, move: Move, runner: int, error: Exception) -> None:
        self.watcher.failed(move, error)
        with contextlib.suppress(ShardError):
            text = str(error) or type(error).__name__
            await rebalances.failed(self.catalog, move.move_id, runner, text, deadline_in(CATALOG_TIMEOUT_S))

    async def _is_still(self, move: Move) -> bool:
        """Whether the catalog has the move where this runner has it; when it is unreachable, yes."""
        try:
            moves = await rebalances.open_moves(self.catalog, deadline_in(CATALOG_TIMEOUT_S))
        except ShardError:
            return True
        return any(
            (o.move_id, o.phase, o.held, o.keeper) == (move.move_id, move.phase, None, move.keeper) for o in moves
        )


_STEPS: Final = {
    Phase.PLANNED: steps.begin,
    Phase.BACKFILL: steps.backfill,
    Phase.CATCHUP: steps.catch_up,
    Phase.VERIFY: steps.verify,
    Phase.FENCE: fence.fence,
    Phase.CUTOVER: fence.resume_cutover,
    Phase.CLEANUP: cleanup.clean_up,
    Phase.ABORT: cleanup.abort,
    Phase.ROLLBACK: rollback.roll_back,
    Phase.ROLLBACK_CLEANUP: cleanup.clean_up_rollback,
}


def _is_due(move: Move, rebalance: Rebalance) -> bool:
    if move.keeper is not None or move.phase not in _WAITING or move.cut_over_at is None:
        return True
    return (datetime.now(UTC) - move.cut_over_at).total_seconds() >= rebalance.keep_s


def _first(error: BaseException) -> Exception:
    """The first exception of a group, or the exception."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
