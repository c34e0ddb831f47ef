"""The newest readings of all devices."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from router.reads import merge
from router.reads.fanout import fan_out
from router.reads.scope import Scope
from router.wire.answers import Activity, ActivityItem
from router.wire.queries import ActivityQuery
from shards.kinds import KINDS, Kind
from shards.storage import read
from shards.storage.rows import Reader, Rows

PERIOD_DEFAULT: Final = timedelta(hours=1)


async def activity(scope: Scope, query: ActivityQuery) -> Activity:
    """By time, kind and device, descending. ProblemError 503 when a shard is missing, unless `partial` allows it."""
    since = query.since or scope.now - PERIOD_DEFAULT

    async def ask(reader: Reader, buckets: list[int]) -> Iterable[Rows]:
        return [_named(kind, await read.activity(reader, kind, buckets, since, query.limit)) for kind in KINDS]

    merged = await fan_out(scope, ask, partial=query.partial == "allow")
    rows = merge.newest([part.rows for part in merged.parts], query.limit)
    return Activity([ActivityItem(**row) for row in rows], None, merged.is_partial, merged.shards())


def _named(kind: Kind, rows: Rows) -> Rows:
    for row in rows.rows:
        row["kind"] = kind.name
        row["device_id"] = row.pop(kind.id_column)
    return rows
