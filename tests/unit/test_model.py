"""The model of `bench scale-model`: it finds the costs that made its points, and what it says follows from them."""

import pytest

from bench.model import Costs, Point, distinct, fan_out, needs
from bench.scenarios.scale_model import notes

TRUE = Costs((10.0, 150.0), (8.0, 120.0, 20.0), (200.0, 300.0), (0.002, 20e-6))


def points() -> list[Point]:
    found = []
    for request, batch in ((1.0, 4.0), (8.0, 30.0), (100.0, 200.0), (1_000.0, 1_500.0)):
        for buckets in (16, 64):
            router, postgres = TRUE.router_us(request), TRUE.postgres_us(batch, buckets)
            wal, commit = 200.0 + 300.0 / batch, 0.002 + 20e-6 * batch
            found.append(Point(request, batch, buckets, router, postgres, wal, commit))
    return found


def test_costs_are_found_again() -> None:
    found = Costs.of(points())
    for name in ("router", "postgres", "wal", "commit"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_no_cost_is_negative() -> None:
    falling = [Point(1, batch, 16, 5.0, 10.0 + batch, 1.0, 0.001) for batch in (1.0, 2.0, 3.0)]
    assert min(Costs.of(falling).postgres) >= 0


def test_a_batch_touches_as_many_buckets_as_there_are() -> None:
    assert distinct(1, 64) == pytest.approx(1)
    assert distinct(10_000, 64) == pytest.approx(64)


def test_batches_grow_until_a_lane_cannot_keep_up() -> None:
    assert TRUE.batch(1) == 1  # none waits
    assert TRUE.batch(10_000) == pytest.approx(10_000 * 0.002 / 0.8)
    assert TRUE.batch(40_000) is None


def test_ten_times_the_devices_need_about_ten_times_as_much() -> None:
    small, large = needs(TRUE, 100_000, 200.0), needs(TRUE, 10_000_000, 200.0)
    assert large.rate == pytest.approx(100 * small.rate)
    assert large.disk_gb_day == pytest.approx(100 * small.disk_gb_day)
    assert small.shards < large.shards <= 64
    assert large.postgres_cores / large.shards <= 4
    assert small.disk_gb_day == pytest.approx(100_000 * 1_440 * 200 / 1e9)
    with pytest.raises(ValueError, match="need more than 256 shards"):
        needs(TRUE, 10**10, 200.0)


def test_the_slowest_of_many_decides_and_a_second_try_helps_where_few_are_slow() -> None:
    even = [float(1 + at % 3) for at in range(1_000)]
    one, many = (fan_out(even, shards, (0.001, 100.0)) for shards in (1, 100))
    assert one.p99_ms < 10
    assert many.p99_ms > 100
    assert many.hedged_ms < 10
    assert many.more == pytest.approx(0.001, abs=0.0005)
    assert fan_out(even, 100, (0.0, 0.0)).hedged_ms <= 3


def test_the_notes_have_a_line_for_each_fleet() -> None:
    lines = notes(TRUE, 200.0, [1.0, 2.0])
    assert [line for line in lines if " devices: " in line] == [
        needs(TRUE, devices, 200.0).words() for devices in (10_000, 1_000_000, 10_000_000)
    ]
