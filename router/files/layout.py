"""What a file of readings looks like. Constants and checks only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from shards.errors import InvalidArgument

Name: TypeAlias = str | re.Pattern[str]  # a column's name, or several as A|B, whatever their case; or a whole pattern


class FileError(Exception):
    """The file cannot be used; the message names the line."""


class Label(StrEnum):
    """Which end of its interval a row's time is."""

    START = "start"
    END = "end"


class Shape(StrEnum):
    """How a file holds its values."""

    ROWS = "rows"  # a row for each interval
    DAYS = "days"  # a row for each day, a column for each interval, called HH:MM-HH:MM
    NEM12 = "nem12"  # the Australian market's records


_UNITS: Final = {"wh": 0.001, "kwh": 1.0, "kwhs": 1.0, "mwh": 1000.0, "w": 0.001, "kw": 1.0, "mw": 1000.0}
_POWERS: Final = frozenset({"w", "kw", "mw"})
UNITS: Final = ("Wh", "kWh", "MWh", "W", "kW", "MW")


@dataclass(frozen=True)
class Unit:
    """kWh (or kW) in one of it; an average power becomes energy by the length of the interval."""

    factor: float
    is_power: bool


def unit_of(text: str) -> Unit:
    """A unit by its name. InvalidArgument names what is not one."""
    name = text.strip().strip("[]()").lower()
    if name not in _UNITS:
        raise InvalidArgument(f"{text[:20]!r} is not a unit of energy or power: one of {', '.join(UNITS)}")
    return Unit(_UNITS[name], name in _POWERS)


@dataclass(frozen=True)
class Layout:
    """Where a table's values are.

    `time`: columns whose cells, joined by a blank, are the time, read as one of `formats` (strptime's, `iso`, `epoch`).
    `day_hour`: columns with a day and the number of the hour in it, from 1 (25 on the longest day). `energy`:
    alternatives, each of columns that are added up; the first that the file has counts; a pattern with a group `device`
    makes each column that it matches a device. `where`: column -> what its cell must match. `interval_s` None: as the
    file's times tell; 0: there is none, as of sessions. `zone` None: times have an offset. `skip`: rows without a
    reading, by their first cell.
    """

    time: tuple[Name, ...] = ()
    formats: tuple[str, ...] = ("iso",)
    energy: tuple[tuple[Name, ...], ...] = ()
    day_hour: tuple[Name, ...] = ()
    label: Label = Label.END
    unit: str = "kWh"
    unit_column: Name | None = None
    is_register: bool = False
    interval_s: float | None = None
    minutes_column: Name | None = None
    zone: str | None = None
    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    device: Name | None = None
    voltage: tuple[Name, ...] = ()
    voltage_v: float | None = None
    where: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    skip: re.Pattern[str] | None = None
    negative_is_zero: bool = False
    shape: Shape = Shape.ROWS

    def required(self) -> list[Name]:
        """The columns without which a file is not of this layout, but for those of `energy`."""
        optional = [name for name in (self.unit_column, self.device, self.minutes_column) if name is not None]
        return [*self.time, *self.day_hour, *self.where, *optional]


def shown(name: Name) -> str:
    """A column's name, for people."""
    return name.partition("|")[0] if isinstance(name, str) else f"/{name.pattern}/"


def wanted(layout: Layout) -> str:
    """The columns of a layout, for people."""
    if layout.shape is Shape.NEM12:
        return "records 100, 200, 300, without a header"
    columns = [shown(name) for name in [*layout.required(), *(layout.energy[0] if layout.energy else ())]]
    return ", ".join(dict.fromkeys(columns)) + (", 00:00-00:15, ..." if layout.shape is Shape.DAYS else "")
