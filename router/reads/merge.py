"""Putting the shards' answers together. Sums and counts add up; averages and ratios are made at the very end. Pure."""

import functools
import heapq
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shards.ratings import Ratings
from shards.storage.rows import Record


@dataclass(frozen=True)
class Sums:
    """Sums over readings. Energy in kWh; `temperature` is the sum of `temperatures` values.

    `mixed`: devices that sent both energies and registers; `per_minute`: readings that all should send; `tiers`: where
    they were found.
    """

    devices: int = 0
    readings: int = 0
    mixed: int = 0
    suspect: int = 0
    per_minute: float = 0.0
    energy: float = 0.0
    temperature: float = 0.0
    temperatures: int = 0
    tiers: int = 0


def add(items: Iterable[Record], ratings: Ratings, *, all_energy: bool = False) -> Sums:
    """The sums of disjoint sets of readings. Exact (fsum), so that the order of the shards does not matter.

    `all_energy`: with the energies that are implausible.
    """
    rows = list(items)
    energies = [row["energy"] for row in rows] + [row["suspect_energy"] for row in rows if all_energy]
    expected = 60 / ratings.interval_s()
    return Sums(
        devices=sum(row.get("devices", 0) for row in rows),
        readings=sum(row.get("readings", 0) for row in rows),
        mixed=sum(row.get("mixed", 0) for row in rows),
        suspect=sum(row["suspect"] for row in rows),
        per_minute=math.fsum(row.get("per_minute") or row.get("devices", 0) * expected for row in rows),
        energy=math.fsum(energies),
        temperature=math.fsum(row.get("temperature", 0.0) for row in rows),
        temperatures=sum(row.get("temperatures", 0) for row in rows),
        tiers=union_of(row.get("tiers", 0) for row in rows),
    )


def together(parts: Iterable[Sums]) -> Sums:
    """The sums of several kinds."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    return Sums(
        devices=sum(each.devices for each in found),
        readings=sum(each.readings for each in found),
        mixed=sum(each.mixed for each in found),
        suspect=sum(each.suspect for each in found),
        per_minute=math.fsum(each.per_minute for each in found),
        energy=math.fsum(each.energy for each in found),
        temperature=math.fsum(each.temperature for each in found),
        temperatures=sum(each.temperatures for each in found),
        tiers=union_of(each.tiers for each in found),
    )


def add_series(items: Iterable[Record], ratings: Ratings, *, all_energy: bool = False) -> Mapping[int, Sums]:
    """Number of the interval -> sums."""
    grouped: dict[int, list[Record]] = {}
    for item in items:
        grouped.setdefault(item["bin"], []).append(item)
    return {at: add(rows, ratings, all_energy=all_energy) for at, rows in sorted(grouped.items())}


def union_of(flags: Iterable[int]) -> int:
    """Every bit that any of them has."""
    return functools.reduce(operator.or_, flags, 0)


def mean(total: float, count: int) -> float | None:
    """Average, None of nothing."""
    return total / count if count else None


def newest(lists: Sequence[Sequence[Record]], limit: int) -> list[Record]:
    """The first `limit` of several lists that are each sorted by (timestamp, kind, device) descending."""
    merged = heapq.merge(*lists, key=lambda item: (item["timestamp"], item["kind"], item["device_id"]), reverse=True)
    return [item for item, _ in zip(merged, range(limit), strict=False)]
