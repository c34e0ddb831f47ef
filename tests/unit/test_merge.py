import math
from datetime import UTC, datetime

import pytest

from router.reads.efficiency import health, ratio
from router.reads.merge import Sums, add, add_series, mean, newest, together
from router.wire.answers import Health
from shards.ratings import Rating, Ratings

PLAIN = Ratings()


def _row(**given: object) -> dict[str, object]:
    return {"energy": 0.0, "suspect": 0, "suspect_energy": 0.0, **given}


def test_sums_add_up_whatever_the_order() -> None:
    items = [_row(devices=1, readings=2, energy=x, temperature=1.0) for x in (1e16, 1.0, -1e16)]
    assert add(items, PLAIN) == add(items[::-1], PLAIN)
    assert add(items, PLAIN) == Sums(devices=3, readings=6, per_minute=3.0, energy=1.0, temperature=3.0)
    assert add([], PLAIN) == Sums()


def test_suspect_energy_is_left_out_unless_asked_for() -> None:
    items = [_row(energy=1.0, suspect=2, suspect_energy=50.0), _row(energy=2.0)]
    assert (add(items, PLAIN).energy, add(items, PLAIN).suspect) == (3.0, 2)
    assert add(items, PLAIN, all_energy=True).energy == 53.0


def test_expected_readings_come_from_each_device_where_they_differ() -> None:
    quarter_hourly = Ratings(Rating(900.0))
    assert add([_row(devices=2), _row(devices=1)], quarter_hourly).per_minute == pytest.approx(0.2)
    assert add([_row(devices=2, per_minute=1.5), _row(devices=1, per_minute=None)], PLAIN).per_minute == 2.5


def test_averages_come_from_sums_not_from_averages() -> None:
    parts = add([_row(readings=1, temperature=40.0), _row(readings=3, temperature=60.0)], PLAIN)
    assert mean(parts.temperature, parts.readings) == 25.0
    assert mean(0.0, 0) is None


def test_series_by_interval() -> None:
    rows = [_row(bin=2, readings=1, energy=1.0), _row(bin=1, readings=2, energy=2.0)]
    found = add_series([*rows, rows[0]], PLAIN)
    assert list(found.items()) == [(1, Sums(readings=2, energy=2.0)), (2, Sums(readings=2, energy=2.0))]


def test_newest_over_shards() -> None:
    def item(day: int, device: str) -> dict[str, object]:
        return {"timestamp": datetime(2026, 1, day, tzinfo=UTC), "kind": "meter", "device_id": device}

    lists = [[item(5, "a"), item(2, "a")], [item(5, "b"), item(4, "b")], []]
    assert [(i["timestamp"].day, i["device_id"]) for i in newest(lists, 3)] == [(5, "b"), (5, "a"), (4, "b")]


@pytest.mark.parametrize(
    ("ac", "dc", "meters", "vehicles", "expected", "verdict"),
    [
        (10.0, 9.0, 5, 5, 0.9, Health.HEALTHY),
        (10.0, 8.0, 5, 5, 0.8, Health.WARNING),
        (10.0, 7.0, 5, 5, 0.7, Health.CRITICAL),
        (10.0, 10.3, 5, 5, 1.03, Health.ANOMALY),
        (10.0, 10.1, 5, 5, 1.01, Health.HEALTHY),
        (0.0, 5.0, 0, 5, None, Health.NO_METER_DATA),
        (10.0, 0.0, 5, 0, None, Health.NO_VEHICLE_DATA),
        (0.0, 0.0, 5, 5, None, Health.HEALTHY),
        (0.0, 1.0, 5, 5, None, Health.ANOMALY),
    ],
)
def test_efficiency(ac: float, dc: float, meters: int, vehicles: int, expected: float | None, verdict: Health) -> None:
    found = ratio(ac, dc, meters, vehicles)
    assert found == (None if expected is None else pytest.approx(expected))
    assert health(found, dc, meters, vehicles, warning=0.85, critical=0.75) is verdict


def test_sums_of_several_kinds_add_up() -> None:
    one, other = Sums(1, 2, 3, 4, 5.0, 0.1, 7.0), Sums(10, 20, 30, 40, 50.0, 0.2, 70.0)
    assert together([one]) is one
    assert together([one, other]) == Sums(11, 22, 33, 44, 55.0, math.fsum([0.1, 0.2]), 77.0)
    assert together([]) == Sums()
