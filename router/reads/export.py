"""Readings as they were sent, by device and time, in parts that each are answered in time.

A part ends after so many lines, or when half of the time of a request is over; its cursor says where the next begins.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from router.reads.devices import BEHIND, EVER
from router.reads.fanout import fan_out
from router.reads.scope import Scope
from router.wire.parameters import decode_cursor, encode_cursor, read_device, read_moment, window
from router.wire.queries import ExportQuery
from shards.kinds import Kind
from shards.storage import read
from shards.storage.rows import Reader, Record, Rows
from shards.window import Window

SHORT: Final = timedelta(days=2)  # a period that several devices are asked for at once
DEVICES_MAX: Final = 32


@dataclass(frozen=True)
class Part:
    """Some readings, and the cursor of what follows them: None at the end."""

    rows: list[Record]
    next: str | None


@dataclass
class _Place:
    """How far an export came: behind a device, or within one (`at`: behind a time of it)."""

    device: str
    at: datetime | None = None

    def cursor(self, end: datetime) -> str:
        return encode_cursor(self.device, self.at.isoformat() if self.at else "", end.isoformat())


class _Export:
    def __init__(self, scope: Scope, kind: Kind, query: ExportQuery) -> None:
        self._scope, self._kind, self._query = scope, kind, query
        self._period, self._place = _beginning(scope, query)
        self._ends_at = (time.monotonic() + scope.deadline) / 2
        self.rows: list[Record] = []

    async def part(self) -> Part:
        """Devices together while their period is short, else one after the other."""
        count, most = 1, DEVICES_MAX if self._period.end - self._period.start <= SHORT else 1
        while self._left and time.monotonic() < self._ends_at:
            if self._place.at is not None:
                await self._of([self._place.device], Window(self._place.at, self._period.end))
            elif ids := await self._devices(count):
                await self._of(ids, self._period)
                count = min(count * 2, most)
            else:
                return Part(self.rows, None)
        return Part(self.rows, self._place.cursor(self._period.end))

    @property
    def _left(self) -> int:
        return self._query.limit - len(self.rows)

    async def _of(self, ids: Sequence[str], period: Window) -> None:
        """As many of their readings as there is room for."""
        left = self._left
        found = await self._read(ids, period, left)
        self.rows += found
        if len(found) == left:
            self._place = _Place(found[-1][self._kind.id_column], found[-1]["timestamp"])
        else:
            self._place = _Place(ids[-1])

    async def _read(self, ids: Sequence[str], period: Window, limit: int) -> list[Record]:
        """The first `limit` readings of some devices. A shard that gave so many has none before its last one."""
        scope, kind = self._scope, self._kind

        async def ask(reader: Reader, buckets: list[int]) -> Iterable[Rows]:
            return [await read.export(reader, kind, buckets, ids, period, limit)]

        buckets = {scope.cluster.map.bucket(scope.tenant, device) for device in ids}
        merged = await fan_out(scope, ask, buckets=buckets)
        rows = [row for part in merged.parts for row in part.rows]
        return sorted(rows, key=lambda row: (row[kind.id_column], row["timestamp"]))[:limit]

    async def _devices(self, count: int) -> list[str]:
        """The next devices."""
        if self._query.device is not None:
            return [self._query.device] if self._place.device < self._query.device else []
        scope, kind = self._scope, self._kind

        async def ask(reader: Reader, buckets: list[int]) -> Iterable[Rows]:
            return [await read.devices(reader, kind, buckets, (self._place.device, BEHIND), count)]

        merged = await fan_out(scope, ask)
        return sorted(str(row[kind.id_column]) for part in merged.parts for row in part.rows)[:count]


def _beginning(scope: Scope, query: ExportQuery) -> tuple[Window, _Place]:
    """The period, and where a cursor left off. Its end stays that of the first part."""
    cursor = decode_cursor(query.cursor, 3)
    if cursor is None:
        return window(query.start or EVER, query.end, scope.now), _Place("")
    device, at, end = cursor
    period = window(query.start or EVER, read_moment(end, "cursor"), scope.now)
    place = _Place(read_device(device, "cursor") if device else "", read_moment(at, "cursor") if at else None)
    return period, place


async def export(scope: Scope, kind: Kind, query: ExportQuery) -> Part:
    """ProblemError 503 when a shard does not answer: the same part can be asked for again."""
    return await _Export(scope, kind, query).part()
