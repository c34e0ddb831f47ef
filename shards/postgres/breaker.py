"""Circuit breaker of one shard: stop asking a database that does not answer. Pure; the caller brings the time."""

from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    """CLOSED lets all through, OPEN none, HALF_OPEN one at a time until it is known how that one ended."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass
class Breaker:
    """Opens after `failures_max` failures in a row; then one probe each `cooldown_s`, doubling to `cooldown_max_s`.

    All times are seconds of one monotonic clock.
    """

    failures_max: int = 2
    cooldown_s: float = 0.5
    cooldown_max_s: float = 5.0
    _failures: int = 0
    _trips: int = 0
    _retry_at: float = 0.0
    _probe_until: float = 0.0

    def state(self, now: float) -> BreakerState:
        """State at `now`."""
        if self._failures < self.failures_max:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._retry_at else BreakerState.HALF_OPEN

    def allow(self, now: float, probe_timeout_s: float) -> bool:
        """Whether a call may go out at `now`. In HALF_OPEN the first asker gets the probe, for `probe_timeout_s`."""
        state = self.state(now)
        if state is BreakerState.HALF_OPEN and now >= self._probe_until:
            self._probe_until = now + probe_timeout_s
            return True
        return state is BreakerState.CLOSED

    def retry_after_s(self, now: float) -> float:
        """Seconds until asking again can make sense; 0 when closed."""
        if self.state(now) is BreakerState.CLOSED:
            return 0.0
        return max(self._retry_at - now, self._probe_until - now, 0.1)

    def succeeded(self) -> None:
        """The database answered (even if it refused the data)."""
        self._failures = self._trips = 0
        self._probe_until = 0.0

    def failed(self, now: float) -> None:
        """The database could not be reached, or did not answer in time."""
        self._failures += 1
        self._probe_until = 0.0
        if self._failures >= self.failures_max:
            cooldown = min(self.cooldown_s * 2**self._trips, self.cooldown_max_s)
            self._trips = min(self._trips + 1, 16)
            self._retry_at = now + cooldown
