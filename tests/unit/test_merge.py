from datetime import UTC, datetime

import pytest

from router.reads.efficiency import health, ratio
from router.reads.merge import Sums, add, add_series, mean, newest
from router.wire.answers import Health


def test_sums_add_up_whatever_the_order() -> None:
    items = [{"devices": 1, "readings": 2, "energy": x, "temperature": 1.0} for x in (1e16, 1.0, -1e16)]
    assert add(items) == add(items[::-1]) == Sums(3, 6, 1.0, 3.0)
    assert add([]) == Sums()


def test_averages_come_from_sums_not_from_averages() -> None:
    parts = add([{"readings": 1, "energy": 0, "temperature": 40.0}, {"readings": 3, "energy": 0, "temperature": 60.0}])
    assert mean(parts.temperature, parts.readings) == 25.0
    assert mean(0.0, 0) is None


def test_series_by_interval() -> None:
    one, two = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    rows = [{"starts": two, "readings": 1, "energy": 1.0}, {"starts": one, "readings": 2, "energy": 2.0}]
    assert list(add_series([*rows, rows[0]]).items()) == [(one, Sums(0, 2, 2.0)), (two, Sums(0, 2, 2.0))]


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
