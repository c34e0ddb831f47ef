"""Readings as metrics count them, by kind and outcome."""

from collections.abc import Collection, Iterable
from typing import Final

from prometheus_client import Counter

from router.metrics import READINGS
from router.wire.complaints import ItemError
from shards.kinds import Kind

OUTCOMES: Final = ("accepted", "duplicate", "conflict", "rejected", "unavailable", "overloaded")


class _Counters(dict[tuple[Kind, str], Counter]):
    """The time series of each kind and outcome, found once."""

    def __missing__(self, key: tuple[Kind, str]) -> Counter:
        found = self[key] = READINGS.labels(key[0].name, key[1])
        return found


_COUNTERS: Final = _Counters()


def count(kind: Kind, outcome: str, readings: int) -> None:
    """So many readings came to this."""
    if readings:
        _COUNTERS[kind, outcome].inc(readings)


def count_from_zero(kinds: Iterable[Kind]) -> None:
    """Let every outcome be seen before it happens: a rate needs a beginning."""
    for kind in kinds:
        for outcome in OUTCOMES:
            _COUNTERS[kind, outcome].inc(0)


def count_rejected(errors: Collection[ItemError], kind: Kind | None) -> None:
    """Count readings that never reached a shard. A mixed batch does not tell the kind of a broken item."""
    READINGS.labels(kind.name if kind else "unknown", "rejected").inc(len(errors))
