"""Deadlines: absolute times of the monotonic clock, in seconds. The one module that turns timeouts into them."""

import time


def deadline_in(timeout_s: float) -> float:
    """The deadline `timeout_s` seconds from now."""
    return time.monotonic() + timeout_s


def remaining(deadline: float, least_s: float = 0.001) -> float:
    """Seconds until `deadline`, at least `least_s`: drivers take 0 for "no limit"."""
    return max(deadline - time.monotonic(), least_s)
