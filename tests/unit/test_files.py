"""Files: our own and others', and how each is refused that cannot be read."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from router.files.layout import FileError, Label, Layout
from router.files.options import FileOptions, layout_of
from router.files.reading import batched
from router.files.readings import Skipped
from shards.errors import InvalidArgument
from tests.support.exports import EXPORTS
from tests.support.reading_files import HOUSE, as_export, january, readings_of, values_from


def test_our_own_files(tmp_path: Path) -> None:
    table, lines = tmp_path / "a.csv", tmp_path / "a.ndjson"
    table.write_text("timestamp,kwhConsumedAc,voltage\r\n2026-01-01T00:00:00Z,0.5,230\r\n2026-01-01T00:01:00Z,0.5,\r\n")
    lines.write_text(
        '\n{"timestamp":"2026-01-01T00:00:00Z","kwhConsumedAc":0.5,"voltage":230.0}\n'
        '{"timestamp":"2026-01-01T00:01:00Z","kwhConsumedAc":0.5}\n'
    )
    wanted = [
        {"timestamp": "2026-01-01T00:00:00Z", "kwhConsumedAc": 0.5, "voltage": 230.0, "meterId": "M"},
        {"timestamp": "2026-01-01T00:01:00Z", "kwhConsumedAc": 0.5, "meterId": "M"},
    ]
    assert readings_of(table, FileOptions(), "M") == readings_of(lines, FileOptions(), "M") == wanted
    table.write_text("timestamp;registerKwh\n2026-01-01T00:00:00Z;7,5\n\n2026-01-01T00:01:00Z;\n")
    skipped = Skipped()
    found = readings_of(table, FileOptions(decimal=","), "M", skipped=skipped)
    assert (found, skipped.missing) == ([{"timestamp": "2026-01-01T00:00:00Z", "registerKwh": 7.5, "meterId": "M"}], 1)
    assert [len(each) for each in batched(iter([(1, {})] * 5), 2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "when,what\n1,2\n", ":1: the first line must name the columns, `timestamp` among them"),
        ("a.csv", "CUPS;Fecha;Hora;Consumo_kWh;Metodo_obtencion\n", "it looks like --preset datadis"),
        ("a.csv", "100,NEM12,200506081149\n", "it looks like --preset nem12"),
        ("a.csv", "timestamp,voltage\n2026-01-01T00:00:00Z,much\n", ":2: voltage is 'much', not a number"),
        ("a.csv", "timestamp,voltage\n2026-01-01T00:00:00Z,1_000\n", ":2: voltage is '1_000', not a number"),
        ("a.csv", "timestamp,voltage\n2026-01-01T00:00:00Z,२३०\n", ":2: voltage is '२३०', not a number"),
        ("a.csv", "timestamp;voltage\n2026-01-01T00:00:00Z;2,5\n", "say --decimal ,"),
        ("a.csv", "timestamp,voltage\n2026-01-01T00:00:00Z\n", ":2: 2 columns are expected, there are 1"),
        ("a.csv", "timestamp,voltage\n2026-01-01T00:00:00Z,\xfc\n", "is not UTF-8, or near it"),
        ("a.ndjson", "{}\n{broken\n", ":2: "),
        ("a.ndjson", "{}\n7\n", ":2: a JSON object is expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1" if "\xfc" in text else "utf-8"))
    with pytest.raises(FileError) as caught:
        readings_of(path, FileOptions(), "M")
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)


def test_a_file_without_device_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text("{}\n")
    with pytest.raises(FileError, match=":1: no meterId; name the device with --device"):
        readings_of(path, FileOptions(), None)
    octopus = tmp_path / "o.csv"
    octopus.write_text(EXPORTS[3].text([]))
    with pytest.raises(FileError, match="no column names a device"):
        readings_of(octopus, FileOptions(preset="octopus"), None)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("2026-01-15;25:10;0,5", "Tag is '2026-01-15 25:10', not a time as %Y-%m-%d %H:%M"),
        ("2026-01-15;10:15;0.5", "Verbrauch is '0.5', not a number"),
        ("2026-01-15;10:15;12 kWh", "Verbrauch is '12 kWh', not a number"),
        ("2026-03-29;02:30;0,5", "2026-03-29 02:30:00 never was in Europe/Vienna"),
        ("2026-01-15", "ends before the column"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_bad_row_of_a_table_is_named_or_left_out(tmp_path: Path, line: str, complaint: str, skip_bad: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"a line above\nTag;Zeit;Verbrauch\n2026-01-15;00:00;0,5\n2026-01-15;00:15;0,5\n{line}\n")
    options = FileOptions(
        columns=("timestamp=Tag+Zeit", "kwhConsumedAc=Verbrauch"),
        time_zone="Europe/Vienna",
        time_format="%Y-%m-%d %H:%M",
        time_at=Label.START,
        delimiter=";",
        decimal=",",
    )
    skipped = Skipped()
    if skip_bad or complaint.startswith("ends"):
        found = readings_of(path, options, skipped=skipped, skip_bad=True)
        assert len(found) == 2
        assert skipped.missing or complaint in skipped.bad[0]
        return
    with pytest.raises(FileError) as caught:
        readings_of(path, options)
    assert str(caught.value).startswith(f"{path}:5: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (FileOptions(preset="fluvus"), "'fluvus' is no preset: one of pge,"),
        (FileOptions(preset="pge", time_zone="Europe/Berln"), "'Europe/Berln' is no time zone"),
        (FileOptions(preset="pge", unit="kcal"), "'kcal' is not a unit of energy or power: one of Wh, kWh"),
        (FileOptions(preset="pge", interval="15"), "--interval '15' is not a length of time"),
        (FileOptions(preset="pge", decimal=";"), "--decimal must be . or ,"),
        (FileOptions(preset="pge", delimiter="::"), "--delimiter must be one character"),
        (FileOptions(preset="pge", encoding="klingon"), "--encoding 'klingon' is none"),
        (FileOptions(columns=("kwh=Usage",)), "--map 'kwh=Usage' is not FIELD=COLUMN"),
        (FileOptions(columns=("kwhConsumedAc=A", "registerKwh=B")), "names both"),
        (FileOptions(preset="pge", where=("TYPE",)), "--where 'TYPE' is not COLUMN=VALUE"),
        (FileOptions(columns=("timestamp=A", "timestamp=B")), "--map timestamp is given twice"),
        (FileOptions(preset="pge", encoding="base64"), "--encoding 'base64' is none"),
        (FileOptions(unit="Wh"), "are for files of others: say --preset NAME"),
    ],
)
def test_an_option_that_cannot_be_is_named(options: FileOptions, complaint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        layout_of(options)
    assert complaint in str(caught.value)


def test_a_preset_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(EXPORTS[0].text(EXPORTS[0].lines(values_from(january(EXPORTS[0]), EXPORTS[0], 3))))
    with pytest.raises(FileError) as caught:
        readings_of(path, FileOptions(preset="datadis"))
    assert "the preset datadis expects the columns Fecha, Hora, CUPS, Consumo_kWh; the file has TYPE,DATE," in str(
        caught.value
    )
    with pytest.raises(FileError, match="--map expects the columns When, Usage; the file has"):
        readings_of(path, FileOptions(columns=("timestamp=When", "kwhConsumedAc=Usage")))


def test_options_change_a_preset(tmp_path: Path) -> None:
    export = EXPORTS[0]
    path = tmp_path / "a.csv"
    values = values_from(january(export), export, 4)
    path.write_text(export.text(export.lines(values)), encoding="utf-16")
    options = FileOptions(
        preset="pge", unit="Wh", voltage=240, time_at=Label.END, time_zone="UTC", where=("COST=$0.09",)
    )
    found = readings_of(path, options)
    assert found[0] == {
        "meterId": HOUSE,
        "timestamp": "2026-01-15T22:00:00Z",
        "kwhConsumedAc": 0.00025,
        "voltage": 240,
    }
    assert readings_of(path, replace(options, where=("COST=$1",))) == []
    assert len(readings_of(path, replace(options, where=("COST=$1", "COST=$0.09")))) == 4


def test_power_needs_to_know_how_long_an_interval_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("when,watts\n2026-01-15T00:15:00Z,400\n")
    options = FileOptions(columns=("timestamp=when", "kwhConsumedAc=watts"), unit="W")
    with pytest.raises(FileError, match="say --interval, as in 15m"):
        readings_of(path, options)
    (found,) = readings_of(path, replace(options, interval="15m"))
    assert found["kwhConsumedAc"] == 0.1


def test_minute_24_is_no_end_of_a_day(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("when,kwh\n2026-01-01T12:24:00Z,1\n2026-01-01T23:24:00.000+02:00,2\n2026-01-01T24:00:00Z,3\n")
    found = readings_of(path, FileOptions(columns=("timestamp=when", "kwhConsumedAc=kwh")))
    assert [each["timestamp"] for each in found] == [
        "2026-01-01T12:24:00Z",
        "2026-01-01T21:24:00Z",
        "2026-01-02T00:00:00Z",
    ]


@pytest.mark.parametrize(("first", "then"), [(10, 30), (30, 10), (60, 15)])
@pytest.mark.parametrize("before", [6, 450])
def test_another_step_in_the_middle_of_a_file_is_told(tmp_path: Path, first: int, then: int, before: int) -> None:
    at, lines = datetime(2026, 1, 1, tzinfo=UTC), ["Horodate;Valeur"]
    for number in range(before + 6):
        at += timedelta(minutes=first if number < before else then)
        lines.append(f"{at.isoformat()};1000")
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(
        FileError, match=rf"rows are ({then}|{first}) min apart here, and ({then}|{first}) min elsewhere"
    ):
        readings_of(path, FileOptions(preset="enedis"))


def test_a_stray_row_does_not_tell_the_interval(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    hours = [f"2026-01-15T{hour:02}:00:00+01:00;4000" for hour in range(1, 9)]
    path.write_text("\n".join(["Horodate;Valeur", *hours[:3], "2026-01-15T03:00:01+01:00;4000", *hours[3:]]))
    found = readings_of(path, FileOptions(preset="enedis"))
    assert {each["kwhConsumedAc"] for each in found} == {4.0}


def test_sessions_have_no_interval(tmp_path: Path) -> None:
    export = next(each for each in EXPORTS if each.preset == "evcc")
    ends = ("2025-10-24 15:00:00", "2025-10-24 18:00:00", "2025-10-26 05:30:00")
    lines = [f"2025-10-24 12:00:00,{end},Garage,,Auto,,,,10.0,3h0m0s,40.0,,," for end in ends]
    found = as_export(tmp_path, export, export.text(lines))
    assert [each["timestamp"][11:16] for each in found] == ["13:00", "16:00", "04:30"]


def test_rows_by_device_tell_the_direction_each_for_itself(tmp_path: Path) -> None:
    """Two devices, both ascending, the second one's rows older: the doubled hour of the first stays in order."""
    change = datetime(2026, 10, 25, 0, tzinfo=UTC)
    berlin, lines = ZoneInfo("Europe/Berlin"), ["device,when,kwh"]
    for device, start in (("A", change), ("B", change - timedelta(days=9))):
        for hour in range(4):
            local = (start + timedelta(hours=hour)).astimezone(berlin)
            lines.append(f"{device},{local:%Y-%m-%d %H:%M},{hour}")
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    options = FileOptions(
        columns=("meterId=device", "timestamp=when", "kwhConsumedAc=kwh"),
        time_zone="Europe/Berlin",
        time_format="%Y-%m-%d %H:%M",
        time_at=Label.START,
    )
    found = [each["timestamp"] for each in readings_of(path, options, None) if each["meterId"] == "A"]
    assert found == [f"2026-10-25T0{hour}:00:00Z" for hour in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("zone", "days", "ends"),
    [
        ("Africa/Cairo", ("2024-04-25", "2024-04-26"), ("2024-04-25T22:00:00Z", "2024-04-26T21:00:00Z")),
        ("Europe/London", ("2025-10-26", "2025-10-27"), ("2025-10-27T00:00:00Z", "2025-10-28T00:00:00Z")),
    ],
)
def test_days_end_where_the_next_one_begins(
    tmp_path: Path, zone: str, days: tuple[str, str], ends: tuple[str, str]
) -> None:
    path = tmp_path / "a.csv"
    options = FileOptions(
        columns=("timestamp=when", "kwhConsumedAc=kwh"), time_zone=zone, time_at=Label.START, interval="1d"
    )
    for form in ("{}", "{:%Y-%m-%dT00:00:00%z}") if zone != "Africa/Cairo" else ("{}",):
        given = [datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) for day in days]
        rows = [f"{form.format(day if '%' in form else day.date())},1" for day in given]
        path.write_text("\n".join(["when,kwh", *rows]))
        assert tuple(each["timestamp"] for each in readings_of(path, options)) == ends


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('when,kwh,note\n2026-01-01T00:00:00Z,1,"5 inch\n2026-01-01T00:15:00Z,2,x\n', "unexpected end of data"),
        ('when,kwh,note\n2026-01-01T00:00:00Z,1,"5\n2026-01-01T00:15:00Z,2,x"\n', "a quote is not closed"),
        ("when,kwh\n2026-01-01T00:00:00Z,1e999\n", "kwh is '1e999', not a number"),
    ],
)
def test_no_row_is_lost_silently(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=complaint):
        readings_of(path, FileOptions(columns=("timestamp=when", "kwhConsumedAc=kwh")))


