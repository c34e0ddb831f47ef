"""What is made of a chart's data in the router: percentiles from sketches, filled gaps, fewer points. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from shards.storage.charts import GAMMA, OFFSET


class Fill(StrEnum):
    """What stands where an interval has no reading: nothing, null, the value before, a line between both sides."""

    NONE = "none"
    NULL = "null"
    PREVIOUS = "previous"
    LINEAR = "linear"


@dataclass(frozen=True)
class Values:
    """What is told of an interval. `percentiles`: as the shards' PERCENTILES; None: there is no reading."""

    readings: int = 0
    lowest: float | None = None
    highest: float | None = None
    mean: float | None = None
    weighted: float | None = None
    last: float | None = None
    total: float | None = None
    percentiles: tuple[float | None, ...] = (None, None, None)


def merged(sketches: Iterable[tuple[Sequence[int], Sequence[int]]]) -> dict[int, int]:
    """Sketches (keys, counts) as one: counts are added."""
    found: dict[int, int] = {}
    for keys, counts in sketches:
        for key, count in zip(keys, counts, strict=True):
            found[key] = found.get(key, 0) + count
    return found


def percentile(sketch: Mapping[int, int], share: float) -> float:
    """The value below which a share of a sketch's values lies; it has some."""
    rank, seen = share * (sum(sketch.values()) - 1), 0
    for key in sorted(sketch):
        seen += sketch[key]
        if seen > rank:
            return value_of(key)
    raise AssertionError


def value_of(key: int) -> float:
    """The middle of the values that have a key."""
    if key == 0:
        return 0.0
    size = 2 * GAMMA ** (abs(key) - OFFSET) / (GAMMA + 1)
    return size if key > 0 else -size


def filled(found: Mapping[int, Values], count: int, fill: Fill) -> dict[int, Values]:
    """Intervals by number, from 1 to `count`: those with readings, and what `fill` makes of the others."""
    if fill is Fill.NONE:
        return dict(found)
    every = {at: found.get(at, Values()) for at in range(1, count + 1)}
    if fill is Fill.PREVIOUS:
        last = None
        for at, values in every.items():
            if values.readings:
                last = values.last if values.last is not None else values.mean
            elif last is not None:
                every[at] = _constant(last)
    elif fill is Fill.LINEAR:
        for one, other in pairwise(sorted(found)):
            _join(every, one, other)
    return every


def _constant(value: float) -> Values:
    return Values(0, value, value, value, value, value)


def _join(every: dict[int, Values], one: int, other: int) -> None:
    first, second = every[one].mean, every[other].mean
    if first is None or second is None:
        return
    for at in range(one + 1, other):
        mean = first + (second - first) * (at - one) / (other - one)
        every[at] = replace(every[at], mean=mean)


def downsampled(xs: Sequence[float], ys: Sequence[float], count: int) -> list[int]:
    """Which of the points to show, `count` of them at most: largest triangle, three buckets (Steinarsson, 2013).

    The first and the last always; of each bucket between them the one that makes the largest triangle with the point
    chosen before and the mean of the bucket behind. `count`: 3 or more.
    """
    size = len(xs)
    if size <= count:
        return [*range(size)]
    width = (size - 2) / (count - 2)
    edges = [int(at * width) + 1 for at in range(count - 1)]
    chosen = [0]
    for at in range(count - 2):
        behind, past = edges[at + 1], edges[at + 2] if at + 2 < count - 1 else size
        many = past - behind
        mean_x, mean_y = sum(xs[behind:past]) / many, sum(ys[behind:past]) / many
        x, y = xs[chosen[-1]], ys[chosen[-1]]
        wide, high = mean_x - x, mean_y - y
        areas = [abs((xs[i] - x) * high - wide * (ys[i] - y)) for i in range(edges[at], behind)]
        chosen.append(edges[at] + areas.index(max(areas)))
    return [*chosen, size - 1]
