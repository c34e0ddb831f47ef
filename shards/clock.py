"""Time: deadlines, which are absolute times of the monotonic clock in seconds, and time zones by their names."""

import time
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


def deadline_in(timeout_s: float) -> float:
    """The deadline `timeout_s` seconds from now."""
    return time.monotonic() + timeout_s


def remaining(deadline: float, least_s: float = 0.001) -> float:
    """Seconds until `deadline`, at least `least_s`: drivers take 0 for "no limit"."""
    return max(deadline - time.monotonic(), least_s)


def time_zone(name: str) -> ZoneInfo:
    """A zone of the IANA database by its name, as Europe/Berlin. ValueError, in a sentence, when there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of the database, as in Europe
        shown = name if len(name) <= 64 else name[:64] + "..."
        message = f"{shown!r} is no time zone; one is called Europe/Berlin"
        raise ValueError(message) from None
