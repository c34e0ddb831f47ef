import csv
from pathlib import Path

import pytest

from shards.buckets import BUCKETS_DEFAULT, HASH_SEED, bucket_of, check_bucket_count
from shards.errors import InvalidArgument

GOLDEN = Path(__file__).with_name("golden_buckets.csv")


def test_a_thousand_devices_stay_where_they_are() -> None:
    """If this fails, every cluster in the world would look for its devices on the wrong shard."""
    with GOLDEN.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1_000
    for row in rows:
        assert bucket_of(row["device_id"], 64) == int(row["bucket_of_64"])
        assert bucket_of(row["device_id"], 1024) == int(row["hash"]) % 1024
    assert len({row["bucket_of_64"] for row in rows}) == 64


def test_constants_that_can_never_change() -> None:
    assert (HASH_SEED, BUCKETS_DEFAULT) == (0, 64)


@pytest.mark.parametrize("count", [1, 2, 64, 1024])
def test_possible_counts(count: int) -> None:
    assert check_bucket_count(count) == count


@pytest.mark.parametrize("count", [0, -1, 3, 63, 2048])
def test_impossible_counts(count: int) -> None:
    with pytest.raises(InvalidArgument, match=str(count)):
        check_bucket_count(count)
