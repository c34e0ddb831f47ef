"""Reading files in tests: an export with its values, and what they should become."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from router.files.options import FileOptions, layout_of
from router.files.reading import read
from tests.support.exports import EXPORTS, Export, Value, start_of

HOUSE = "HOUSE-1"
CHANGE = {  # an instant two hours before clocks go back, for each zone of a format
    "America/Los_Angeles": datetime(2026, 11, 1, 7, tzinfo=UTC),
    "America/Chicago": datetime(2026, 11, 1, 5, tzinfo=UTC),
    "America/New_York": datetime(2026, 11, 1, 4, tzinfo=UTC),
    "UTC": datetime(2026, 10, 24, 23, tzinfo=UTC),
}
EUROPE = datetime(2026, 10, 24, 23, tzinfo=UTC)
IDS = [export.preset for export in EXPORTS]


def readings_of(path: Path, options: FileOptions, device: str | None = HOUSE, **more: Any) -> list[dict[str, Any]]:
    layout, told = layout_of(options)
    return [reading for _, reading in read(path, "meter", layout, told, device, **more)]


def as_export(tmp_path: Path, export: Export, text: str, encoding: str = "utf-8") -> list[dict[str, Any]]:
    path = tmp_path / "export.csv"
    path.write_bytes(text.encode(encoding))
    zone = None if export.has_zone else export.zone
    return readings_of(path, FileOptions(preset=export.preset, time_zone=zone), None if export.device else HOUSE)


def values_from(start: datetime, export: Export, count: int) -> list[Value]:
    step = timedelta(minutes=export.minutes)
    return [(start + step * at, 0.25 + at / 100) for at in range(count)]


def expected(export: Export, values: Sequence[Value]) -> list[Any]:
    """Device, time and kWh (or count) of what a file should give, but for what is missing."""
    found, count, step = [], 5000.0, timedelta(minutes=export.minutes)
    for start, kwh in values:
        if kwh is not None:
            count += kwh
            end = start if export.is_register else start + step
            value = count + (200.25 if export.preset == "homewizard" else 0) if export.is_register else kwh
            found.append((export.device or HOUSE, end.isoformat().replace("+00:00", "Z"), pytest.approx(value)))
    return found


def plain(export: Export, readings: list[dict[str, Any]]) -> list[Any]:
    field = "registerKwh" if export.is_register else "kwhConsumedAc"
    return [(each["meterId"], each["timestamp"], each[field]) for each in readings]


def january(export: Export) -> datetime:
    return start_of(export.zone, 2026, 1, 15, 22)  # over midnight
