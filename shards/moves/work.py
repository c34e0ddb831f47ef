"""What a runner works with on one move: catalog, shards, sessions, its generation, and whom it tells."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, TypeAlias

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ShardUnavailable
from shards.moves import rebalances
from shards.moves.phases import Move, Phase, Role, Step
from shards.moves.record import BucketMove, Held, Replaced, Token, application, end_older_runners
from shards.moves.throttle import Throttle
from shards.postgres.connections import Connection
from shards.postgres.sessions import SessionLimits, owner_session
from shards.shard import ShardRecord

CATALOG_TIMEOUT_S: Final = 5.0
STEP_BACK_S: Final = 0.25  # a server's clock that lost this against ours, between two looks, was set back

_IS_BEHIND: Final = "SELECT to_regprocedure('public.drop_bucket_copy(smallint,bigint)') IS NULL"

# Told of every step: for the log, and for tests that end the process there. The text: the step, and the phase.
Watch: TypeAlias = Callable[[Move, str], Awaitable[None]]
# Told what was carried and how long writers waited: "rows", "bytes" (each adds up), "lag_s", "pause_s".
Measure: TypeAlias = Callable[[str, float], None]


async def watch_nothing(_move: Move, _name: str) -> None:
    """Nobody wants to know."""


def measure_nothing(_name: str, _value: float) -> None:
    """Nobody wants to know."""


class ClockWatch:
    """Whether a server's clock ran with ours since the last look. Marks by `ingested_at` hold only while it did."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._trusted = False

    def trust(self) -> None:
        """Everything up to the mark of before is at the other side, whatever the clock did until then."""
        self._trusted = True

    def is_trusted(self, server: datetime) -> bool:
        """Look at the server's clock. False from when it lost more than `STEP_BACK_S` against ours, until `trust`.

        Also while nothing is known of its past: this runner has just taken over.
        """
        now, theirs = time.monotonic(), server.timestamp()
        before, self._last = self._last, (now, theirs)
        if before is not None and (theirs - before[1]) < (now - before[0]) - STEP_BACK_S:
            self._trusted = False
        return self._trusted


@dataclass(frozen=True)
class Work:
    """One move in the hands of one runner."""

    catalog: Catalog
    source: ShardRecord
    target: ShardRecord
    runner: int
    throttle: Throttle
    watch: Watch = watch_nothing
    measure: Measure = measure_nothing
    clocks: dict[Role, ClockWatch] = field(default_factory=lambda: {role: ClockWatch() for role in Role})

    def token(self, move: Move, role: Role) -> Token:
        """The right to write on one of the two shards."""
        return Token(move, role, self.runner)

    def record(self, role: Role) -> ShardRecord:
        """The shard that plays a role."""
        return self.source if role is Role.SOURCE else self.target

    def deadline(self) -> float:
        """For one call of the catalog."""
        return deadline_in(CATALOG_TIMEOUT_S)

    async def at(self, move: Move, step: Step, phase: Phase | None = None) -> None:
        """Tell that `step` is reached."""
        await self.watch(move, step.value if phase is None else f"{step.value} {phase.value}")

    @asynccontextmanager
    async def session(self, role: Role, limits: SessionLimits | None = None) -> AsyncIterator[Connection]:
        """A session of this runner on one shard; sessions of earlier runners there are ended first."""
        async with owner_session(self.record(role), limits, application(self.runner)) as connection:
            await end_older_runners(connection, self.runner)
            if await connection.fetchval(_IS_BEHIND):  # before a step is half done by functions that are not there
                raise ShardUnavailable(self.record(role).name, "its schema is behind: `voltroute migrate up`")
            yield connection

    @asynccontextmanager
    async def both(self, move: Move, limits: SessionLimits | None = None) -> AsyncIterator["Sides"]:
        """Sessions on source and target with this runner's token on both. Held when one knows nothing of the move."""
        async with self.session(Role.SOURCE, limits) as source, self.session(Role.TARGET, limits) as target:
            found = {}
            for role, connection in ((Role.SOURCE, source), (Role.TARGET, target)):
                record = await self.token(move, role).take_over(connection)
                if record is None:
                    raise Held(f"{move.shard(role)} has no record of move {move.move_id}, which is in {move.phase}")
                found[role] = record
            yield Sides(self, move, {Role.SOURCE: source, Role.TARGET: target}, found)


@dataclass(frozen=True)
class Sides:
    """Both shards of a move while it is worked on: sessions, records as they were taken over."""

    work: Work
    move: Move
    connections: dict[Role, Connection]
    records: dict[Role, BucketMove]

    def __getitem__(self, role: Role) -> Connection:
        return self.connections[role]

    def token(self, role: Role) -> Token:
        """The right to write on one side."""
        return self.work.token(self.move, role)


async def enter(work: Work, move: Move, phase: Phase) -> Move:
    """The next phase, written down in the catalog; Replaced when somebody asked for something else meanwhile."""
    await work.at(move, Step.BEFORE_ENTERING, phase)
    if not await rebalances.enter(work.catalog, move, phase, work.runner, work.deadline()):
        message = f"the move is not in {move.phase} any more, or another runner leads"
        raise Replaced(message)
    moved = replace(move, phase=phase)
    await work.at(moved, Step.AFTER_ENTERING, phase)
    return moved
