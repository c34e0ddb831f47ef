"""Plans: every bucket has one owner, drained shards end empty, nothing moves without need or gets worse."""

from hypothesis import given
from hypothesis import strategies as st

from shards.moves.placement import Load, Place, costs_of, imbalance, make_plan, spread

NAMES = ["a", "b", "c", "d", "e"]
clusters = st.integers(2, 5).flatmap(
    lambda n: st.tuples(
        st.just(NAMES[:n]),
        st.lists(st.sampled_from(NAMES[:n]), min_size=8, max_size=64),
        st.lists(st.floats(0.25, 4), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


@given(clusters, st.data())
def test_plans(cluster: tuple[list[str], list[str], list[float], list[bool]], data: st.DataObject) -> None:
    names, owners, weights, draining = cluster
    draining[0] = False
    places = [Place(name, weight, drain) for name, weight, drain in zip(names, weights, draining, strict=True)]
    sizes = st.lists(st.integers(0, 10**9), min_size=len(owners), max_size=len(owners))
    costs = costs_of([Load(size_bytes=size) for size in data.draw(sizes)], "bytes")
    plan = make_plan(owners, costs, places)
    after = list(owners)
    for move in plan.moves:
        assert after[move.bucket] == move.source != move.target
        after[move.bucket] = move.target
    assert tuple(after) == plan.after
    assert len({move.bucket for move in plan.moves}) == len(plan.moves)
    assert not {place.name for place in places if place.draining} & set(after)
    assert plan.imbalance_after <= plan.imbalance_before + 1e-9
    assert plan.imbalance_after == imbalance(after, costs, places)
    assert len(make_plan(after, costs, places).moves) <= len(plan.moves)


def test_a_small_empty_shard_is_not_overfilled() -> None:
    costs = costs_of([Load(size_bytes=size) for size in (0, 0, 0, 0, 0, 0, 11325, 16948)], "bytes")
    plan = make_plan("a" * 8, costs, [Place("a"), Place("b", weight=0.25)])
    assert plan.imbalance_after <= plan.imbalance_before


@given(st.integers(1, 4), st.integers(3, 8))
def test_a_new_shard_gets_its_share_of_equal_buckets(shards: int, power: int) -> None:
    buckets = 2**power
    names = [f"s{n}" for n in range(shards)]
    costs = costs_of([Load()] * buckets, "bytes")
    plan = make_plan(spread(buckets, names), costs, [Place(name) for name in [*names, "new"]], threshold=0)
    counts = [plan.after.count(name) for name in [*names, "new"]]
    assert max(counts) - min(counts) <= 1
    assert all(move.target == "new" for move in plan.moves)
    assert len(plan.moves) == plan.after.count("new")
