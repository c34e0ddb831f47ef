"""What a fleet needs and costs follows from a run's figures, and a run that lacks some says so."""

import pytest

from bench.capacity import COSTS, SCALE, STORED, WORK, Kept, Measured, Prices, capacity
from bench.measure import MeasurementError
from bench.results import Figure, Run, ScenarioResult

VALUES = {"router": (10.0, 100.0), "postgres": (10.0, 100.0, 5.0), "wal": (200.0, 300.0), "commit": (0.002, 2e-5)}
BYTES = dict(zip(STORED, (180.0, 6.0, 3.0, 4.0, 4.0), strict=True))


def run() -> Run:
    figures = [
        Figure(f"{SCALE}, {part}, {what}", unit, [value])
        for part, named in COSTS.items()
        for (what, unit), value in zip(named, VALUES[part], strict=True)
    ]
    for kind in ("vehicle", "meter"):
        figures += [Figure(f"storage: {kind}, {tier}", "B", [size]) for tier, size in BYTES.items()]
        figures += [Figure(f"storage: {kind}, {what}", "us", [12.0]) for what in WORK]
    return Run("today", {}, {}, [ScenarioResult("x", figures, [], 0, [])])


def test_bytes_and_cores_and_money() -> None:
    found = capacity(Measured.of([run()]), Kept(7, 83, 910), 60_000)
    day = 1_000 * 86_400 / 1e12
    assert found.needs.rate == 1_000
    assert found.hot_tb == pytest.approx(day * 7 * 186)
    assert found.packed_tb == pytest.approx(day * 83 * 3)
    assert found.sums_tb == pytest.approx(day * 993 * 4)
    assert found.archive_tb == pytest.approx(day * 910 * 4)
    assert found.lifecycle_cores == pytest.approx(1_000 * 24e-6 / 0.6)
    cost = found.cores * 20 + found.disk_tb * 100 + found.archive_tb * 25
    assert found.cost(Prices(20, 100, 25)) == pytest.approx(cost)
    assert found.row(Prices())[-1] == "-"


def test_a_run_that_lacks_figures() -> None:
    with pytest.raises(MeasurementError, match="no figure 'scale-model: cost, router, a reading' in these runs"):
        Measured.of([Run("today", {}, {}, [])])
