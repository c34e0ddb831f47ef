"""When a batch is taken for new."""

import pytest

from shards.kinds import VEHICLE, Kind
from shards.storage.repeats import Repeats
from shards.storage.write import _statement
from tests.support.declared import CHARGER


def test_whoever_met_a_repeat_expects_others_for_256_batches() -> None:
    repeats = Repeats()
    told = [repeats.expected]
    repeats.met()
    for _ in range(255):
        repeats.missed()
        assert repeats.expected
    repeats.met()
    for _ in range(256):
        assert repeats.expected
        repeats.missed()
    told.append(repeats.expected)
    repeats.missed()
    assert [*told, repeats.expected] == [False] * 3


@pytest.mark.parametrize("kind", [VEHICLE, CHARGER], ids=["whole", "kept"])
def test_what_is_new_is_counted_before_the_status(kind: Kind) -> None:
    """The count reads all of `stored`, so history is locked before status, as every batch does."""
    sql = _statement(kind, (), all_new=True)
    assert "ON CONFLICT DO NOTHING" not in sql
    assert sql.endswith("SELECT count(*) AS new_count FROM stored\n")
