"""Putting the shards' answers together. Sums and counts add up; averages and ratios are made at the very end. Pure."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from shards.storage.read import Record


@dataclass(frozen=True)
class Sums:
    """Sums over readings of one kind. Energy in kWh; `temperature` only for vehicles."""

    devices: int = 0
    readings: int = 0
    energy: float = 0.0
    temperature: float = 0.0


def add(items: Iterable[Record]) -> Sums:
    """The sums of disjoint sets of readings. Exact (fsum), so that the order of the shards does not matter."""
    rows = list(items)
    return Sums(
        devices=sum(row.get("devices", 0) for row in rows),
        readings=sum(row["readings"] for row in rows),
        energy=math.fsum(row["energy"] for row in rows),
        temperature=math.fsum(row.get("temperature", 0.0) for row in rows),
    )


def add_series(items: Iterable[Record]) -> Mapping[datetime, Sums]:
    """Interval start -> sums."""
    grouped: dict[datetime, list[Record]] = {}
    for item in items:
        grouped.setdefault(item["starts"], []).append(item)
    return {start: add(rows) for start, rows in sorted(grouped.items())}


def mean(total: float, count: int) -> float | None:
    """Average, None of nothing."""
    return total / count if count else None


def newest(lists: Sequence[Sequence[Record]], limit: int) -> list[Record]:
    """The first `limit` of several lists that are each sorted by (timestamp, kind, device) descending."""
    merged = heapq.merge(*lists, key=lambda item: (item["timestamp"], item["kind"], item["device_id"]), reverse=True)
    return [item for item, _ in zip(merged, range(limit), strict=False)]
