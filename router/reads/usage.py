"""What a tenant stores, by day and kind."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from router.reads.fanout import Merged, Tagged, fan_out
from router.reads.merge import union_of
from router.reads.scope import Scope
from router.wire.parameters import SERIES_POINTS_MAX
from router.wire.problems import invalid
from router.wire.queries import UsageQuery
from router.wire.usage import Usage, UsageOfDay
from shards.bins import ceil, floor
from shards.kinds import Kind
from shards.storage import tiers, usage
from shards.storage.rows import Reader, Rows

PERIOD_DEFAULT: Final = timedelta(days=30)
_DAY: Final = timedelta(days=1)
_SUMMED: Final = ("readings", "devices", "bytes")
_Part: TypeAlias = Tagged[Kind, Rows]


async def by_day(scope: Scope, query: UsageQuery) -> Usage:
    """ProblemError 503 when a shard does not answer, unless `partial` allows that."""
    bounds = _days(query, scope.now)

    async def ask(reader: Reader, buckets: list[int]) -> Iterable[_Part]:
        return [Tagged(kind, await usage.by_day(reader, kind, buckets, bounds)) for kind in scope.cluster.kinds]

    merged = await fan_out(scope, ask, partial=query.partial == "allow")
    rows = [row for part in merged.parts for row in part.part.rows]
    found = tiers.names(union_of(row["tiers"] for row in rows))
    return Usage(_items(bounds, merged), found, merged.is_partial, merged.shards())


def _days(query: UsageQuery, now: datetime) -> list[datetime]:
    """The bounds of the days that hold both times."""
    last = ceil(query.end or now, _DAY)
    first = floor(query.start, _DAY) if query.start else last - PERIOD_DEFAULT
    if first >= last:
        raise invalid("from", "must be before `to`", "out_of_range")
    if (last - first) / _DAY > SERIES_POINTS_MAX:
        raise invalid("from", f"must be at most {SERIES_POINTS_MAX} days before `to`", "out_of_range")
    return [first + _DAY * n for n in range(round((last - first) / _DAY) + 1)]


def _items(bounds: list[datetime], merged: Merged[_Part]) -> list[UsageOfDay]:
    """By day and kind; a device is on one shard alone."""
    found: dict[tuple[int, Kind], dict[str, int]] = {}
    for part in merged.parts:
        for row in part.part.rows:
            total = found.setdefault((row["bin"], part.tag), dict.fromkeys(_SUMMED, 0))
            for name in _SUMMED:
                total[name] += row[name]
    ordered = sorted(found.items(), key=lambda each: (each[0][0], each[0][1].name))
    return [UsageOfDay(bounds[at - 1], bounds[at], kind.name, **total) for (at, kind), total in ordered]
