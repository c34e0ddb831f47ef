"""From decoded readings to the chunks that go to each shard. Pure: the caller brings map and time limits."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Final, TypeAlias

from router.ingest.shapes import Decoded
from router.wire.complaints import ItemError
from shards.buckets import bucket_of
from shards.catalog.shard_map import ShardMap
from shards.kinds import Kind, Row

_key: Final = itemgetter(0, 1, 2, 3)  # of a row: bucket, tenant, device, time
_UNEVEN_MAX: Final = 1.25  # times what a piece should hold at most


@dataclass(slots=True)
class Chunk:
    """Rows of one request for one shard and kind; `indexes[i]` is the position of `rows[i]` in the request."""

    rows: list[Row] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)


Chunks: TypeAlias = dict[tuple[str, Kind], Chunk]


def route(
    decoded: Decoded, shard_map: ShardMap, tenant: int, earliest: datetime, latest: datetime
) -> tuple[Chunks, list[ItemError]]:
    """Chunks of a tenant's readings by (shard, kind), and an error for each reading outside `earliest` .. `latest`."""
    errors: list[ItemError] = []
    chunks: Chunks = {}
    owners, mine = shard_map.owners, shard_map.range_of(tenant)
    start, count = mine.start, mine.count
    for kind, items in decoded.readings.items():
        by_owner: defaultdict[str, Chunk] = defaultdict(Chunk)
        for index, cells in zip(items.indexes, items.cells, strict=True):
            if earliest <= cells[1] <= latest:
                bucket = start + bucket_of(cells[0], count)
                chunk = by_owner[owners[bucket]]
                # Twice as fast as to unpack the cells into it.
                chunk.rows.append((bucket, tenant) + cells)  # type: ignore[arg-type]  # noqa: RUF005
                chunk.indexes.append(index)
            else:
                errors.append(_out_of_time(index, cells[1], earliest, latest))
        for owner, chunk in by_owner.items():
            chunks[owner, kind] = chunk
    return chunks, errors


def _add(chunks: Chunks, key: tuple[str, Kind], row: Row, index: int) -> None:
    chunk = chunks.get(key)
    if chunk is None:
        chunk = chunks[key] = Chunk()
    chunk.rows.append(row)
    chunk.indexes.append(index)


def _out_of_time(index: int, timestamp: datetime, earliest: datetime, latest: datetime) -> ItemError:
    if timestamp > latest:
        return ItemError(index, "/timestamp", "in_future", f"must not be after {_shown(latest)}")
    return ItemError(index, "/timestamp", "too_old", f"must not be before {_shown(earliest)}")


def _shown(moment: datetime) -> str:
    return moment.replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def reroute(stale: Iterable[tuple[Kind, Chunk]], shard_map: ShardMap) -> Chunks:
    """The same rows by the owners of another map."""
    chunks: Chunks = {}
    for kind, chunk in stale:
        for row, index in zip(chunk.rows, chunk.indexes, strict=True):
            _add(chunks, (shard_map.owners[row[0]], kind), row, index)
    return chunks


def pieces(chunk: Chunk, rows_max: int) -> list[Chunk]:
    """The chunk, cut into chunks of about `rows_max` rows; readings with one key stay together, in their order.

    So it does not matter in which order the pieces are committed: of two readings with one key the first counts.
    """
    count = len(chunk.rows)
    if count <= rows_max:
        return [chunk]
    # By bucket, so that a transaction opens a part of the leaves: 9 % less of PostgreSQL's time than by device. Either
    # costs a tenth of sorting; but one bucket, or one device, may have sent most of it.
    parts = count // rows_max + 1
    ranks = {bucket: rank % parts for rank, bucket in enumerate(sorted({row[0] for row in chunk.rows}))}
    for places in ((ranks[row[0]] for row in chunk.rows), (hash(row[2]) % parts for row in chunk.rows)):
        cut = _by_place(chunk, places, parts)
        if all(len(piece.rows) <= rows_max * _UNEVEN_MAX for piece in cut):
            return [piece for piece in cut if piece.rows]
    return _by_key(chunk, rows_max)


def _by_place(chunk: Chunk, places: Iterable[int], parts: int) -> list[Chunk]:
    found = [Chunk() for _ in range(parts)]
    for place, row, index in zip(places, chunk.rows, chunk.indexes, strict=True):
        found[place].rows.append(row)
        found[place].indexes.append(index)
    return found


def _by_key(chunk: Chunk, rows_max: int) -> list[Chunk]:
    count, keys = len(chunk.rows), list(map(_key, chunk.rows))
    order = sorted(range(count), key=keys.__getitem__)
    rows, indexes = [chunk.rows[at] for at in order], [chunk.indexes[at] for at in order]
    found, start = [], 0
    while start < count:
        end = start + rows_max
        while end < count and _key(rows[end]) == _key(rows[end - 1]):
            end += 1
        found.append(Chunk(rows[start:end], indexes[start:end]))
        start = end
    return found
