"""A limit on a rate, as a bucket of tokens. Pure: the caller brings the time."""

from dataclasses import dataclass, field
from typing import Final

BURST_S: Final = 10.0  # what a bucket holds, in seconds of its rate: a device's minute, or a small backlog, at once


DEBT_S: Final = 60.0  # nobody who shares a limit waits longer for what one of them has sent


@dataclass(slots=True, eq=False)
class TokenBucket:
    """`rate` tokens a second, at most BURST_S seconds of them.

    What is charged may exceed what is there: the size of a body is known only when it was read. Then the bucket is in
    debt, at most DEBT_S seconds of it, and lets nothing through until that is paid.
    """

    rate: float
    _level: float = field(init=False)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._level = self.rate * BURST_S

    def _refill(self, now: float) -> None:
        if now > self._at:
            if self._at:
                self._level = min(self._level + (now - self._at) * self.rate, self.rate * BURST_S)
            self._at = now

    def charge(self, tokens: int, now: float) -> None:
        """Take tokens at `now` (monotonic seconds)."""
        self._refill(now)
        self._level = max(self._level - tokens, -self.rate * DEBT_S)

    def debt_s(self, now: float) -> float:
        """Seconds until the bucket lets something through; 0 when it does now."""
        self._refill(now)
        return 0.0 if self._level > 0 else -self._level / self.rate + 1 / self.rate
