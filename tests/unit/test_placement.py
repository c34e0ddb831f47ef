"""What a plan says in cases that can be worked out by hand."""

import pytest

from shards.errors import InvalidArgument, Refused
from shards.moves.placement import Load, Place, PlannedMove, costs_of, imbalance, make_plan, spread, totals

EVEN = ("a", "b") * 4


def test_nothing_moves_below_the_threshold() -> None:
    places = [Place("a"), Place("b")]
    costs = [1.2, 1, 1, 1, 1, 1, 1, 1]
    assert make_plan(EVEN, costs, places).moves == ()
    assert make_plan(EVEN, [1.0] * 8, places, threshold=0).moves == ()


def test_a_drained_shard_is_emptied_even_below_the_threshold() -> None:
    plan = make_plan(EVEN, [1.0] * 8, [Place("a"), Place("b", draining=True), Place("c")])
    assert sorted(plan.moves, key=lambda m: m.bucket) == [PlannedMove(b, "b", "c") for b in (1, 3, 5, 7)]
    assert plan.imbalance_before == float("inf")
    assert plan.imbalance_after == 0
    with pytest.raises(Refused, match="every shard is draining"):
        make_plan(EVEN, [1.0] * 8, [Place("a", draining=True), Place("b", draining=True)])


def test_weights() -> None:
    plan = make_plan(EVEN, [1.0] * 8, [Place("a", 3), Place("b", 1)])
    assert (plan.after.count("a"), plan.after.count("b")) == (6, 2)


def test_bytes_and_rates() -> None:
    loads = [Load(10, 1000, 5.0), Load(10, 3000, 1.0)]
    assert costs_of(loads, "bytes") == [1020, 3020]
    assert costs_of(loads, "rate") == [5.03, 1.03]
    assert costs_of([Load()] * 2, "bytes") == [1, 1]
    assert totals(("a", "b"), loads) == {"a": (1, 10, 1000), "b": (1, 10, 3000)}
    assert imbalance(("a", "b"), [1, 3], [Place("a"), Place("b")]) == 0.5


def test_spread() -> None:
    assert spread(4, ["a", "b", "c"]) == ("a", "b", "c", "a")
    with pytest.raises(InvalidArgument):
        spread(2, ["a", "b", "c"])


def test_a_pinned_bucket_stays_where_it_may_be() -> None:
    pins = {6: ("b",), 7: ("b", "c")}
    drained = [Place("a"), Place("b", draining=True), Place("c")]
    moved = {move.bucket: move.target for move in make_plan("aaabbbbb", [1.0] * 8, drained, pins={7: ("b", "c")}).moves}
    assert moved[7] == "c"
    with pytest.raises(Refused, match="bucket 6 is pinned to b, and none of them may be given buckets"):
        make_plan("aaabbbbb", [1.0] * 8, drained, pins=pins)
    even = make_plan("bbbbbbbb", [1.0] * 8, [Place("a"), Place("b"), Place("c")], threshold=0, pins=pins)
    assert even.after[6] == "b"
    assert even.after[7] in {"b", "c"}
    assert even.imbalance_after < even.imbalance_before
    nowhere = dict.fromkeys(range(8), ("b",))
    assert make_plan("bbbbbbbb", [1.0] * 8, [Place("a"), Place("b")], threshold=0, pins=nowhere).moves == ()
