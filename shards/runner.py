"""Who carries moves out: one runner at a time, chosen by an advisory lock in the catalog, until it is gone."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import asyncpg

from shards import cleanup, mover, rebalances, rollback
from shards.bucket_moves import Replaced
from shards.carrier import Throttle
from shards.catalog import Catalog, ShardRecord, deadline_in
from shards.driver import translated
from shards.errors import ClusterError, ShardError
from shards.fingerprints import Different
from shards.mover import Measure, Step, Work, no_measure, no_step
from shards.moves import ABORTABLE, ENDED, Move, Phase, Rebalance, outcome, startable
from shards.preflight import Unfit

TICK_S: Final = 0.25
STAND_BY_S: Final = 2.0
CATALOG_TIMEOUT_S: Final = 5.0
BACKOFF_MAX_S: Final = 5.0
_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('voltroute.runner'))"
_WAITING: Final = frozenset({Phase.CLEANUP, Phase.ROLLBACK_CLEANUP})
_DROPPING: Final = frozenset({Phase.CLEANUP, Phase.ROLLBACK_CLEANUP, Phase.ABORT})
_FENCING: Final = frozenset({Phase.FENCE, Phase.CUTOVER, Phase.ROLLBACK})


@dataclass
class Watcher:
    """What a runner tells its surroundings; each may be left as it is."""

    step: Step = no_step
    failed: Callable[[Move, Exception], None] = lambda _move, _error: None
    entered: Callable[[Move], None] = lambda _move: None
    busy: Callable[[], bool] = lambda: False
    measure: Measure = no_measure


@dataclass
class Runner:
    """Works on the open moves while it is the leader; stands by otherwise."""

    catalog: Catalog
    name: str
    watcher: Watcher = field(default_factory=Watcher)
    generation: int = 0
    leads: bool = False
    phases: Counter[Phase] = field(default_factory=Counter)  # open moves, as of the last look at the catalog
    _tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _held: dict[int, Phase] = field(default_factory=dict)  # moves that wait for an operator, in this phase
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def run(self) -> None:
        """Until cancelled. A catalog that is away only makes it wait."""
        while True:
            with contextlib.suppress(ShardError, ClusterError, TimeoutError):
                await self._lead()
            await asyncio.sleep(STAND_BY_S * random.uniform(0.5, 1.5))

    async def _lead(self) -> None:
        """Work for as long as this process has the lock; returns at once when another has it."""
        async with self._election() as connection:
            if connection is None:
                return
            self.generation = await rebalances.lead(self.catalog, self.name, deadline_in(CATALOG_TIMEOUT_S))
            self.leads = True
            try:
                while True:
                    with translated("catalog"):
                        await connection.execute("SELECT 1", timeout=CATALOG_TIMEOUT_S)  # still ours
                    await self._tick()
                    await self._pause()
            finally:
                self.leads = False
                self.phases.clear()
                await self._stop_tasks()

    @asynccontextmanager
    async def _election(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record] | None"]:
        with translated("catalog"):
            connection = await asyncpg.connect(self.catalog.dsn, timeout=CATALOG_TIMEOUT_S)
        try:
            with translated("catalog"):
                won = await connection.fetchval(_LOCK, timeout=CATALOG_TIMEOUT_S)
            yield connection if won else None
        finally:
            connection.terminate()

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

    async def _tick(self) -> None:
        """Give every move that may run a task, and end a rebalance that has none left."""
        deadline = deadline_in(CATALOG_TIMEOUT_S)
        if not await rebalances.is_alive(self.catalog, self.generation, deadline):
            message = "another runner leads by now"
            raise Replaced(message)
        self._tasks = {number: task for number, task in self._tasks.items() if not task.done()}
        rebalance = await rebalances.open_rebalance(self.catalog, deadline)
        if rebalance is None:
            self.phases.clear()
            return
        moves = await rebalances.open_moves(self.catalog, deadline)
        self.phases = Counter(move.phase for move in moves)
        if not moves:
            await self._end(rebalance, deadline)
            return
        records = {record.name: record for record in await self.catalog.shards(deadline)}
        for move in startable(moves, rebalance.parallel_max, new=rebalance.state == "running"):
            if move.move_id not in self._tasks and self._is_due(move, rebalance):
                self._tasks[move.move_id] = asyncio.create_task(self._carry(move, rebalance, records))

    async def _end(self, rebalance: Rebalance, deadline: float) -> None:
        moves = await rebalances.moves_of(self.catalog, rebalance.rebalance_id, deadline)
        state = "failed" if rebalance.state == "failed" else outcome(moves)
        if state is not None:
            await rebalances.end(self.catalog, rebalance.rebalance_id, state, deadline)

    def _is_due(self, move: Move, rebalance: Rebalance) -> bool:
        if self._held.get(move.move_id) is move.phase:
            return False
        self._held.pop(move.move_id, None)
        if move.phase not in _WAITING or move.cut_over_at is None:
            return True
        return (datetime.now(UTC) - move.cut_over_at).total_seconds() >= rebalance.keep_s

    async def _carry(self, move: Move, rebalance: Rebalance, records: dict[str, ShardRecord]) -> None:
        """Take a move as far as it goes now, through whatever fails on the way."""
        attempts = 0
        throttle = Throttle(rebalance.bytes_per_s_max, self.watcher.busy)
        source, target = records[move.source], records[move.target]
        work = Work(self.catalog, source, target, self.generation, throttle, self.watcher.step, self.watcher.measure)
        while move.phase not in ENDED:
            before = move.phase
            try:
                move = await self._advance(work, move)
            except Exception as raised:  # noqa: BLE001 - whatever it is, it is told and tried again
                error = _first(raised)
                if isinstance(error, Replaced):
                    self.watcher.failed(move, error)
                    return  # the next tick looks at it anew
                if isinstance(error, Different | Unfit):
                    await self._give_up(move, error)
                    return
                attempts += 1
                await self._tell(move, error)
                await asyncio.sleep(min(0.05 * 2**attempts, BACKOFF_MAX_S) * random.uniform(0.5, 1.5))
                if not await self._is_still(move):
                    return
                continue
            attempts = 0
            self.watcher.entered(move)
            if move.phase in _WAITING and before not in _WAITING:
                return  # its time comes later

    async def _advance(self, work: Work, move: Move) -> Move:
        if move.phase in _DROPPING | _FENCING:
            async with self._shards(move):
                return await self._step(work, move)
        return await self._step(work, move)

    async def _step(self, work: Work, move: Move) -> Move:
        if move.phase is Phase.FENCE and await mover.is_fenced(work, move):
            return await mover.enter(work, move, Phase.CUTOVER)
        steps = {
            Phase.PLANNED: mover.begin,
            Phase.BACKFILL: mover.backfill,
            Phase.CATCHUP: mover.catch_up,
            Phase.VERIFY: mover.verify,
            Phase.FENCE: mover.fence,
            Phase.CUTOVER: mover.resume_cutover,
            Phase.CLEANUP: cleanup.clean_up,
            Phase.ABORT: cleanup.abort,
            Phase.ROLLBACK: rollback.roll_back,
            Phase.ROLLBACK_CLEANUP: cleanup.clean_up_rollback,
        }
        return await steps[move.phase](work, move)

    @asynccontextmanager
    async def _shards(self, move: Move) -> AsyncIterator[None]:
        """No two moves fence or drop on one shard at a time: PostgreSQL allows one DETACH a root."""
        async with contextlib.AsyncExitStack() as stack:
            for name in sorted((move.source, move.target)):
                await stack.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            yield

    async def _give_up(self, move: Move, error: Exception) -> None:
        """A move that must not go on: abort it, or, after its cutover, leave everything as it is for an operator."""
        self.watcher.failed(move, error)
        deadline = deadline_in(CATALOG_TIMEOUT_S)
        with contextlib.suppress(ShardError):
            await rebalances.set_state(
                self.catalog, move.rebalance_id, "failed", f"bucket {move.bucket}: {error}", deadline
            )
            if move.phase in ABORTABLE:
                await rebalances.abort_one(self.catalog, move.move_id, str(error), deadline)
                await rebalances.abort_planned(self.catalog, move.rebalance_id, deadline)
            else:
                self._held[move.move_id] = move.phase
                await rebalances.give_reason(self.catalog, move.move_id, str(error), deadline)

    async def _tell(self, move: Move, error: Exception) -> None:
        self.watcher.failed(move, error)
        with contextlib.suppress(ShardError):
            text = str(error) or type(error).__name__
            await rebalances.failed(self.catalog, move.move_id, text, deadline_in(CATALOG_TIMEOUT_S))

    async def _is_still(self, move: Move) -> bool:
        """Whether the catalog has the move where this runner has it; when it is away, yes."""
        try:
            moves = await rebalances.open_moves(self.catalog, deadline_in(CATALOG_TIMEOUT_S))
        except ShardError:
            return True
        return any((other.move_id, other.phase) == (move.move_id, move.phase) for other in moves)


def _first(error: BaseException) -> Exception:
    """The first exception of a group, or the exception."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
