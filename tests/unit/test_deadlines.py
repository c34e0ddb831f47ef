"""One timer for many deadlines: each comes at its time, unless it was dropped."""

import asyncio
import time
from dataclasses import dataclass, field

from router.http.deadlines import Deadlines


@dataclass(eq=False)
class Waiting:
    """Notes when it expired."""

    deadline: float
    expired: asyncio.Event = field(default_factory=asyncio.Event)
    at: float = 0.0

    def expire(self) -> None:
        self.at = time.monotonic()
        self.expired.set()


async def test_each_expires_and_none_early() -> None:
    deadlines, now = Deadlines(), time.monotonic()
    waiting = [Waiting(now + 0.01 * number) for number in range(5)]
    for each in waiting:
        deadlines.add(each)
    async with asyncio.timeout(20):
        for each in waiting:
            await each.expired.wait()
    assert all(each.at >= each.deadline for each in waiting)
    assert [each.at for each in waiting] == sorted(each.at for each in waiting)


async def test_what_was_dropped_does_not_and_the_next_ones_do() -> None:
    deadlines, now = Deadlines(), time.monotonic()
    dropped, kept = Waiting(now), Waiting(now + 0.01)
    deadlines.add(dropped)
    deadlines.drop(dropped)
    deadlines.drop(dropped)
    deadlines.add(kept)
    async with asyncio.timeout(20):
        await kept.expired.wait()
    later = Waiting(time.monotonic())
    deadlines.add(later)  # the timer had ended
    async with asyncio.timeout(20):
        await later.expired.wait()
    assert not dropped.expired.is_set()
