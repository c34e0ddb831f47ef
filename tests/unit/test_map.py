from dataclasses import replace

import pytest

from shards.buckets import BucketRange, bucket_of
from shards.catalog.shard_map import ShardMap, map_from_rows
from shards.errors import InvalidArgument
from shards.moves.placement import spread
from shards.shard import ShardRecord, ShardState


def test_a_map_from_rows() -> None:
    shard_map = map_from_rows(7, 4, [(0, "a"), (1, "b"), (2, "a"), (3, "b")])
    assert (shard_map.epoch, shard_map.bucket_count, shard_map.owner(2)) == (7, 4, "a")
    assert shard_map.by_shard == {"a": (0, 2), "b": (1, 3)}
    assert shard_map.regroup([3, 1, 1, 0]) == {"a": [0], "b": [1, 3]}
    assert shard_map.owner(shard_map.bucket(0, "METER-UCI")) in {"a", "b"}


@pytest.mark.parametrize("rows", [[(0, "a")], [(0, "a"), (0, "b")], [(0, "a"), (2, "a")], [(-1, "a"), (0, "a")]])
def test_a_map_with_holes_or_overlaps_is_none(rows: list[tuple[int, str]]) -> None:
    with pytest.raises(ValueError, match="bucket"):
        map_from_rows(1, 2, rows)


def test_spreading_is_even() -> None:
    owners = spread(64, ["a", "b", "c"])
    assert sorted(owners.count(name) for name in "abc") == [21, 21, 22]
    assert ShardMap(1, owners).by_shard.keys() == {"a", "b", "c"}


@pytest.mark.parametrize("names", [[], ["a", "b", "c"]])
def test_spreading_needs_shards_but_not_too_many(names: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        spread(2, names)


def test_pinned_tenants_have_ranges_behind_the_shared_buckets() -> None:
    pinned = {7: BucketRange(6, 2), 3: BucketRange(4, 2)}
    shard_map = map_from_rows(1, 4, [(bucket, f"s{bucket // 2}") for bucket in range(8)], pinned)
    assert (shard_map.bucket_count, shard_map.shared) == (8, BucketRange(0, 4))
    assert [list(shard_map.range_of(tenant).buckets) for tenant in (0, 3, 7)] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    for number in range(50):
        assert shard_map.owner(shard_map.bucket(3, f"D{number}")) == "s2"
        assert shard_map.owner(shard_map.bucket(7, f"D{number}")) == "s3"
        assert shard_map.bucket(0, f"D{number}") == bucket_of(f"D{number}", 4)


@pytest.mark.parametrize("start", [3, 5])
def test_ranges_follow_each_other_without_a_gap(start: int) -> None:
    with pytest.raises(ValueError, match=f"begin at {start}, not at 4"):
        map_from_rows(1, 4, [(bucket, "a") for bucket in range(6)], {1: BucketRange(start, 2)})


def test_a_shard_knows_tenants_when_its_reader_is_not_the_old_one() -> None:
    made = ShardRecord("a", ShardState.ACTIVE, "owner", "writer", "reader")
    assert made.has_tenants
    assert not replace(made, old_reader_dsn="reader").has_tenants
    assert replace(made, old_reader_dsn="old").has_tenants
