"""What is told of every request, whichever way it goes: its ID, its duration, a line of the log."""

import itertools
import re
import secrets
from typing import Final

import structlog
from prometheus_client import Histogram

from router.metrics import REQUEST_SECONDS

_log: Final = structlog.stdlib.get_logger(__name__)
_HARMLESS: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
SLOW_S: Final = 1.0  # a request that took longer is worth a warning, whatever came of it


class RequestIds:
    """IDs of requests: the client's own if it is harmless, a new one otherwise."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(5)
        self._numbers = itertools.count()

    def of(self, given: bytes | None) -> str:
        """The ID of a request with this X-Request-ID."""
        if given is not None and _HARMLESS.fullmatch(given):
            return str(given, "ascii")
        return f"{self._prefix}{next(self._numbers):06x}"


class _Observers(dict[tuple[str, str, int], Histogram]):
    """The time series of each route, method and status, found once."""

    def __missing__(self, key: tuple[str, str, int]) -> Histogram:
        route, method, status = key
        found = self[key] = REQUEST_SECONDS.labels(route, method, str(status))
        return found


_OBSERVERS: Final = _Observers()


def observe(method: str, path: str, route: str, status: int, seconds: float, *, quiet: bool) -> None:
    """Metrics, and a line; ingest has its own lines (a POST of one reading has none), probes have none."""
    _OBSERVERS[route, method, status].observe(seconds)
    if seconds < SLOW_S and status < 400 and quiet:
        return
    level = _log.warning if status >= 500 or seconds >= SLOW_S else _log.info
    level("request", method=method, path=path, status=status, duration_ms=round(seconds * 1000, 2))
