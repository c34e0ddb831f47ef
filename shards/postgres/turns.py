"""Who gets the next connection of a pool: callers take turns by whom they work for, however many each of them sends."""

import asyncio
from collections import deque


class Turns:
    """`size` places. While none is free, those who wait are let in one of each tenant after the other.

    First come, first served would let a tenant with a thousand requests make everybody wait behind them.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        # In the order in which they are next; whoever is let in goes to the end.
        self._waiting: dict[int | None, deque[asyncio.Future[None]]] = {}

    @property
    def has_free(self) -> bool:
        """Whether nobody has to wait."""
        return self._free > 0

    def take_free(self) -> bool:
        """Take a place if one is free, without a turn of the event loop. Whoever got one must `give` it back."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def take(self, whose: int | None) -> None:
        """Wait for a place, which must be given back, too."""
        if self.take_free():
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.give()  # it was let in at the moment when it gave up
            raise

    def give(self) -> None:
        """A place is free: the next one's, or anybody's."""
        while self._waiting:
            whose, queue = next(iter(self._waiting.items()))
            del self._waiting[whose]
            while queue:
                place = queue.popleft()
                if not place.done():  # it did not give up
                    place.set_result(None)
                    if queue:
                        self._waiting[whose] = queue
                    return
        self._free += 1
