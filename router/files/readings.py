"""From the rows of a table to readings of devices."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

from router.files.cells import device_id, is_missing, number, tidy
from router.files.layout import FileError, Label, Layout, Name, Unit, shown, unit_of
from router.files.table import Row, Table, day_columns
from router.files.times import Clock, pace_of, parse

SAMPLE: Final = 400  # rows that tell the interval of a file and its direction
STEPS_MAX: Final = 5  # rows in a row that are further apart than the interval: not missing, but of another one
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Value:
    """What one cell of energy holds. `time` is local where it has no offset; `kwh` is kW of a power."""

    line: int
    device: str
    series: str
    time: datetime
    kwh: float
    is_power: bool
    voltage: float | None = None


@dataclass
class Skipped:
    """Rows that hold no reading: missing values, and what --skip-bad left out."""

    missing: int = 0
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A file, how it is read, and what happens to rows that cannot be: None: FileError, else they are listed."""

    name: str
    layout: Layout
    zone: tzinfo | None
    device: str | None
    skipped: Skipped
    skip_bad: bool = False

    def bad(self, line: int, what: str) -> None:
        """A row that cannot be read."""
        text = f"{self.name}:{line}: {what}"
        if not self.skip_bad:
            raise FileError(text)
        self.skipped.bad.append(text)


class _BadRow(Exception):
    """Why one row cannot be read; it names the column."""


def from_rows(source: Source, table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, reading) of a table with a row for each interval."""
    return timed(source, _Columns(source, table).values())


def from_days(source: Source, table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, reading) of a table with a row for each day, and a column for each interval of it."""
    return timed(source, _day_values(source, table))


