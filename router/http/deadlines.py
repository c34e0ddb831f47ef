"""Deadlines of requests that no task waits for: one timer for all of them."""

import asyncio
import time
from collections import deque
from typing import Protocol


class Expiring(Protocol):
    """Something that ends by its deadline (monotonic seconds)."""

    deadline: float
    is_over: bool

    def expire(self) -> None:
        """The deadline has come, and it was not over."""


class Deadlines:
    """Deadlines that come in the order in which they are added, as they do when all have the same time.

    A timer for each request would cost more than the rest of its waiting.
    """

    def __init__(self) -> None:
        self._waiting: deque[Expiring] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: Expiring) -> None:
        """Expire it at its deadline, unless it is over by then."""
        while self._waiting and self._waiting[0].is_over:
            self._waiting.popleft()
        self._waiting.append(waiting)
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        wait = self._waiting[0].deadline - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(max(wait, 0), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        while self._waiting and (self._waiting[0].is_over or self._waiting[0].deadline <= now):
            first = self._waiting.popleft()
            if not first.is_over:
                first.expire()
        self._timer = None
        if self._waiting:
            self._arm()
