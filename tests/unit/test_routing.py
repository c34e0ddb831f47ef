from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from router.ingest.decode import decode
from router.ingest.routing import Chunk, pieces, reroute, route
from shards.catalog.shard_map import ShardMap
from shards.kinds import METER, VALUES_AT, VEHICLE
from tests.support.readings import START, meter, vehicle
from tests.support.shapes import MIXED_SHAPE

TENANT = 3
NOW = START + timedelta(hours=1)


def decoded(items: list[dict[str, object]]) -> object:
    import orjson  # noqa: PLC0415

    return decode(orjson.dumps(items), MIXED_SHAPE, ndjson=False, readings_max=10_000)


@given(
    devices=st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.integers(0, 59)), max_size=60),
    owners=st.lists(st.sampled_from("abcd"), min_size=16, max_size=16),
    others=st.lists(st.sampled_from("abcd"), min_size=16, max_size=16),
    size=st.integers(1, 7),
)
def test_every_reading_goes_to_its_owner_exactly_once(
    devices: list[tuple[bool, int, int]], owners: list[str], others: list[str], size: int
) -> None:
    items = [(meter if is_meter else vehicle)(f"D{n}", minute) for is_meter, n, minute in devices]
    first, second = ShardMap(1, tuple(owners)), ShardMap(2, tuple(others))
    chunks, errors = route(decoded(items), first, TENANT, START, NOW)  # type: ignore[arg-type]
    assert errors == []
    again = reroute([(kind, chunk) for (_, kind), chunk in chunks.items()], second)
    for shard_map, found in ((first, chunks), (second, again)):
        indexes = []
        for (owner, kind), chunk in found.items():
            parts = pieces(chunk, size)
            check_pieces(parts, size)
            assert sorted(row for part in parts for row in part.rows) == sorted(chunk.rows)
            for row, index in zip(chunk.rows, chunk.indexes, strict=True):
                assert shard_map.owner(shard_map.bucket(TENANT, row[2])) == owner
                assert row[:2] == (shard_map.bucket(TENANT, row[2]), TENANT)
                assert kind is (METER if "meterId" in items[index] else VEHICLE)
            indexes += chunk.indexes
        assert sorted(indexes) == list(range(len(items)))


def check_pieces(parts: list[Chunk], size: int) -> None:
    """None is much larger than it must be, no key is in two, and a key's readings are in the order of the request."""
    keys: set[object] = set()
    for part in parts if len(parts) > 1 else ():
        runs: dict[object, list[int]] = {}
        for row, index in zip(part.rows, part.indexes, strict=True):
            runs.setdefault(row[:VALUES_AT], []).append(index)
        assert runs
        assert len(part.rows) <= max(size * 1.25, size - 1 + max(map(len, runs.values())))
        assert not runs.keys() & keys
        keys |= runs.keys()
        assert all(run == sorted(run) for run in runs.values())


def test_one_devices_backlog_is_cut_too() -> None:
    rows = [(0, TENANT, "M", START + timedelta(minutes=minute % 90), 1.0, 2.0, None) for minute in range(100)]
    parts = pieces(Chunk(list(rows), list(range(100))), 20)
    check_pieces(parts, 20)
    assert len(parts) == 5
    assert sorted(index for part in parts for index in part.indexes) == list(range(100))


def test_pieces_have_buckets_of_their_own_where_these_are_even() -> None:
    rows = [(2 * (number % 8), TENANT, f"M-{number}", START, 1.0, 2.0, None) for number in range(80)]
    parts = pieces(Chunk(list(rows), list(range(80))), 45)
    check_pieces(parts, 45)
    assert [sorted({row[0] for row in part.rows}) for part in parts] == [[0, 4, 8, 12], [2, 6, 10, 14]]


def test_readings_outside_the_accepted_time() -> None:
    items = [meter("M", -1), meter("M", 0), meter("M", 60), meter("M", 60.1)]
    chunks, errors = route(decoded(items), ShardMap(1, ("a",)), TENANT, START, NOW)  # type: ignore[arg-type]
    assert chunks["a", METER].indexes == [1, 2]
    assert [(e.index, e.pointer, e.code) for e in errors] == [
        (0, "/timestamp", "too_old"),
        (3, "/timestamp", "in_future"),
    ]
    assert "2026-05-01T00:00:00Z" in errors[0].detail


def test_a_small_chunk_is_not_copied() -> None:
    chunk = Chunk([(0, TENANT, "M", datetime.now(UTC), 1.0, 2.0)], [0])
    assert pieces(chunk, 5)[0] is chunk