def timed(source: Source, values: Iterator[Value]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give each value the instant at which its interval ends, and make it a reading."""
    sample = list(itertools.islice(values, SAMPLE))
    layout = source.layout
    pace = pace_of((value.series, value.time) for value in sample)
    interval = pace.interval if layout.interval_s is None else timedelta(seconds=layout.interval_s)
    if layout.is_register:
        interval = timedelta(0)
    elif interval is None and sample and (layout.label is Label.START or sample[0].is_power):
        raise FileError(f"{source.name}: one time does not tell how long an interval is: say --interval, as in 15m")
    interval = interval or timedelta(0)
    clock = Clock(source.zone, newest_first=pace.newest_first)
    label = Label.END if layout.is_register else layout.label
    steps = _Steps(source, interval)
    for value in itertools.chain(sample, values):
        try:
            end = clock.end(value.series, value.time, label, interval)
        except (ValueError, OverflowError) as error:
            source.bad(value.line, str(error))
        else:
            steps.look(value, end)
            yield value.line, _reading(value, end, interval, layout)


class _Steps:
    """Watches that a file's rows stay as far apart as its interval is long, where that was told by the rows."""

    def __init__(self, source: Source, interval: timedelta) -> None:
        self._source, self._interval = source, interval
        # A day has 23 to 25 hours; where the interval was said, or there is none, rows may be as they are.
        self._watched = source.layout.interval_s is None and timedelta(0) < interval < _DAY
        self._seen: dict[str, tuple[datetime, timedelta, int]] = {}  # the last end; the last odd step, how often

    def look(self, value: Value, end: datetime) -> None:
        """FileError where the step changes for good: the rows' energy or times would be wrong."""
        if not self._watched:
            return
        before, odd, times = self._seen.get(value.series, (end, timedelta(0), 0))
        step = abs(end - before)
        times = times + 1 if step == odd else 1
        self._seen[value.series] = (end, step, times)
        other = step not in {timedelta(0), self._interval}
        if other and (times >= STEPS_MAX or (step < self._interval and times >= 2)):
            raise FileError(
                f"{self._source.name}:{value.line}: rows are {_minutes(step)} apart here, and "
                f"{_minutes(self._interval)} elsewhere: split the file, or say --interval"
            )


def _minutes(step: timedelta) -> str:
    return f"{step / timedelta(minutes=1):g} min"


def _reading(value: Value, end: datetime, interval: timedelta, layout: Layout) -> dict[str, Any]:
    kwh = value.kwh * (interval / timedelta(hours=1)) if value.is_power else value.kwh
    if layout.negative_is_zero:
        kwh = max(kwh, 0.0)
    reading: dict[str, Any] = {"meterId": value.device, "timestamp": end.isoformat().replace("+00:00", "Z")}
    reading["registerKwh" if layout.is_register else "kwhConsumedAc"] = round(kwh, 9)
    if value.voltage is not None:
        reading["voltage"] = value.voltage
    return reading


class _Columns:
    """The columns of a table, found once."""

    def __init__(self, source: Source, table: Table) -> None:
        self._source, self._table, layout = source, table, source.layout
        self._time = self._all(layout.time)
        self._day_hour = self._all(layout.day_hour)
        self._where = [(self._one(name), name, wanted) for name, wanted in layout.where.items()]
        self._device = None if layout.device is None else self._one(layout.device)
        self._unit_column = None if layout.unit_column is None else self._one(layout.unit_column)
        self._unit = unit_of(layout.unit)
        voltage = [table.find(name) for name in layout.voltage]
        self._voltage = [at for at in voltage if at is not None]
        self._groups = self._energy()
        if self._device is None and source.device is None and any(device is None for _, device in self._groups):
            raise FileError(f"{source.name}: no column names a device: say which one it is with --device")

    def _one(self, name: Name) -> int:
        at = self._table.find(name)
        if at is None:
            raise FileError(f"{self._source.name}: there is no column {shown(name)!r}")
        return at

    def _all(self, names: tuple[Name, ...]) -> list[int]:
        return [self._one(name) for name in names]

    def _energy(self) -> list[tuple[list[int], str | None]]:
        """Columns that are added up, with the device that they name, if they do."""
        for names in self._source.layout.energy:
            name = names[0]
            if not isinstance(name, str) and "device" in name.groupindex:
                found = [(at, name.fullmatch(column)) for at, column in enumerate(self._table.columns)]
                return [([at], device_id(match["device"])) for at, match in found if match]
            if all(self._table.find(each) is not None for each in names):
                return [(self._all(names), None)]
        return []

    def values(self) -> Iterator[Value]:
        """What the rows hold."""
        source, layout = self._source, self._source.layout
        header = [column.lower() for column in self._table.columns]
        for line, cells in self._table.rows:
            first = tidy(cells[0])
            if (layout.skip is not None and layout.skip.match(first)) or [tidy(c).lower() for c in cells] == header:
                continue
            try:
                if all(wanted.fullmatch(tidy(self._cell(cells, at, name))) for at, name, wanted in self._where):
                    yield from self._of_row(line, cells)
            except _BadRow as error:
                source.bad(line, str(error))

    def _of_row(self, line: int, cells: list[str]) -> Iterator[Value]:
        source = self._source
        own = device_id(cells[self._device]) if self._device is not None and len(cells) > self._device else None
        unit = self._unit if self._unit_column is None else self._unit_of(cells)
        time: datetime | None = None
        for columns, named in self._groups:
            texts = [cells[at] if at < len(cells) else "" for at in columns]
            if any(map(is_missing, texts)):
                source.skipped.missing += 1
                continue
            time = time or self._time_of(cells)
            device = named or own or source.device
            if not device:
                raise _BadRow("the row names no device: say which one it is with --device")
            kwh = sum(self._number(text, at) for text, at in zip(texts, columns, strict=True)) * unit.factor
            yield Value(line, device, device, time, kwh, unit.is_power, self._voltage_of(cells))

    def _cell(self, cells: list[str], at: int, name: Name) -> str:
        if at >= len(cells):
            raise _BadRow(f"ends before the column {shown(name)!r}")
        return cells[at]

    def _number(self, text: str, at: int) -> float:
        try:
            return number(text, self._source.layout.decimal)
        except ValueError:
            hint = (
                " (is it a decimal comma? say --decimal ,)"
                if "," in text and self._source.layout.decimal == "."
                else ""
            )
            raise _BadRow(f"{self._table.columns[at]} is {tidy(text)[:40]!r}, not a number{hint}") from None

    def _unit_of(self, cells: list[str]) -> Unit:
        try:
            return unit_of(cells[self._unit_column or 0])
        except (ValueError, IndexError) as error:
            raise _BadRow(str(error)) from None

    def _voltage_of(self, cells: list[str]) -> float | None:
        texts = [cells[at] for at in self._voltage if at < len(cells) and not is_missing(cells[at])]
        if not texts:
            return self._source.layout.voltage_v
        return sum(self._number(text, at) for text, at in zip(texts, self._voltage, strict=False)) / len(texts)

    def _time_of(self, cells: list[str]) -> datetime:
        layout = self._source.layout
        names, columns = (layout.day_hour, self._day_hour) if layout.day_hour else (layout.time, self._time)
        texts = [tidy(self._cell(cells, at, name)) for at, name in zip(columns, names, strict=True)]
        text = " ".join(texts).partition(" to ")[0]  # some write an interval in one cell
        try:
            if layout.day_hour:
                return self._hour_of_day(texts)
            return parse(text, layout.formats)
        except (ValueError, OverflowError):
            forms = " or ".join(layout.formats)
            raise _BadRow(f"{shown(names[0])} is {text[:40]!r}, not a time as {forms}") from None

    def _hour_of_day(self, texts: list[str]) -> datetime:
        """The end of the n-th hour of a local day: days have 23 to 25."""
        day = parse(texts[0], self._source.layout.formats)
        hour = int(number(texts[1].partition(":")[0], "."))
        if not 1 <= hour <= 25:
            raise ValueError(texts[1])
        return Clock(self._source.zone).day(day) + timedelta(hours=hour)


def _day_values(source: Source, table: Table) -> Iterator[Value]:
    layout = source.layout
    at_day = table.find(layout.time[0])
    columns = day_columns(table.columns)
    unit = unit_of(layout.unit)
    if source.device is None:
        raise FileError(f"{source.name}: no column names a device: say which one it is with --device")
    for line, cells in table.rows:
        try:
            day = parse(tidy(cells[at_day or 0]), layout.formats)
            found = []  # all of a row, or nothing
            for at, label in columns:
                cell = cells[at] if at < len(cells) else ""
                if is_missing(cell):
                    source.skipped.missing += 1
                    continue
                time = day + timedelta(hours=int(label[:2]), minutes=int(label[3:]))
                kwh = number(cell, layout.decimal) * unit.factor
                found.append(Value(line, source.device, source.device, time, kwh, unit.is_power))
            yield from found
        except (ValueError, IndexError, OverflowError) as error:
            source.bad(line, f"{str(error)[:60]!r} is neither a day nor a number")


def rows_of_nem12(source: Source, table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, reading) of a NEM12 file: energy that was imported, in the market's time, UTC+10 all year."""
    return timed(source, _nem12_values(source, table.rows))


def _nem12_values(source: Source, rows: Iterator[Row]) -> Iterator[Value]:
    stream: tuple[str, Unit, int] | None = None  # device, unit, minutes
    for line, cells in rows:
        record = tidy(cells[0])
        try:
            if record == "200":
                stream = None  # a record that cannot be read is not of the one before
                suffix, minutes = tidy(cells[4]), _minutes_of(cells[8])
                is_import = suffix.startswith("E") and tidy(cells[7]).lower() in {"wh", "kwh", "mwh"}
                device = f"{source.device or device_id(cells[1])}:{suffix}"  # a site may have several
                stream = (device, unit_of(cells[7]), minutes) if is_import else None
            elif record == "300" and stream is not None:
                yield from list(_nem12_day(source, line, cells, stream))  # all of a day, or nothing
            elif record not in {"100", "300", "400", "500", "900"}:
                source.bad(line, f"{record[:20]!r} is not a NEM12 record")
        except (ValueError, IndexError, OverflowError):
            source.bad(line, f"is not a NEM12 record {record[:20]}")


def _minutes_of(cell: str) -> int:
    """The length of a stream's intervals. ValueError unless a day is made of them."""
    minutes = int(cell)
    if minutes <= 0 or 1440 % minutes:
        raise ValueError(cell)
    return minutes


def _nem12_day(source: Source, line: int, cells: list[str], stream: tuple[str, Unit, int]) -> Iterator[Value]:
    device, unit, minutes = stream
    day = datetime.strptime(tidy(cells[1]), "%Y%m%d")  # noqa: DTZ007 - the market's time
    count = 1440 // minutes
    if len(cells) < 2 + count:
        source.bad(line, f"{count} values of {minutes} minutes are expected, there are {len(cells) - 2}")
        return
    for at in range(count):
        cell = cells[2 + at]
        if is_missing(cell):
            source.skipped.missing += 1
            continue
        time = day + timedelta(minutes=minutes * (at + 1))
        yield Value(line, device, device, time, number(cell, ".") * unit.factor, unit.is_power)
