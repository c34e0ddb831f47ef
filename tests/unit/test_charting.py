"""Charts in the router: points that are left out, gaps that are filled, percentiles of sketches."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.reads.charting import Fill, Values, downsampled, filled, merged, percentile, value_of
from shards.storage.charts import ACCURACY, GAMMA, OFFSET

VALUES = st.lists(st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=200)


def sketch(values: list[float]) -> dict[int, int]:
    """As a shard makes it."""
    found: dict[int, int] = {}
    for value in values:
        size = OFFSET + math.ceil(math.log(abs(value)) / math.log(GAMMA)) if value else 0
        key = int(math.copysign(size, value)) if value else 0
        found[key] = found.get(key, 0) + 1
    return found


@given(VALUES, VALUES, st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_percentiles_of_merged_sketches(one: list[float], other: list[float], share: float) -> None:
    parts = [sketch(one), sketch(other)]
    found = percentile(merged(([*part], [*part.values()]) for part in parts), share)
    ordered = sorted(one + other)
    true = ordered[math.floor(share * (len(ordered) - 1))]
    assert math.isclose(found, true, rel_tol=ACCURACY * 1.01, abs_tol=1e-12)


def test_a_keys_value_lies_in_the_middle() -> None:
    assert (value_of(0), value_of(-OFFSET), value_of(OFFSET)) == (0.0, -2 / (GAMMA + 1), 2 / (GAMMA + 1))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(3, 60))
def test_points_that_are_shown(ys: list[float], count: int) -> None:
    xs = [float(at) for at in range(len(ys))]
    chosen = downsampled(xs, ys, count)
    assert len(chosen) == min(count, len(ys))
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, len(ys) - 1)


def test_a_spike_is_shown() -> None:
    ys = [0.0] * 1000
    ys[617] = 9.0
    assert 617 in downsampled([float(at) for at in range(1000)], ys, 20)
    assert downsampled([], [], 3) == []


GIVEN = {2: Values(1, 1.0, 1.0, 1.0, 1.0, 1.0), 5: Values(2, 3.0, 5.0, 4.0, 4.5, 5.0)}


@pytest.mark.parametrize(
    ("fill", "means"),
    [
        (Fill.NONE, {2: 1.0, 5: 4.0}),
        (Fill.NULL, {1: None, 2: 1.0, 3: None, 4: None, 5: 4.0, 6: None}),
        (Fill.PREVIOUS, {1: None, 2: 1.0, 3: 1.0, 4: 1.0, 5: 4.0, 6: 5.0}),
        (Fill.LINEAR, {1: None, 2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 6: None}),
    ],
)
def test_gaps(fill: Fill, means: dict[int, float | None]) -> None:
    found = filled(GIVEN, 6, fill)
    assert {at: values.mean for at, values in found.items()} == means
    assert all(values.readings == 0 for at, values in found.items() if at not in GIVEN)


def test_a_gap_without_a_mean_on_one_side_stays() -> None:
    unknown = {1: Values(1), 3: Values(1, mean=2.0)}
    assert filled(unknown, 3, Fill.LINEAR)[2].mean is None
    of_fleet = {1: Values(1, mean=2.0)}
    assert filled(of_fleet, 2, Fill.PREVIOUS)[2].last == 2.0
