"""Each known export format with the right kWh, whatever its rows and line ends are like."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from router.files.options import FileOptions
from router.files.presets import PRESETS
from tests.support.exports import EXPORTS, Export, Value, a_row_a_day, nem12
from tests.support.reading_files import (
    CHANGE,
    EUROPE,
    IDS,
    as_export,
    expected,
    january,
    plain,
    readings_of,
    values_from,
)


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_right_kwh(tmp_path: Path, export: Export) -> None:
    values = values_from(january(export), export, 12)
    found = as_export(tmp_path, export, export.text(export.lines(values)))
    assert plain(export, found) == expected(export, values)
    if export.preset == "shelly":
        assert {each["voltage"] for each in found} == {230.0}


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_windows_line_ends(tmp_path: Path, export: Export) -> None:
    values = values_from(january(export), export, 12)
    text = export.text(export.lines(values)).replace("\n", "\r\n")
    assert plain(export, as_export(tmp_path, export, text)) == expected(export, values)


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_a_missing_cell(tmp_path: Path, export: Export) -> None:
    values = values_from(january(export), export, 12)
    values[5] = (values[5][0], None)
    found = as_export(tmp_path, export, export.text(export.lines(values)))
    assert plain(export, found) == expected(export, values)


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_a_row_out_of_order_and_a_repeated_one(tmp_path: Path, export: Export) -> None:
    values = values_from(january(export), export, 12)
    lines = export.lines(values)
    moved = [*lines[:3], *lines[4:9], lines[3], *lines[8:]]
    found = plain(export, as_export(tmp_path, export, export.text(moved)))
    wanted = expected(export, values)
    assert sorted(found, key=lambda each: each[1]) == sorted([*wanted, wanted[8]], key=lambda each: each[1])


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_newest_first(tmp_path: Path, export: Export) -> None:
    values = values_from(CHANGE.get(export.zone, EUROPE), export, 4 * 60 // export.minutes)
    found = as_export(tmp_path, export, export.text(export.lines(values)[::-1]))
    if export.preset != "tauron":
        assert plain(export, found) == expected(export, values)[::-1]


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_the_doubled_hour_at_the_end_of_summer_time(tmp_path: Path, export: Export) -> None:
    start = CHANGE.get(export.zone, EUROPE)
    values = values_from(start, export, 5 * 60 // export.minutes)
    found = as_export(tmp_path, export, export.text(export.lines(values)))
    assert plain(export, found) == expected(export, values)


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_the_hour_that_is_skipped_in_spring(tmp_path: Path, export: Export) -> None:
    spring = {"America/Los_Angeles": (8, 9), "America/Chicago": (8, 7), "America/New_York": (8, 6)}
    day, hour = spring.get(export.zone, (29, 0))
    values = values_from(datetime(2026, 3, day, hour, tzinfo=UTC), export, 4 * 60 // export.minutes)
    found = as_export(tmp_path, export, export.text(export.lines(values)))
    assert plain(export, found) == expected(export, values)


def test_interleaved_doubled_hour(tmp_path: Path) -> None:
    """Fluvius writes both quarters of the doubled hour side by side."""
    export = next(each for each in EXPORTS if each.preset == "fluvius")
    values = values_from(EUROPE, export, 16)
    lines = export.lines(values)
    first, second = lines[4:8], lines[8:12]
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    found = plain(export, as_export(tmp_path, export, export.text([*lines[:4], *mixed, *lines[12:]])))
    assert sorted(found, key=lambda each: each[1]) == expected(export, values)


@pytest.mark.parametrize("style", ["old time", "new time"])
@pytest.mark.parametrize("minutes", [15, 30, 60])
@pytest.mark.parametrize("backwards", [False, True])
def test_times_at_the_end_over_the_doubled_hour(tmp_path: Path, style: str, minutes: int, backwards: bool) -> None:
    """The change itself is called 03:00 by some and 02:00 by others: both tell every interval apart."""
    zone, step = ZoneInfo("Europe/Lisbon"), timedelta(minutes=minutes)
    change = datetime(2026, 10, 25, 1, tzinfo=UTC)
    ends = [change - timedelta(hours=2) + step * at for at in range(1, 5 * 60 // minutes)]
    lines = []
    for at, end in enumerate(ends):
        local = end.astimezone(zone).replace(tzinfo=None)
        if end == change and style == "old time":
            local += timedelta(hours=1)
        lines.append(f"{local:%Y/%m/%d;%H:%M};0,{at:02}")
    path = tmp_path / "ends.csv"
    path.write_text("Data;Hora;Consumo\n" + "\n".join(lines[::-1] if backwards else lines))
    options = FileOptions(
        columns=("timestamp=Data+Hora", "kwhConsumedAc=Consumo"),
        time_zone="Europe/Lisbon",
        time_format="%Y/%m/%d %H:%M",
        delimiter=";",
        decimal=",",
    )
    found = sorted((each["kwhConsumedAc"], each["timestamp"]) for each in readings_of(path, options))
    assert [moment for _, moment in found] == [end.isoformat().replace("+00:00", "Z") for end in ends]


def test_nem12(tmp_path: Path) -> None:
    start = datetime(2026, 4, 3, 14, tzinfo=UTC)  # midnight in UTC+10; clocks of Sydney go back a day later
    values: list[Value] = [(start + timedelta(minutes=30 * at), at / 100) for at in range(96)]
    values[7] = (values[7][0], None)
    path = tmp_path / "a.csv"
    for text in (nem12(values), nem12(values).replace("\n", "\r\n")):
        path.write_bytes(text.encode())
        found = readings_of(path, FileOptions(preset="nem12"), None)
        assert {each["meterId"] for each in found} == {"NEM1201009:E1"}
        ends = [
            (start + timedelta(minutes=30)).isoformat().replace("+00:00", "Z")
            for start, kwh in values
            if kwh is not None
        ]
        assert [each["timestamp"] for each in found] == ends
        assert sum(each["kwhConsumedAc"] for each in found) == pytest.approx(sum(kwh or 0 for _, kwh in values))


def test_a_row_a_day(tmp_path: Path) -> None:
    rome = ZoneInfo("Europe/Rome")
    days = [datetime(2026, 1, 15, tzinfo=rome), datetime(2026, 1, 14, tzinfo=rome), datetime(2026, 10, 25, tzinfo=rome)]
    kwh: list[float | None] = [at / 1000 for at in range(96)]
    kwh[50] = None
    path = tmp_path / "a.csv"
    path.write_text(a_row_a_day([(day, kwh) for day in [*days, days[0]]]).replace("\n", "\r\n"), newline="")
    found = readings_of(path, FileOptions(preset="e-distribuzione"))
    keyed = {each["timestamp"]: each["kwhConsumedAc"] for each in found}
    assert (len(found), len(keyed)) == (4 * 95, 3 * 95)
    assert sum(keyed.values()) == pytest.approx(3 * sum(each or 0 for each in kwh))
    assert keyed["2026-01-14T23:15:00Z"] == 0.0
    assert keyed["2026-01-15T23:00:00Z"] == 0.095


def test_every_preset_has_a_sample() -> None:
    assert {*IDS, "peco", "nem12", "e-distribuzione"} == PRESETS.keys()
