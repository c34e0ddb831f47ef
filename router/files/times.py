"""Local times of a file into instants: offsets, hours that come twice, hours that do not come. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from router.files.layout import Label

_DAY: Final = timedelta(days=1)
_TICK: Final = timedelta(microseconds=1)
_MIDNIGHT: Final = re.compile(r"(?<![\d:])24:00(:00)?(?![\d:])")  # the end of a day, as some write it


def parse(text: str, formats: Sequence[str]) -> datetime:
    """A time, with its offset if it has one. ValueError when it is written in none of the formats."""
    days = 0
    if "24:00" in text:
        text, days = _MIDNIGHT.subn(r"00:00\1", text)
    for form in formats:
        try:
            return _parse(text, form) + timedelta(days=days)
        except (ValueError, OverflowError, OSError, re.error):  # the last: of a format that names something twice
            continue
    raise ValueError(text)


def _parse(text: str, form: str) -> datetime:
    if form == "iso":
        if not re.match(r"\d{4}-\d\d-\d\d", text):  # fromisoformat also takes weeks and days of the year
            raise ValueError(text)
        return datetime.fromisoformat(text)
    if form == "epoch":
        if not re.fullmatch(r"\d{9,10}(\.\d+)?", text, re.ASCII):
            raise ValueError(text)
        return datetime.fromtimestamp(float(text), UTC)
    return datetime.strptime(text, form)  # noqa: DTZ007 - local times are made instants by a Clock


@dataclass(frozen=True)
class Pace:
    """How a file's rows follow each other. `interval` None: no two rows of a series tell it."""

    interval: timedelta | None
    newest_first: bool


def pace_of(times: Iterable[tuple[str, datetime]]) -> Pace:
    """The most common step between rows of one series, and which way most of them go, of (series, time)."""
    steps: Counter[timedelta] = Counter()
    back = 0
    last: dict[str, datetime] = {}
    for series, time in times:
        before = last.get(series)
        last[series] = time
        if before is not None and (before.tzinfo is None) is (time.tzinfo is None) and before != time:
            steps[abs(time - before)] += 1
            back += 1 if time < before else -1
    # Of two that are as common the shorter one: an interval lasts no longer than to the next row.
    interval = min(steps, key=lambda step: (-steps[step], step), default=None)
    return Pace(interval, back > 0)


class Clock:
    """Local times of one file into instants. What comes twice in autumn is told apart by which came first.

    `zone` None: every time must have an offset. `newest_first`: the file goes backwards.
    """

    def __init__(self, zone: tzinfo | None, *, newest_first: bool = False) -> None:
        self._zone = zone
        self._newest_first = newest_first
        self._seen: Counter[tuple[str, datetime]] = Counter()

    def end(self, series: str, time: datetime, label: Label, interval: timedelta) -> datetime:
        """The instant, in UTC, at which the interval of a row ends. `series`: whose rows are told apart by their order.

        ValueError when the clocks of the zone never showed that time, or nothing says what its offset is.
        """
        whole_days = interval % _DAY == timedelta(0) and interval > timedelta(0)
        if time.tzinfo is not None:
            if whole_days and self._zone is not None and label is Label.START:  # a day may have 23 or 25 hours
                return self.day(time.astimezone(self._zone).replace(tzinfo=None, fold=0) + interval)
            return (time if label is Label.END else time + interval).astimezone(UTC)
        if whole_days:
            return self.day(time + interval if label is Label.START else time)
        if label is Label.START or not interval:
            return self._instant(series, time) + interval
        return self._of_end(series, time, interval)

    def _of_end(self, series: str, time: datetime, interval: timedelta) -> datetime:
        """The instant of a local time at which an interval ends: it comes twice where what it ends does."""
        start = time - interval
        if self._comes_twice(start) and self._comes_twice(time - _TICK):  # else it ends after the doubled hour
            return self._instant(series, start) + interval
        early, late = self._both(time)
        if early < late and not self._comes_twice(start):
            return self._at_change(series, start, (early, late), interval)
        if late < early and self._exists(start):  # the change in spring, called by its old time
            return self._instant(series, start) + interval
        return self._instant(series, time)

    def _at_change(
        self, series: str, start: datetime, ends: tuple[datetime, datetime], interval: timedelta
    ) -> datetime:
        """The end of an interval whose end alone comes twice.

        Some files call the change itself by its new time, as in 01:45, 02:00, .. 02:45, 02:00, .. 03:00: the second one
        is the end of the first 02:45, which then has come, or the last row would be taken for it.
        """
        begun = (ends[1] - interval).astimezone(self._zone).replace(tzinfo=None, fold=0)
        is_first = self._is_first(series, start)
        is_late = is_first and self._seen[series, begun] < 2 if self._newest_first else not is_first
        self._seen[series, begun] += is_late
        return ends[is_late]

    def day(self, day: datetime) -> datetime:
        """The instant at which a local day begins."""
        return self._both(day)[0]

    def _both(self, time: datetime) -> tuple[datetime, datetime]:
        """The instants before and after a change of clocks; the same but near one."""
        if self._zone is None:
            message = f"{time} has no offset: say in which --time-zone it is"
            raise ValueError(message)
        early, late = (time.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return early, late

    def _comes_twice(self, time: datetime) -> bool:
        early, late = self._both(time)
        return early < late

    def _exists(self, time: datetime) -> bool:
        early, late = self._both(time)
        return early <= late

    def _is_first(self, series: str, time: datetime) -> bool:
        """Whether this time of a series comes for the first time."""
        self._seen[series, time] += 1
        return self._seen[series, time] == 1

    def _instant(self, series: str, time: datetime) -> datetime:
        early, late = self._both(time)
        if early == late:
            return early
        if late < early:
            message = f"{time} never was in {self._zone}: clocks went forward"
            raise ValueError(message)
        return early if self._is_first(series, time) != self._newest_first else late
