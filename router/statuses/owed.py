"""Keys that could not be deleted: what is under them may be older than what this router acknowledged."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

MARGIN_S: Final = 1.0  # by which two clocks may differ within the time that a value is kept


class Owed:
    """They are deleted later, or gone by themselves when a value is `ttl_s` old. At most `most` are remembered.

    Times are seconds of one monotonic clock.
    """

    def __init__(self, ttl_s: float, most: int) -> None:
        self._ttl_s = ttl_s + MARGIN_S
        self._most = most
        self._until: dict[str, float] = {}  # key -> when its value is gone by itself; the soonest first
        self._all_until = 0.0  # of those that are not remembered

    def __len__(self) -> int:
        return len(self._until)

    def add(self, keys: Iterable[str], now: float) -> None:
        """They were written, and are not deleted."""
        until = now + self._ttl_s
        for key in keys:
            self._until.pop(key, None)
            self._until[key] = until
        while len(self._until) > self._most:
            oldest = next(iter(self._until))
            self._all_until = max(self._all_until, self._until.pop(oldest))

    def holds(self, key: str, now: float) -> bool:
        """Whether what is under the key may be too old."""
        return now < self._all_until or (bool(self._until) and now < self._until.get(key, 0.0))

    def some(self, count: int, now: float) -> Mapping[str, float]:
        """The next ones to delete, to be given to `paid` when they are."""
        while self._until and self._until[oldest := next(iter(self._until))] <= now:
            del self._until[oldest]
        return dict(islice(self._until.items(), count))

    def paid(self, deleted: Mapping[str, float]) -> None:
        """They are deleted: all but those that were written again meanwhile."""
        for key, until in deleted.items():
            if self._until.get(key) == until:
                del self._until[key]
