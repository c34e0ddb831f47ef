"""Periods of time, open at the start and closed at the end. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Window:
    """Instants with `start < instant <= end`: kWh belong to the interval that ends at a reading's timestamp."""

    start: datetime
    end: datetime


def union(windows: Sequence[Window]) -> list[Window]:
    """The same instants as disjoint windows, ascending."""
    merged: list[Window] = []
    for window in sorted(windows, key=lambda w: (w.start, w.end)):
        if merged and window.start <= merged[-1].end:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged
