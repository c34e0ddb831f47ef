"""The rollups of readings: sums of each device by the hour, and of all by the minute, as `storage.rollups` makes them.

An hour, or a minute, holds the readings after its beginning up to its end. Pure.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards.bulk.readings import Flags, Ints, Readings, Values, starts
from shards.kinds import Kind
from shards.storage.packing import Shape
from shards.storage.parts import COUNT, DEGREE, KWH
from shards.storage.spans import are_kept

_MINUTE_US: Final = 60_000_000
_HOUR_US: Final = 60 * _MINUTE_US
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SAFE: Final = 2.0**62  # a sum above it might not fit in 64 bits


def fit(kind: Kind, shape: Shape, readings: Readings) -> bool:
    """Whether all sums of these readings fit in 64 bits."""
    parts = _Summed(kind, shape, readings).parts
    return all(float(np.abs(each).max(initial=0)) * len(each) < _SAFE for each in parts)


class _Summed:
    """What is summed of readings, each in whole parts."""

    def __init__(self, kind: Kind, shape: Shape, readings: Readings) -> None:
        columns = {column.name: values for column, values in zip(shape.columns, readings.values, strict=True)}
        nothing = Values(np.zeros(len(readings)), np.zeros(len(readings), np.bool_))
        self.energy = columns[kind.energy] if kind.energy else nothing
        self.register = columns[kind.register] if kind.register else nothing
        self.temperature = columns[kind.temperature] if kind.temperature else nothing
        self.parts = _parts(self.energy, KWH), _parts(self.temperature, DEGREE)

    def by(self, begins: Ints, order: NDArray[np.int64] | None = None) -> Iterator[Sequence[Any]]:
        """readings, energies, registers, temperatures, energy, temperature and the largest energy of each group."""
        size = len(self.energy.data)
        yield np.diff(np.append(begins, size)).tolist()
        for each in (self.energy, self.register, self.temperature):
            yield np.add.reduceat(_ordered(each.present, order).astype(np.int64), begins).tolist()
        for parts in self.parts:
            yield np.add.reduceat(_ordered(parts, order), begins).tolist()
        there = _ordered(self.energy.present, order)
        kwh = np.where(there, _ordered(self.energy.data, order).astype(np.float64), -np.inf)
        yield [None if most == -np.inf else most for most in np.maximum.reduceat(kwh, begins).tolist()]


def _ordered(data: NDArray[Any], order: NDArray[np.int64] | None) -> NDArray[Any]:
    return data if order is None else data[order]


def _parts(values: Values, unit: str) -> Ints:
    return np.rint(np.where(values.present, values.data.astype(np.float64), 0.0) * float(unit)).astype(np.int64)


def hours(kind: Kind, shape: Shape, readings: Readings, bucket: int, tenant: int) -> list[tuple[object, ...]]:
    """at, bucket, tenant, device, the sums, minutes as bits; what registers counted, and when the newest count was.

    The readings are sorted.
    """
    if not len(readings):
        return []
    before = readings.times - 1
    hour = np.floor_divide(before, _HOUR_US)
    begins = starts(readings.device, hour)
    bits = np.left_shift(np.int64(1), np.floor_divide(before, _MINUTE_US) % 60)
    found = [
        _moments(hour[begins] * _HOUR_US),
        [bucket] * len(begins),
        [tenant] * len(begins),
        [readings.devices[each] for each in readings.device[begins].tolist()],
        *_Summed(kind, shape, readings).by(begins),
        np.bitwise_or.reduceat(bits, begins).tolist(),
        *_spans(kind, shape, readings, begins),
    ]
    return list(zip(*found, strict=True))


def _spans(kind: Kind, shape: Shape, readings: Readings, begins: Ints) -> tuple[list[object], list[object]]:
    """The `count_span` of each hour, and when its newest count was; None where there is none, or counts fall in it."""
    spans: list[object] = [None] * len(begins)
    ends: list[object] = [None] * len(begins)
    places = [at for at, column in enumerate(shape.columns) if column.name == kind.register]
    some = np.flatnonzero(readings.values[places[0]].present) if are_kept(kind) and places else np.zeros(0, np.int64)
    if not len(some):
        return spans, ends
    counts = _parts(readings.values[places[0]].at(some), COUNT)
    times = readings.times[some]
    hour = np.searchsorted(begins, some, side="right") - 1
    first = starts(hour)
    last = np.append(first[1:], len(some)) - 1
    steps = np.diff(counts, prepend=counts[0])
    steps[first] = 1  # the first one of an hour is above nothing
    falls = np.minimum.reduceat(steps, first) < 0
    rises = np.flatnonzero(steps > 0)
    rates = np.zeros(len(rises))
    rates[1:] = np.diff(counts[rises]) / np.maximum(np.diff(times[rises]) / 1e6, 1e-6)
    begin = np.searchsorted(rises, first)
    rates[begin] = 0
    risen = times[rises[np.append(begin[1:], len(rises)) - 1]]
    found = zip(
        np.diff(np.append(first, len(some))).tolist(),
        counts[first].tolist(),
        counts[last].tolist(),
        _moments(times[first]),
        _moments(risen),
        np.maximum.reduceat(rates, begin).tolist(),
        _moments(times[last]),
        falls.tolist(),
        hour[first].tolist(),
        strict=True,
    )
    for counted, lowest, highest, began, rose, rate, until, is_odd, at in found:
        if not is_odd:
            spans[at], ends[at] = (counted, lowest, highest, highest, began, rose, rate, None), until
    return spans, ends


def minutes(kind: Kind, shape: Shape, readings: Readings, bucket: int, tenant: int) -> list[tuple[object, ...]]:
    """at, bucket, tenant and the sums of all devices together."""
    if not len(readings):
        return []
    minute = np.floor_divide(readings.times - 1, _MINUTE_US)
    order = np.argsort(minute, kind="stable")
    begins = starts(minute[order])
    found = [
        _moments(minute[order][begins] * _MINUTE_US),
        [bucket] * len(begins),
        [tenant] * len(begins),
        *_Summed(kind, shape, readings).by(begins, order),
    ]
    return list(zip(*found, strict=True))


def _moments(us: Ints) -> list[datetime]:
    return [_EPOCH + timedelta(microseconds=each) for each in us.tolist()]


def flags_of_newest(readings: Readings, values: Sequence[Values]) -> Flags:
    """The newest reading of each device, and the newest that has something of each of these columns."""
    found = np.zeros(len(readings), np.bool_)
    ends = np.append(starts(readings.device)[1:], len(readings)) - 1 if len(readings) else np.zeros(0, np.int64)
    found[ends] = True
    for each in values:
        some = np.flatnonzero(each.present)
        if len(some):
            last = np.append(starts(readings.device[some])[1:], len(some)) - 1
            found[some[last]] = True
    return found
