"""Time partitions: which days a bucket needs leaves for, and making them ahead and on demand."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final

import asyncpg

from shards.errors import BucketUnavailable, Cause
from shards.kinds import Row
from shards.postgres.connections import Connection

MONTHS_AHEAD: Final = 2
WEEKS_AHEAD: Final = 5
DAYS_AHEAD: Final = 14

_ENSURE: Final = """
SELECT ensure_leaves(
    $1::smallint,
    (SELECT coalesce(array_agg(month), '{}') FROM unnest($2::date[]) AS month
     WHERE month >= (SELECT first_month FROM owned_bucket WHERE bucket = $1))
)
"""
_SET_WIDTH: Final = "UPDATE leaf_width SET width = $1 WHERE width <> $1"
_OWNED: Final = """
SELECT o.bucket FROM owned_bucket AS o
WHERE NOT EXISTS (SELECT FROM bucket_move AS m WHERE m.bucket = o.bucket AND m.state IN ('fenced', 'dropping'))
ORDER BY o.bucket
"""


@dataclass(frozen=True)
class Extended:
    """Partitions made, and bucket -> why it could not have them."""

    made: int = 0
    failed: dict[int, str] = field(default_factory=dict)


def month_of(moment: date) -> date:
    """First day of the month (UTC) in which `moment` lies."""
    if isinstance(moment, datetime):
        moment = moment.astimezone(UTC).date()
    return moment.replace(day=1)


def next_month(month: date) -> date:
    """First day of the following month."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def runway(now: datetime, width: str = "month") -> list[date]:
    """The first days of the leaf (of a day, week or month) of `now`, and of those that are made ahead of it."""
    if width == "month":
        months = [month_of(now)]
        for _ in range(MONTHS_AHEAD):
            months.append(next_month(months[-1]))
        return months
    today = now.astimezone(UTC).date()
    if width == "day":
        return [today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)]
    monday = today - timedelta(days=today.weekday())
    return [monday + timedelta(weeks=ahead) for ahead in range(WEEKS_AHEAD + 1)]


async def make_leaves_for(connection: Connection, shard: str, rows: Iterable[Row], timeout_s: float) -> None:
    """Make the partitions that `rows` need; one statement a bucket, so locks are held one at a time.

    BucketUnavailable names the buckets that cannot have theirs, after the others were made.
    """
    wanted: dict[int, set[date]] = {}
    for row in rows:
        wanted.setdefault(row[0], set()).add(row[3].astimezone(UTC).date())
    failed: dict[int, str] = {}
    for bucket, days in sorted(wanted.items()):
        try:
            await connection.execute(_ENSURE, bucket, sorted(days), timeout=timeout_s)
        except _OF_ONE_BUCKET as error:
            failed[bucket] = error.args[0]
    if failed:
        detail = f"no partition can be made: {'; '.join(sorted(set(failed.values())))}"
        raise BucketUnavailable(shard, detail, frozenset(failed), Cause.PARTITION_MISSING)


# A table made or detached by hand is in the way, or somebody has it locked. Anything else concerns the whole shard.
_OF_ONE_BUCKET: Final = (
    asyncpg.SyntaxOrAccessError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.InvalidObjectDefinitionError,
    asyncpg.LockNotAvailableError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)


async def extend_runway(connection: Connection, now: datetime, width: str) -> Extended:
    """Make the coming partitions of every bucket of a shard; a bucket that fails does not stop the others.

    From now on routers make them of this width there, too.
    """
    await connection.execute(_SET_WIDTH, width)
    days, made, failed = runway(now, width), 0, {}
    for record in await connection.fetch(_OWNED):
        try:
            made += await connection.fetchval(_ENSURE, record["bucket"], days) or 0
        except _OF_ONE_BUCKET as error:
            failed[record["bucket"]] = error.args[0]
    return Extended(made, failed)
