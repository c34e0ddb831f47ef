"""Days, weeks and months of a zone, and fixed lengths: against every minute's own local date."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.reads.calendar import bounds
from router.wire.parameters import SERIES_POINTS_MAX, Step, read_interval, read_zone
from router.wire.problems import ProblemError
from shards.window import Window

ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo", "UTC"]
CHANGES = [  # of clocks: near both ends of summer time in either hemisphere, and a midnight that does not exist
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 3, 8, 7, tzinfo=UTC),
    datetime(2026, 11, 1, 6, tzinfo=UTC),
    datetime(2026, 4, 4, 15, tzinfo=UTC),
    datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
    datetime(2018, 11, 4, 3, tzinfo=UTC),
]


def label(moment: datetime, zone: ZoneInfo, unit: str) -> date:
    """Which day, week or month an instant belongs to; (start, end]: an instant on a boundary to the one that ends."""
    day = (moment - timedelta(microseconds=1)).astimezone(zone).date()
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if unit == "month" else day


@given(
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    change=st.sampled_from(CHANGES),
    before=st.integers(0, 70 * 24 * 4),
    after=st.integers(1, 70 * 24 * 4),
    unit=st.sampled_from(["day", "week", "month"]),
)
def test_calendar_intervals(zone: ZoneInfo, change: datetime, before: int, after: int, unit: str) -> None:
    period = Window(change - timedelta(minutes=15 * before), change + timedelta(minutes=15 * after))
    found = bounds(period, Step(1, unit), zone)
    assert (found[0], found[-1]) == (period.start, period.end)
    assert all(one < other for one, other in pairwise(found))
    expected: dict[date, int] = {}
    for quarter in range(1, before + after + 1):
        day = label(period.start + timedelta(minutes=15 * quarter), zone, unit)
        expected[day] = expected.get(day, 0) + 1
    lengths = [(end - start) / timedelta(minutes=15) for start, end in pairwise(found)]
    assert lengths == list(expected.values())


@pytest.mark.parametrize(
    ("zone", "start", "hours"),
    [
        ("Europe/Berlin", datetime(2026, 3, 27, 23, tzinfo=UTC), [24, 23, 24]),
        ("Europe/Berlin", datetime(2026, 10, 23, 22, tzinfo=UTC), [24, 25, 24]),
        ("America/New_York", datetime(2026, 3, 7, 5, tzinfo=UTC), [24, 23, 24]),
        ("America/New_York", datetime(2026, 10, 31, 4, tzinfo=UTC), [24, 25, 24]),
        ("Australia/Lord_Howe", datetime(2026, 4, 3, 13, tzinfo=UTC), [24, 24.5, 24]),
        ("Australia/Lord_Howe", datetime(2026, 10, 2, 13, 30, tzinfo=UTC), [24, 23.5, 24]),
        (None, datetime(2026, 3, 27, 23, tzinfo=UTC), [24, 24, 24]),
    ],
)
@pytest.mark.parametrize("interval", ["day", "1d"])
def test_days_over_clock_changes(zone: str | None, start: datetime, hours: list[float], interval: str) -> None:
    if zone is None and interval == "day":
        start = start.replace(hour=0)
    period = Window(start, start + timedelta(hours=sum(hours)))
    found = bounds(period, read_interval(interval, "interval"), read_zone(zone, "tz") if zone else None)
    assert [(end - start) / timedelta(hours=1) for start, end in pairwise(found)] == hours


def test_a_day_that_a_zone_skipped_is_no_interval() -> None:
    period = Window(datetime(2011, 12, 29, 10, tzinfo=UTC), datetime(2012, 1, 1, 10, tzinfo=UTC))
    found = bounds(period, Step(1, "day"), ZoneInfo("Pacific/Apia"))
    assert [(end - start) / timedelta(hours=1) for start, end in pairwise(found)] == [24, 24, 24]


@given(
    start=st.datetimes(datetime(2, 1, 1), datetime(9990, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - aware by it
    length=st.timedeltas(timedelta(microseconds=1), timedelta(days=3000)),
    step=st.builds(Step, st.integers(1, 999_999), st.sampled_from(["m", "h", "d"])) | st.just(Step(1, "month")),
    zone=st.none() | st.sampled_from(ZONES).map(ZoneInfo),
)
def test_any_interval_fits_the_period(start: datetime, length: timedelta, step: Step, zone: ZoneInfo | None) -> None:
    period = Window(start, min(start + length, datetime(9998, 12, 30, tzinfo=UTC)))
    try:
        found = bounds(period, step, zone)
    except ProblemError as problem:
        assert f"more than {SERIES_POINTS_MAX}" in problem.detail
        return
    assert (found[0], found[-1]) == (period.start, period.end)
    assert all(one < other for one, other in pairwise(found))
    assert len(found) <= SERIES_POINTS_MAX + 1


@pytest.mark.parametrize(
    "name", ["Europe/Berln", "", "Europe", "../../etc/passwd", "/etc/localtime", "CEST", "x" * 300, "a\0"]
)
def test_a_zone_that_is_none_is_named(name: str) -> None:
    with pytest.raises(ProblemError) as refused:
        read_zone(name, "tz")
    assert refused.value.problem.status == 422
    assert "is no time zone" in refused.value.detail
    assert len(refused.value.detail) < 200
