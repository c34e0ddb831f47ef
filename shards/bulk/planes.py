"""Packing readings here instead of on a shard: the same rows as `storage.packing` makes, byte by byte. Pure.

A shard packs what it has; what comes from outside is packed before it gets there, many device-days at a time, so that
it crosses the wire in a few bytes and costs a shard little. Tests hold both to each other.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards.bulk.readings import DAY_US, Flags, Ints, Readings, Values
from shards.kinds import Type
from shards.storage.packing import DECIMALS, MARKED, SPAN_MAX, WHOLE_MAX, Column, Shape

_EPOCH: Final = date(1970, 1, 1)
_MILLION: Final = 1_000_000
_FINEST: Final = max(DECIMALS)


class _Days:
    """The device-days of sorted readings, and what is asked of each."""

    def __init__(self, readings: Readings) -> None:
        self.begins = readings.device_days()
        self.counts = np.diff(np.append(self.begins, len(readings)))
        self.days = readings.days[self.begins]
        self.devices = readings.device[self.begins]
        self.slices = list(zip(self.begins.tolist(), (self.begins + self.counts).tolist(), strict=True))

    def of_each(self, per_day: NDArray[Any]) -> NDArray[Any]:
        """Something of a day, for each of its readings."""
        return np.repeat(per_day, self.counts)

    def all(self, flags: Flags) -> Flags:
        return np.logical_and.reduceat(flags, self.begins)

    def any(self, flags: Flags) -> Flags:
        return np.logical_or.reduceat(flags, self.begins)

    def steps(self, whole: Ints) -> Ints:
        """The difference of each to the one before it; of a day's first: 0."""
        found = np.zeros(len(whole), np.int64)
        found[1:] = whole[1:] - whole[:-1]
        found[self.begins] = 0
        return found

    def cut(self, data: bytes, wanted: Flags) -> list[bytes | None]:
        """A byte for each reading, by day; None where it is not wanted."""
        pairs = zip(self.slices, wanted.tolist(), strict=True)
        return [data[begin:end] if is_wanted else None for (begin, end), is_wanted in pairs]

    def lists(self, data: NDArray[Any], wanted: Flags) -> list[list[Any] | None]:
        """The same of any values."""
        pairs = zip(self.slices, wanted.tolist(), strict=True)
        return [data[begin:end].tolist() if is_wanted else None for (begin, end), is_wanted in pairs]

    def planes(self, steps: Ints) -> Iterator[Sequence[object]]:
        """Low bytes, high bytes and the rest of differences; None where all of it is zero."""
        low = ((steps + 32768) & 65535) - 32768
        zigzag = ((low << 1) ^ (low >> 63)).astype(np.uint16)
        yield self.cut((zigzag & 255).astype(np.uint8).tobytes(), self.any(steps != 0))
        wide = self.any((steps < -128) | (steps > 127))
        yield self.cut((zigzag >> 8).astype(np.uint8).tobytes() if wide.any() else b"", wide)
        huge = self.any((steps < -32768) | (steps > 32767))
        yield self.lists(((steps + 32768) >> 16).astype(np.int32), huge)


def packed(shape: Shape, readings: Readings, bucket: int, tenant: int) -> list[tuple[object, ...]]:
    """Rows for the device-days of sorted readings, none twice: their columns as `Shape.listed` has them."""
    if not len(readings):
        return []
    days = _Days(readings)
    size = len(days.begins)
    columns: list[Sequence[object]] = [
        [_EPOCH + timedelta(days=day) for day in days.days.tolist()],
        [bucket] * size,
        [tenant] * size,
        [readings.devices[each] for each in days.devices.tolist()],
        days.counts.tolist(),
        *_times(days, readings.times - readings.days * DAY_US),
    ]
    for column, values in zip(shape.columns, readings.values, strict=True):
        columns.extend(_value(days, column, values))
    return list(zip(*columns, strict=True))