@pytest.mark.parametrize(
    "text",
    [
        "200,N1,E1,1,E1,N1,1,kWh,720,\n300,20260101,1,2,A,\n200,N2,E1,1,E1,N1,1,kWh,x,\n300,20260101,5,6,A,\n",
        "200,N1,E1,1,E1,N1,1,kWh,720,\n300,20260101,1,2,A,\n200,N2,E1,1,E1,N1,1,kWh,0,\n300,20260101,5,6,A,\n",
        "200,N1,E1,1,E1,N1,1,kWh,720,\n300,20260101,1,2,A,\n300,20260102,5,x,A,\n300,99991231,5,6,A,\n",
    ],
)
def test_a_bad_record_of_nem12_is_nobodys(tmp_path: Path, text: str) -> None:
    path, skipped = tmp_path / "a.csv", Skipped()
    path.write_text(text)
    found = readings_of(path, FileOptions(preset="nem12"), None, skipped=skipped, skip_bad=True)
    assert [each["kwhConsumedAc"] for each in found] == [1, 2]
    assert skipped.bad


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("timestamp,kwhConsumedAc\n,1\n", ":2: timestamp is empty"),
        ("timestamp,kwhConsumedAc,kwhConsumedAc\n", ":1: the column kwhConsumedAc is there twice"),
    ],
)
def test_our_own_files_are_as_strict(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=complaint):
        readings_of(path, FileOptions())
    lines = tmp_path / "a.ndjson"
    lines.write_bytes(b"\xef\xbb\xbf" + b'{"timestamp":"2026-01-01T00:00:00Z","kwhConsumedAc":1}\n')
    assert len(readings_of(lines, FileOptions())) == 1


def test_a_time_without_offset_needs_a_zone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("when,kwh\n2026-01-15T00:15:00,400\n")
    with pytest.raises(FileError, match=r":2: .* has no offset: say in which --time-zone it is"):
        readings_of(path, FileOptions(columns=("timestamp=when", "kwhConsumedAc=kwh")))


def test_layouts_say_what_they_want() -> None:
    assert Layout().required() == []
