"""Deadlines of requests that no task waits for: one timer for all of them."""

import asyncio
import time
from collections import OrderedDict
from typing import Protocol


class Expiring(Protocol):
    """Something that ends by its deadline (monotonic seconds)."""

    deadline: float

    def expire(self) -> None:
        """The deadline has come."""


class Deadlines:
    """Deadlines that come in the order in which they are added, as they do when all have the same time.

    A timer for each request would cost more than the rest of its waiting.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Expiring, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: Expiring) -> None:
        """Expire it at its deadline, unless it is dropped before."""
        self._waiting[waiting] = None
        if self._timer is None:
            self._arm()

    def drop(self, waiting: Expiring) -> None:
        """It is over, if it was ever added."""
        self._waiting.pop(waiting, None)

    def _arm(self) -> None:
        wait = next(iter(self._waiting)).deadline - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(max(wait, 0), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self._timer = None
        try:
            while self._waiting and (first := next(iter(self._waiting))).deadline <= now:
                del self._waiting[first]
                first.expire()
        finally:
            if self._waiting and self._timer is None:
                self._arm()