def _times(days: _Days, us: Ints) -> Iterator[Sequence[object]]:
    """unit, t_base, t_step, marks and the planes of differences."""
    unit = np.where(days.all(us % _MILLION == 0), _MILLION, np.where(days.all(us % 1000 == 0), 1000, 1))
    first, last = us[days.begins], us[days.begins + days.counts - 1]
    gaps = np.maximum(days.counts - 1, 1)
    seconds = np.rint((last - first).astype(np.float64) / gaps / 1e6).astype(np.int64)
    step = np.where(days.counts > 1, seconds, 0) * (_MILLION // unit)
    at = us // days.of_each(unit)
    yield unit.tolist()
    yield at[days.begins].tolist()
    yield step.tolist()
    yield [at[begin:end:MARKED].tolist() for begin, end in days.slices]
    steps = days.steps(at) - days.of_each(step)
    steps[days.begins] = 0
    yield from days.planes(steps)


def _value(days: _Days, column: Column, values: Values) -> Iterator[Sequence[object]]:
    """base, scale, planes and raw of one column; of a text: raw."""
    present = values.present
    counted = np.add.reduceat(present.astype(np.int64), days.begins)
    if column.type is Type.TEXT:
        yield _raw(days, values, counted > 0)
        return
    whole, exact = _whole(column, values)
    scale, scaled = _scaled(days, whole)
    fits = days.all(exact) & (counted == days.counts)
    spread = np.maximum.reduceat(scaled, days.begins) - np.minimum.reduceat(scaled, days.begins)
    packs = fits & (spread < SPAN_MAX)
    yield _where(packs, scaled[days.begins])
    yield _where(packs, scale)
    yield from days.planes(np.where(days.of_each(packs), days.steps(scaled), 0))
    yield _raw(days, values, ~packs & (counted > 0))


def _whole(column: Column, values: Values) -> tuple[Ints, Flags]:
    """Each value in millionths, and whether that says all of it."""
    value = _as_double(column, values.data)
    small = np.abs(value) <= WHOLE_MAX
    millionths = np.rint(np.where(small & values.present, value, 0.0) * 1e6)
    exact = small
    if column.type in {Type.FLOAT8, Type.FLOAT4}:
        back = (millionths / 1e6).astype(values.data.dtype)
        exact = small & (back == values.data) & ((values.data != 0) | ~np.signbit(values.data))
    return millionths.astype(np.int64), exact | ~values.present


def _as_double(column: Column, data: NDArray[Any]) -> NDArray[np.float64]:
    """A float4 is the double of its shortest text, as PostgreSQL shows it."""
    if column.type is not Type.FLOAT4:
        return data.astype(np.float64)
    different, where = np.unique(data, return_inverse=True)
    found: NDArray[np.float64] = np.array([float(str(each)) for each in different], np.float64)[where]
    # 0.0 and -0.0 are one to numpy.
    return np.where(data == 0, data.astype(np.float64), found)


def _scaled(days: _Days, whole: Ints) -> tuple[Ints, Ints]:
    """The least power of ten that fits all values of a day, and the values divided by what that leaves."""
    scale = np.full(len(days.begins), _FINEST, np.int64)
    for each in reversed(DECIMALS[:-1]):
        scale[days.all(whole % 10 ** (_FINEST - each) == 0)] = each
    return scale, whole // days.of_each(10 ** (_FINEST - scale))


def _raw(days: _Days, values: Values, wanted: Flags) -> Sequence[object]:
    if not wanted.any():
        return [None] * len(wanted)
    listed = values.listed()
    pairs = zip(days.slices, wanted.tolist(), strict=True)
    return [listed[begin:end] if is_wanted else None for (begin, end), is_wanted in pairs]


def _where(flags: Flags, data: Ints) -> list[int | None]:
    return [value if flag else None for value, flag in zip(data.tolist(), flags.tolist(), strict=True)]
