from datetime import UTC, date, datetime, timedelta, timezone

from shards.storage.partitions import month_of, next_month, runway
from shards.window import Window, union


def test_months_are_utc() -> None:
    east = datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    assert month_of(east) == date(2026, 2, 1)
    assert month_of(date(2026, 2, 28)) == date(2026, 2, 1)


def test_the_runway_crosses_the_year() -> None:
    assert next_month(date(2026, 12, 1)) == date(2027, 1, 1)
    assert runway(datetime(2026, 11, 30, tzinfo=UTC)) == [date(2026, 11, 1), date(2026, 12, 1), date(2027, 1, 1)]


def test_union_of_windows() -> None:
    def window(start: int, end: int) -> Window:
        return Window(datetime(2026, 1, start, tzinfo=UTC), datetime(2026, 1, end, tzinfo=UTC))

    assert union([window(5, 7), window(1, 3), window(2, 4), window(4, 5)]) == [window(1, 7)]
    assert union([window(5, 7), window(1, 3)]) == [window(1, 3), window(5, 7)]
