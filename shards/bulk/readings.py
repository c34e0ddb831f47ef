"""Readings of one tenant in one bucket as arrays, in the order of device and time. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]
DAY_US: Final = 86_400_000_000


@dataclass(frozen=True)
class Values:
    """One column: its data (anything where nothing is there), and which of them are there (None: all)."""

    data: NDArray[Any]
    there: Flags | None = None

    @property
    def present(self) -> Flags:
        return np.ones(len(self.data), np.bool_) if self.there is None else self.there

    def at(self, which: Any) -> "Values":
        """Those at these places (indexes, flags or a slice)."""
        return Values(self.data[which], None if self.there is None else self.there[which])

    def listed(self) -> list[Any]:
        """As Python has them; None where nothing is there."""
        found: list[Any] = self.data.tolist()
        if self.there is None:
            return found
        return [value if there else None for value, there in zip(found, self.there.tolist(), strict=True)]


@dataclass(frozen=True)
class Readings:
    """`device`: places in `devices`, which are sorted; `times`: microseconds from 1970; values by column of a Shape."""

    devices: Sequence[str]
    device: NDArray[np.int32]
    times: Ints
    values: Sequence[Values]

    def __len__(self) -> int:
        return len(self.times)

    def at(self, which: Any) -> "Readings":
        """Those at these places."""
        values = [each.at(which) for each in self.values]
        return Readings(self.devices, self.device[which], self.times[which], values)

    @property
    def days(self) -> Ints:
        """The day (UTC) of each, from 1970."""
        return np.floor_divide(self.times, DAY_US)

    def arranged(self, places: Sequence[int | None]) -> "Readings":
        """With columns in another order; None: one of which nothing is there."""
        nothing = Values(np.zeros(len(self)), np.zeros(len(self), np.bool_))
        values = [nothing if at is None else self.values[at] for at in places]
        return Readings(self.devices, self.device, self.times, values)

    def device_days(self) -> Ints:
        """Where each device's day begins."""
        return starts(self.device, self.days)

    def sorted(self) -> "Readings":
        """By device and time; of two with one key the one that came first stays first."""
        return self.at(np.lexsort((self.times, self.device)))

    def without_repeats(self) -> tuple["Readings", int, int]:
        """The first of each key, how many repeats there were, and how many of them had other values."""
        first = starts(self.device, self.times)
        if len(first) == len(self):
            return self, 0, 0
        kept = np.zeros(len(self), np.bool_)
        kept[first] = True
        of_first = np.repeat(first, np.diff(np.append(first, len(self))))
        repeats = np.flatnonzero(~kept)
        other = np.zeros(len(repeats), np.bool_)
        for each in self.values:
            other |= _differ(each, repeats, of_first[repeats])
        return self.at(kept), len(repeats) - int(other.sum()), int(other.sum())

    def merged(self) -> tuple["Readings", int]:
        """Of sorted parts of readings, whole ones, of each value the first; and how many had different ones."""
        begins = starts(self.device, self.times)
        group = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(self))))
        differs, values = np.zeros(len(begins), np.bool_), []
        for each in self.values:
            some = np.flatnonzero(each.present)
            groups, first = np.unique(group[some], return_index=True)
            data, there = each.data[begins].copy(), np.zeros(len(begins), np.bool_)
            data[groups], there[groups] = each.data[some[first]], True
            differs[group[some][data[group[some]] != each.data[some]]] = True
            values.append(Values(data, None if there.all() else there))
        return Readings(self.devices, self.device[begins], self.times[begins], values), int(differs.sum())

    def portions(self, size: int) -> Iterator[Ints]:
        """The places of some devices' days, about `size` readings each, never a part of a day."""
        begins = self.device_days()
        counts = np.diff(np.append(begins, len(self)))
        days = self.days[begins]
        order = np.argsort(days, kind="stable")  # a day of many devices: they share its minutes
        upto = np.cumsum(counts[order])
        cuts = np.flatnonzero(np.diff(upto // size, prepend=0)) if len(upto) else np.zeros(0, np.int64)
        for some in np.split(order, cuts):
            if len(some):
                chosen = np.sort(some)
                yield _ranges(begins[chosen], counts[chosen])


def starts(*keys: NDArray[Any]) -> Ints:
    """Where something else begins, of arrays that are sorted."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    changes = np.ones(len(keys[0]), np.bool_)
    changes[1:] = False
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)


def _ranges(begins: Ints, counts: Ints) -> Ints:
    """The places in ranges, one after the other."""
    offsets = np.repeat(begins - np.append(0, np.cumsum(counts)[:-1]), counts)
    return offsets + np.arange(counts.sum())


def _differ(values: Values, one: Ints, other: Ints) -> Flags:
    """Which of `one` are not what `other` are, also 0.0 and -0.0: nothing is there where nothing is there."""
    there, here = values.present[one], values.present[other]
    mine, others = values.data[one], values.data[other]
    differs = np.asarray(mine != others, np.bool_)
    if mine.dtype.kind == "f":
        differs |= np.signbit(mine) != np.signbit(others)
    result: Flags = (there != here) | (there & here & differs)
    return result
