"""One device: its current status, always from the primary of the shard that owns it; and its history."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from router.reads.fanout import fan_out
from router.reads.scope import Scope, Seen
from router.statuses.cache import StatusCache, seal, unseal
from router.statuses.lease import Fresh
from router.wire.answers import Answer, DeviceList, HistoryPage, encode
from router.wire.parameters import decode_cursor, encode_cursor, read_moment, window
from router.wire.problems import NOT_FOUND, ProblemError, archived
from router.wire.queries import DevicesQuery, HistoryQuery
from router.wire.stored import history_type, status_of
from shards.catalog import devices as settings
from shards.clock import deadline_in
from shards.errors import ShardError
from shards.kinds import Kind
from shards.storage import read, tiers
from shards.storage.rows import Reader, Record, Rows
from shards.window import Window

EVER: Final = datetime(2, 1, 1, tzinfo=UTC)  # no reading is older
CATALOG_PATIENCE_S: Final = 1.0
BEHIND: Final = "\x7f"  # sorts behind every character of an ID
RESOLUTION: Final = timedelta(microseconds=1)  # of PostgreSQL's timestamps


async def status(scope: Scope, kind: Kind, device_id: str) -> Answer:
    """Current status of a device. ProblemError 404 when it is unknown, 503 when its shard does not answer."""
    row = await find_status(scope, kind, device_id)
    if row is None:
        raise unknown(kind, device_id)
    return status_of(kind, row)


async def status_kept(scope: Scope, statuses: StatusCache, kind: Kind, device_id: str) -> bytes:
    """The same from Redis, or kept there for the next one: the answer as JSON."""

    async def ask() -> Fresh:
        own = replace(scope, seen=Seen())
        row = await find_status(own, kind, device_id, settled=True)
        if row is None:
            raise unknown(kind, device_id)
        # Of a bucket that is fenced, this copy is the old one as soon as the other takes writes.
        is_settled = row.pop("is_settled")
        return Fresh(seal(own.seen.as_of, encode(status_of(kind, row))), is_settled)

    found = await statuses.read(kind, scope.tenant, device_id, ask)
    as_of, answer = unseal(found.value)
    scope.seen.times.append(as_of)
    scope.seen.cache = found.outcome.value
    return answer


def unknown(kind: Kind, device_id: str) -> ProblemError:
    """A 404 about a device."""
    return ProblemError(NOT_FOUND, f"no {kind.name} {device_id} has ever sent a reading")


async def find_status(scope: Scope, kind: Kind, device_id: str, *, settled: bool = False) -> Record | None:
    """The status row of a device, None when it is unknown. `settled`: with `is_settled`, see `shards.storage.read`."""
    bucket = scope.cluster.map.bucket(scope.tenant, device_id)

    async def ask(reader: Reader, _buckets: list[int]) -> Iterable[Rows]:
        return [await read.status(reader, kind, bucket, device_id, settled=settled)]

    merged = await fan_out(scope, ask, buckets=[bucket], primary=True)
    rows = [row for part in merged.parts for row in part.rows]
    return rows[0] if rows else None


async def devices(scope: Scope, kind: Kind, query: DevicesQuery) -> DeviceList[Any]:
    """Devices by ID, over all shards. ProblemError 503 when a shard does not answer, unless `partial` allows it."""
    prefix = query.prefix or ""
    cursor = decode_cursor(query.cursor, 1)
    # Just before the first ID with the prefix, or the last one of the page before; and just behind the last with it.
    between = (max(cursor[0] if cursor else "", prefix[:-1] + _before(prefix)), prefix + BEHIND)

    async def ask(reader: Reader, buckets: list[int]) -> Iterable[Rows]:
        return [await read.devices(reader, kind, buckets, between, query.limit + 1)]

    merged = await fan_out(scope, ask, partial=query.partial == "allow", primary=True)
    rows = sorted((row for part in merged.parts for row in part.rows), key=lambda row: str(row[kind.id_column]))
    page, rest = rows[: query.limit], rows[query.limit :]
    following = encode_cursor(page[-1][kind.id_column]) if rest else None
    return DeviceList([status_of(kind, row) for row in page], following, merged.is_partial, merged.shards())


def _before(prefix: str) -> str:
    """The end of a text that sorts right before `prefix` does: nothing that begins with it is left out."""
    return chr(ord(prefix[-1]) - 1) + BEHIND if prefix else ""


async def history(scope: Scope, kind: Kind, query: HistoryQuery) -> HistoryPage[Any]:
    """Readings of a device, newest first; 404 when it is unknown. A cursor carries the whole window: pages fit.

    A window that was asked for and reaches into archived time is a 409; without `from` the pages end there, and say so.
    """
    period = window(query.start or EVER, query.end, scope.now)
    cursor = decode_cursor(query.cursor, 2)
    if cursor is not None:
        # The last timestamp of the page before, and the window's start: what follows is strictly older.
        last, start = (read_moment(part, "cursor") for part in cursor)
        period = Window(start, max(last - RESOLUTION, start))
    bucket = scope.cluster.map.bucket(scope.tenant, query.id)

    async def ask(reader: Reader, _buckets: list[int]) -> Iterable[Rows]:
        rows = await read.history(reader, kind, (bucket, query.id), period, query.limit + 1)
        if counted := read.counts(kind, rows):
            await _add_energies(scope, reader, kind, (bucket, query.id), counted)
        return [rows]

    merged = await fan_out(scope, ask, buckets=[bucket])
    rows = [row for part in merged.parts for row in part.rows]
    if not rows and cursor is None and await find_status(scope, kind, query.id) is None:
        raise unknown(kind, query.id)
    until = next((part.archived_until for part in merged.parts), None)
    if until is not None and period.start > EVER:
        raise archived(kind.name, f"{until:%Y-%m-%d}")
    page, rest = rows[: query.limit], rows[query.limit :]
    following = encode_cursor(page[-1]["timestamp"].isoformat(), period.start.isoformat()) if rest else None
    wire_type = history_type(kind)
    found = tiers.names(sum({row.pop("tier") for row in page}))
    return HistoryPage([wire_type(**row) for row in page], following, found, until if following is None else None)


async def _add_energies(
    scope: Scope, reader: Reader, kind: Kind, place: tuple[int, str], counted: list[Record]
) -> None:
    """The catalog knows where a register begins again: while it is away, energies stay unknown (null)."""
    with contextlib.suppress(ShardError):
        patience = min(scope.deadline, deadline_in(CATALOG_PATIENCE_S))
        ratings = await settings.ratings_of(scope.cluster.catalog, scope.tenant, kind, [place[1]], patience)
        await read.add_energies(reader, kind, place, counted, ratings)
