"""The intervals of a series: of a fixed length, or days, weeks and months of a time zone. Pure."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count, takewhile

from router.wire.parameters import SERIES_POINTS_MAX, Step
from router.wire.problems import ProblemError, invalid
from shards.window import Window


def bounds(period: Window, step: Step, zone: tzinfo | None) -> list[datetime]:
    """Ascending, in UTC, from the period's start to its end: what the intervals (a, b] between them are.

    `day`, `week` (from Monday) and `month` begin at local midnight, so that the first and the last may be cut short. Of
    `2d`, a day is one of the zone's, at the time of day at which the period begins; without a zone it has 24 hours.
    A 422 problem when there would be too many.
    """
    found = [period.start]
    with contextlib.suppress(OverflowError, ValueError):  # the last interval that the calendar has
        for bound in takewhile(lambda bound: bound < period.end, _after(period.start, step, zone)):
            if bound > found[-1]:  # a zone may have skipped a whole day
                found.append(bound)
            if len(found) > SERIES_POINTS_MAX:
                raise _too_many()
    return [*found, period.end]


def _too_many() -> ProblemError:
    return invalid("interval", f"gives more than {SERIES_POINTS_MAX} intervals in this period", "out_of_range")


def _after(start: datetime, step: Step, zone: tzinfo | None) -> Iterator[datetime]:
    """What bounds follow `start`, without an end but that of the calendar."""
    if step.unit in {"m", "h"} or (step.unit == "d" and zone is None):
        length = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}[step.unit] * step.times
        return (start + length * times for times in count(1))
    local = start.astimezone(zone or UTC)
    at = datetime(local.year, local.month, local.day)  # noqa: DTZ001 - a date of the zone, made an instant below
    if step.unit == "d":
        at = local.replace(tzinfo=None)
    elif step.unit == "week":
        at -= timedelta(days=at.weekday())
    elif step.unit == "month":
        at = at.replace(day=1)
    return (_moved(at, step, times).replace(tzinfo=zone or UTC).astimezone(UTC) for times in count(1))


def _moved(at: datetime, step: Step, times: int) -> datetime:
    if step.unit == "month":
        months = at.year * 12 + at.month - 1 + times
        return at.replace(year=months // 12, month=months % 12 + 1)
    days = {"d": step.times, "day": 1, "week": 7}[step.unit]
    return at + timedelta(days=days * times)
