"""Holding a copy back: below a rate, and out of the way of readings that wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

BUSY_PAUSE_S: Final = 0.05
SHARE_WHEN_BUSY: Final = 0.3  # of the time, while readings wait for their transaction

# Told of every chunk's size; waits as long as the copy should.
Passed: TypeAlias = Callable[[int], Awaitable[None]]


async def at_full_speed(_size: int) -> None:
    """Inside a fence writers wait: nothing may hold the copy up."""


@dataclass
class Throttle:
    """Keeps a copy below a rate, and out of the way while `busy()` says that readings wait."""

    bytes_per_s_max: int | None = None
    busy: Callable[[], bool] = lambda: False
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _started: float = field(default_factory=time.monotonic)
    _bytes: int = 0
    _last: float = field(default_factory=time.monotonic)

    async def passed(self, size: int) -> None:
        """`size` more bytes went through: wait as long as they call for."""
        self._bytes += size
        now = time.monotonic()
        if self.bytes_per_s_max is not None:
            ahead = self._started + self._bytes / self.bytes_per_s_max - now
            if ahead > 0:
                await self.sleep(min(ahead, 1.0))
        elif self.busy():
            worked = min(now - self._last, BUSY_PAUSE_S)
            await self.sleep(worked * (1 / SHARE_WHEN_BUSY - 1))
        self._last = time.monotonic()
