"""What is due of history, by its policy; what operators may say; what routers know of frozen time."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from shards.archive.runner import end_of, leaves_now
from shards.catalog.archive import Entry, State
from shards.errors import InvalidArgument
from shards.kinds import Row
from shards.policy import Policies, Policy, duration_text, read_after, read_duration, read_hot
from shards.storage.horizons import BATCHES, Horizons
from shards.tiers.due import MERGE_AFTER, MERGE_READINGS, NEVER, Leaf, Step, Tiers, due

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
HOT = Policy("meter", timedelta(days=7))


def day(number: int) -> datetime:
    return datetime(2026, 11, number, tzinfo=UTC)


LEAVES = [Leaf("past", None, day(1)), *(Leaf(f"d{n}", day(n), day(n + 1)) for n in (18, 19, 20, 21, 22))]
FRESH = Tiers(0, "meter", LEAVES)


@pytest.mark.parametrize(
    ("text", "span"), [("36h", timedelta(hours=36)), ("7d", timedelta(days=7)), ("4w", timedelta(weeks=4))]
)
def test_durations(text: str, span: timedelta) -> None:
    assert read_duration(text, "--hot") == span
    assert read_duration(duration_text(span), "--hot") == span


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1d", "7 d", "1.5d", "7m", "7D", "1234567d", "7d7d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--hot .*as in 36h, 7d or 4w"):
        read_duration(text, "--hot")


@pytest.mark.parametrize("text", ["1h", "23h", "3661d", "999999w"])
def test_hot_has_limits(text: str) -> None:
    with pytest.raises(InvalidArgument, match="from 1d to 3660d"):
        read_hot(text)


def test_hot_within_its_limits() -> None:
    assert (read_hot("1d"), read_hot("3660d")) == (timedelta(days=1), timedelta(days=3660))


def test_the_oldest_leaf_is_frozen_first_and_none_that_is_young() -> None:
    frozen, order = FRESH, []
    while (step := due(frozen, HOT, NOW)) is not None:
        assert step is Step.FREEZE
        leaf = frozen.to_freeze(HOT, NOW)
        assert leaf is not None
        order.append(leaf.name)
        frozen = replace(frozen, frozen_until=leaf.upper)
        assert due(frozen, HOT, NOW) is Step.PACK
        assert frozen.to_pack is leaf
        frozen = replace(frozen, packed_until=leaf.upper, leaves=[each for each in frozen.leaves if each is not leaf])
    assert order == ["past", "d18", "d19", "d20"]  # d21 ends in the middle of what is hot
    assert due(replace(frozen, leaves=[]), HOT, NOW) is None


def test_what_was_begun_is_ended_first() -> None:
    frozen = replace(FRESH, frozen_until=day(1), late=MERGE_READINGS, undropped=1)
    assert due(frozen, HOT, NOW) is Step.PACK
    packed = replace(frozen, packed_until=day(1), leaves=LEAVES[1:])
    assert due(packed, HOT, NOW) is Step.DROP
    dropped = replace(packed, undropped=0)
    assert due(dropped, HOT, NOW) is Step.MERGE
    assert due(replace(dropped, late=0), HOT, NOW) is Step.FREEZE
    gone = replace(dropped, frozen_until=day(19), leaves=LEAVES[3:])
    assert (gone.to_pack, due(gone, HOT, NOW)) == (None, Step.PACK)


@pytest.mark.parametrize(
    ("late", "waited", "is_due"),
    [
        (0, MERGE_AFTER * 2, False),
        (1, MERGE_AFTER / 2, False),
        (1, MERGE_AFTER, True),
        (MERGE_READINGS, timedelta(0), True),
    ],
)
def test_late_readings_wait_for_others(late: int, waited: timedelta, is_due: bool) -> None:
    tiers = replace(FRESH, leaves=[], late=late, late_since=NOW - waited)
    assert (due(tiers, HOT, NOW) is Step.MERGE) is is_due
    assert not replace(tiers, late_since=None, late=1).is_merge_due(NOW)


def row(bucket: int, moment: datetime) -> Row:
    return (bucket, 0, "D", moment, 1.0)


def test_batches_are_looked_through_only_after_a_late_reading() -> None:
    horizons = Horizons()
    rows = [row(1, day(2)), row(0, day(20)), row(2, day(3)), row(1, day(20)), row(0, day(3)), row(0, day(1))]
    assert horizons.split(rows) == (rows, ())
    horizons.learn({})
    assert horizons.split(rows) == (rows, ())
    horizons.learn({0: day(3), 1: day(10)})
    hot, late = horizons.split(rows)
    assert hot == [rows[1], rows[2], rows[3], rows[4]]
    assert late == [[rows[5]], [rows[0]]]
    young = [row(0, day(20))]
    for _ in range(BATCHES):
        assert horizons.split(young) == (young, ())
    assert horizons.split(rows) == (rows, ())  # PostgreSQL refuses it, and then it is asked again
    horizons.learn({1: day(10)})
    assert horizons.split([rows[0]]) == ([], [[rows[0]]])


def test_nothing_is_frozen_up_to_the_beginning() -> None:
    assert (FRESH.frozen_until, FRESH.packed_until) == (NEVER, NEVER)
    assert FRESH.to_pack is None


def days(number: int | None) -> timedelta | None:
    return None if number is None else timedelta(days=number)


@pytest.mark.parametrize(
    ("archive", "drop", "rollups", "words"),
    [
        (None, None, None, ""),
        (90, 400, 400, ""),
        (90, None, 91, ""),
        (None, 8, None, ""),
        (7, None, None, "--archive-after 7d must be more than --hot 7d (meter)"),
        (90, 90, None, "--drop-after 90d must be more than --archive-after 90d (meter)"),
        (None, 6, None, "--drop-after 6d must be more than --hot 7d (meter)"),
        (90, 400, 399, "--rollups-for 399d must be at least --drop-after 400d (meter)"),
        (90, None, 90, "--rollups-for 90d must be more than --archive-after 90d (meter)"),
        (None, None, 7, "--rollups-for 7d must be more than --hot 7d (meter)"),
    ],
)
def test_steps_come_in_their_order(archive: int | None, drop: int | None, rollups: int | None, words: str) -> None:
    policy = Policy("meter", timedelta(days=7), days(archive), days(drop), days(rollups))
    assert policy.leaves_after() == (days(archive) or days(drop))
    if not words:
        policy.check()
        return
    with pytest.raises(InvalidArgument) as refused:
        policy.check()
    assert str(refused.value) == words


def test_ages_at_which_something_is_done() -> None:
    assert (read_after("never", "--drop-after"), read_after("90d", "--drop-after")) == (None, timedelta(days=90))
    with pytest.raises(InvalidArgument, match=r"--drop-after 36601d: at most 36600d, or never"):
        read_after("36601d", "--drop-after")


@pytest.mark.parametrize(
    ("policy", "state", "restored_until", "leaves"),
    [
        (None, None, None, False),
        (HOT, None, None, False),
        (replace(HOT, archive=days(27)), None, None, True),
        (replace(HOT, archive=days(28)), None, None, False),
        (replace(HOT, drop=days(27)), State.PLANNED, None, True),
        (replace(HOT, archive=days(28), drop=days(27)), State.PLANNED, None, False),
        (replace(HOT, archive=days(27)), State.RESTORING, None, False),
        (replace(HOT, archive=days(27)), State.EXPIRING, None, False),
        (replace(HOT, archive=days(27)), State.RESTORED, NOW + timedelta(hours=1), False),
        (None, State.RESTORED, NOW, True),
        (None, State.DROPPING, None, True),
        (None, State.VERIFIED, None, False),
    ],
)
def test_which_months_leave(
    policy: Policy | None, state: State | None, restored_until: datetime | None, leaves: bool
) -> None:
    """October is over since 27.5 days."""
    october = date(2026, 10, 1)
    entry = None
    if state is not None:
        entry = Entry(1, "meter", 0, october, state, 9, (), None, None, None, None, None, restored_until, NOW)
    assert end_of(october) == day(1)
    assert leaves_now(policy, october, entry, NOW) is leaves


def test_a_tenants_policy_stands_for_the_kinds_in_its_buckets() -> None:
    meter, vehicle = Policy("meter", timedelta(days=7)), Policy("vehicle", timedelta(days=7))
    own = Policy("vehicle", timedelta(days=2), tenant="acme")
    found = Policies({"meter": meter, "vehicle": vehicle}, [(range(8, 12), own)])
    assert [found.of("vehicle", bucket) for bucket in (7, 8, 11, 12)] == [vehicle, own, own, vehicle]
    assert (found.of("meter", 9), found.of("pump", 9)) == (meter, None)
    assert (list(found), found.of_tenant("acme"), found.of_tenant("x")) == ([meter, vehicle, own], {"vehicle": own}, {})
    assert (bool(found), bool(Policies({})), own.whose, meter.whose) == (True, False, "vehicle of acme", "meter")


def test_with_a_tablespace_frozen_leaves_go_there_and_are_packed_before_they_leave() -> None:
    """Freezing comes first: a copy that waits, or fails, holds no leaf up."""
    policy = replace(HOT, tablespace="cheap")
    frozen, order = FRESH, []
    while due(frozen, policy, NOW) is Step.FREEZE:
        leaf = frozen.to_freeze(policy, NOW)
        assert leaf is not None
        frozen = replace(frozen, frozen_until=leaf.upper)
    while due(frozen, policy, NOW) is Step.PLACE:
        leaf = frozen.to_place("cheap")
        assert leaf is not None
        order.append(leaf.name)
        moved = [replace(each, tablespace="cheap") if each is leaf else each for each in frozen.leaves]
        frozen = replace(frozen, leaves=moved)
    assert order == ["past", "d18", "d19", "d20"]
    assert due(frozen, policy, NOW) is None
    assert frozen.to_place(None) is None
    for after, step in ((timedelta(days=90), None), (timedelta(days=30), Step.PACK)):
        assert due(frozen, replace(policy, archive=after), NOW) is step
        assert due(frozen, replace(policy, drop=after), NOW) is step
    assert due(frozen, HOT, NOW) is Step.PACK  # --tablespace none
