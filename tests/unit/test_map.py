import pytest

from shards.catalog.shard_map import ShardMap, map_from_rows
from shards.errors import InvalidArgument
from shards.moves.placement import spread


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
