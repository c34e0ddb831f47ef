"""Time partitions: which months a bucket needs, and making them ahead and on demand."""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Final

from shards.kinds import Row
from shards.pools import Connection

MONTHS_AHEAD: Final = 2

_ENSURE: Final = """
SELECT ensure_leaves(
    $1::smallint,
    (SELECT coalesce(array_agg(month), '{}') FROM unnest($2::date[]) AS month
     WHERE month >= (SELECT first_month FROM owned_bucket WHERE bucket = $1))
)
"""
_OWNED: Final = "SELECT bucket FROM owned_bucket ORDER BY bucket"
_LAST_LEAVES: Final = """
SELECT count(*) FROM owned_bucket AS o
WHERE to_regclass(format('meter_telemetry_history_b%s_%s', lpad(o.bucket::text, 4, '0'), $1::text)) IS NULL
   OR to_regclass(format('vehicle_telemetry_history_b%s_%s', lpad(o.bucket::text, 4, '0'), $1::text)) IS NULL
"""


def month_of(moment: date) -> date:
    """First day of the month (UTC) in which `moment` lies."""
    if isinstance(moment, datetime):
        moment = moment.astimezone(UTC).date()
    return moment.replace(day=1)


def next_month(month: date) -> date:
    """First day of the following month."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def runway(now: datetime, ahead: int = MONTHS_AHEAD) -> list[date]:
    """The month of `now` and the `ahead` following ones."""
    months = [month_of(now)]
    for _ in range(ahead):
        months.append(next_month(months[-1]))
    return months


async def make_leaves_for(connection: Connection, rows: Iterable[Row], timeout_s: float) -> None:
    """Make the month partitions that `rows` need; one statement a bucket, so locks are held one at a time."""
    wanted: dict[int, set[date]] = {}
    for row in rows:
        wanted.setdefault(row[0], set()).add(month_of(row[2]))
    for bucket, months in sorted(wanted.items()):
        await connection.execute(_ENSURE, bucket, sorted(months), timeout=timeout_s)


async def extend_runway(connection: Connection, now: datetime, timeout_s: float) -> int:
    """Make the coming months' partitions of every bucket of a shard; returns how many were made."""
    months = runway(now)
    made = 0
    for record in await connection.fetch(_OWNED, timeout=timeout_s):
        made += await connection.fetchval(_ENSURE, record["bucket"], months, timeout=timeout_s) or 0
    return made


async def buckets_without_month(connection: Connection, month: date, timeout_s: float) -> int:
    """Number of owned buckets that lack a partition for `month`."""
    return int(await connection.fetchval(_LAST_LEAVES, month.strftime("%Y_%m"), timeout=timeout_s))
