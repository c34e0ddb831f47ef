"""Catching up, in either direction: one pass over what was ingested since the last, or over everything that differs.

`ingested_at` only narrows the search. It is believed while the giver's clock ran with ours; when it was set back, or
this runner knows nothing of its past, a pass compares the whole bucket by content and carries by key.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from shards.errors import MoveError
from shards.moves import carrier
from shards.moves.carrier import Direction
from shards.moves.differences import carry_difference
from shards.moves.phases import Recorded, Role, Step
from shards.moves.record import Replaced
from shards.moves.throttle import at_full_speed
from shards.moves.work import Sides
from shards.postgres.dsn import login_of
from shards.postgres.transactions import transaction
from shards.storage import marks

BEGINNING: Final = datetime(1, 1, 2, tzinfo=UTC)


class ClockStepped(MoveError):
    """The giver's clock was set back: marks of before do not hold. Nothing has happened; it is tried again."""


@dataclass
class Passes:
    """Passes from the shard in the role `giver` to the other one."""

    sides: Sides
    giver: Role
    known: Recorded  # the giver's state while it may be carried from
    taker_state: Recorded

    @property
    def taker(self) -> Role:
        return self.giver.other

    async def direction(self) -> Direction:
        """Sessions and tables of both sides."""
        giver, taker = self.sides[self.giver], self.sides[self.taker]
        theirs = await self.sides.token(self.giver).tables(giver)
        ours = await self.sides.token(self.taker).tables(taker)
        return await Direction.between(self.sides.move.bucket, giver, taker, (theirs, ours))

    async def catch_up(self, good_s: float, passes_max: int) -> int:
        """Passes until one takes less than `good_s`; returns how many readings were carried."""
        total = 0
        for _ in range(passes_max):
            started = time.monotonic()
            total += await self.once()
            if time.monotonic() - started < good_s:
                break
        return total

    async def once(self) -> int:
        """One pass; returns how many readings were new. The mark is taken before what is read after it."""
        sides, work = self.sides, self.sides.work
        since, mark, whole = await self._marks()
        await work.at(sides.move, Step.BEFORE_PASS)
        direction = await self.direction()
        new = await (self._carry_whole(direction) if whole or since is None else self._carry_since(direction, since))
        await work.at(sides.move, Step.AFTER_PASS)
        await sides.token(self.giver).set_low_water(direction.giver, mark)
        work.clocks[self.giver].trust()  # only now: a pass that failed on its way says nothing
        await work.at(sides.move, Step.AFTER_MARK)
        work.measure("rows", new)
        work.measure("lag_s", max((datetime.now(UTC) - mark).total_seconds(), 0.0))
        return new

    async def _marks(self) -> tuple[datetime | None, datetime, bool]:
        """The last pass's mark, a new one, and whether the whole bucket must be compared."""
        giver, clock = self.sides[self.giver], self.sides.work.clocks[self.giver]
        known = await self.sides.token(self.giver).read(giver)
        if known.state is not self.known:
            raise Replaced(f"{self.sides.move.shard(self.giver)} is {known.state}, not {self.known}, any more")
        mark, now = await marks.low_water(giver, login_of(self.sides.work.record(self.giver).reader_dsn))
        trusted = clock.is_trusted(now)
        return known.low_water, mark, not trusted or known.low_water is None or known.low_water > mark

    async def _carry_since(self, direction: Direction, since: datetime) -> int:
        async with transaction(direction.taker):
            await self._hold(direction)
            await carrier.make_leaves(direction)
            return await carrier.carry_since(direction, since, self.sides.work.throttle.passed)

    async def _carry_whole(self, direction: Direction) -> int:
        return await carry_difference(direction, lambda: self._hold(direction), self.sides.work.throttle.passed)

    async def _hold(self, direction: Direction) -> None:
        await self.sides.token(self.taker).hold(direction.taker, self.taker_state)

    async def last(self, direction: Direction, since: datetime) -> int:
        """The last one, with the giver fenced. ClockStepped when its clock was set back since the pass before."""
        now = await direction.giver.fetchval("SELECT clock_timestamp()")
        if not self.sides.work.clocks[self.giver].is_trusted(now):
            raise ClockStepped(f"the clock of {self.sides.move.shard(self.giver)} was set back")
        await carrier.make_leaves(direction)
        return await carrier.carry_since(direction, since, at_full_speed)

    async def compare(self) -> int:
        """Compare what was ingested since the last comparison, up to the mark; how many readings are the same."""
        direction, token = await self.direction(), self.sides.token(self.giver)
        known = await token.read(direction.giver)
        window = (known.verified or BEGINNING, await self.mark())
        if window[0] >= window[1]:
            return 0
        rows = await direction.compare_history(window)
        await token.set_verified(direction.giver, window[1])
        return rows

    async def mark(self) -> datetime:
        """The mark of the last pass."""
        known = await self.sides.token(self.giver).read(self.sides[self.giver])
        if known.low_water is None:
            raise Replaced(f"{self.sides.move.shard(self.giver)} has no mark")
        return known.low_water


def forward(sides: Sides) -> Passes:
    """From the source to the target's copy."""
    return Passes(sides, Role.SOURCE, Recorded.COPYING, Recorded.COPYING)


def backward(sides: Sides) -> Passes:
    """From the target, which owns the bucket by now, back to the source's kept copy."""
    return Passes(sides, Role.TARGET, Recorded.ATTACHED, Recorded.FENCED)
