"""Readings as a load has them: checked, sorted out, cut into portions and summed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.buckets import BucketRange
from shards.bulk import sums
from shards.bulk.checking import BadRow, Batch, Checker, renamed
from shards.bulk.readings import DAY_US
from shards.bulk.sources import File, Naming, form_of
from shards.bulk.spool import Spool
from shards.errors import InvalidArgument
from shards.kinds import METER, VEHICLE, Field, Kind, Type
from shards.storage.tiers import shape_of
from tests.support.bulk import readings_of

START = datetime(2026, 5, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 28, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "vehicleId": "V-1",
    "timestamp": "2026-05-01T00:01:00Z",
    "soc": 50.0,
    "kwhDeliveredDc": 0.5,
    "batteryTemp": 20.0,
}
ODD = Kind(
    "odd",
    "oddId",
    "odd_id",
    "",
    (
        Field("count", "count", "", Type.INT, minimum=0, maximum=9),
        Field("state", "state", "", Type.TEXT, choices=("on", "off")),
        Field("is_open", "is_open", "", Type.BOOL),
        Field("level", "level", "", Type.FLOAT4, minimum=-1, maximum=1),
    ),
)


def checker(kind: Kind = VEHICLE, **more: Any) -> Checker:
    return Checker(kind, START - timedelta(days=30), NOW, **more)


def batch(*rows: dict[str, Any]) -> Batch:
    return Batch("file", 1, pa.Table.from_pylist(list(rows)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"soc": 100.5}, "row 2: soc is 100.5, and must be at most 100"),
        ({"soc": None}, "row 2: soc is required"),
        ({"soc": float("nan")}, "row 2: soc is required"),
        ({"kwhDeliveredDc": -0.1}, "row 2: kwhDeliveredDc is -0.1, and must be at least 0"),
        ({"vehicleId": None}, "row 2: vehicleId is required"),
        ({"vehicleId": "a b"}, "row 2: vehicleId 'a b' must be 1 to 64 of"),
        ({"vehicleId": "x" * 65}, "row 2: vehicleId 'xxxx"),
        ({"timestamp": None}, "row 2: timestamp is required"),
        ({"timestamp": "2026-03-01T00:00:00Z"}, "row 2: timestamp 2026-03-01T00:00:00Z is before 2026-04-01"),
        ({"timestamp": "2026-12-01T00:00:00+01:00"}, "row 2: timestamp 2026-11-30T23:00:00Z is in the future"),
        (
            {"timestamp": "yesterday"},
            "row 2: timestamp 'YESTERDAY' is no time with an offset; one is 2026-05-01T00:00:00Z",
        ),
        ({"timestamp": "2026-05-01 00:00:00"}, "row 2: timestamp '2026-05-01 00:00:00' is no time with an offset"),
    ],
)
def test_what_is_wrong_is_told_by_row_and_field(change: dict[str, Any], told: str) -> None:
    rows = batch(GOOD, {**GOOD, **change}, {**GOOD, "vehicleId": "V-2"})
    with pytest.raises(BadRow) as error:
        checker().check(rows)
    assert str(error.value).startswith(f"file: {told}")
    left = checker(skip_bad=True)
    checked = left.check(rows)
    assert [checked.devices[at] for at in checked.device] == ["V-1", "V-2"]
    assert (len(left.bad), checked.times.tolist()) == (1, [1777593660000000] * 2)


def test_a_meter_sends_energy_or_its_count() -> None:
    row = {"meterId": "M", "timestamp": "2026-05-01T00:01:00Z", "kwhConsumedAc": 1.0, "registerKwh": None}
    assert len(checker(METER).check(batch(row, {**row, "kwhConsumedAc": None, "registerKwh": 2.0})).times) == 2
    with pytest.raises(BadRow, match="row 1: kwhConsumedAc is required, or registerKwh in its place"):
        checker(METER).check(batch({**row, "kwhConsumedAc": None}, {**row, "registerKwh": 2.0}))
    with pytest.raises(BadRow, match="row 1: registerKwh is given beside kwhConsumedAc"):
        checker(METER).check(batch({**row, "registerKwh": 2.0}))


def test_fields_of_every_type() -> None:
    row = {"oddId": "O", "timestamp": "2026-05-01T00:01:00Z", "count": 3, "state": "on", "is_open": True, "level": 0.1}
    found = checker(ODD).check(batch(row, {**row, "state": None, "is_open": None, "count": None, "level": None}))
    assert [each.listed() for each in found.values] == [
        [3, None],
        ["on", None],
        [True, None],
        [pytest.approx(0.1), None],
    ]
    assert found.values[3].data.dtype == np.float32
    for change, told in (
        ({"count": 10}, "count is 10, and must be at most 9"),
        ({"count": 1.5}, "count '1.5' is not a whole number"),
        ({"state": "broken"}, "state 'broken' is none of on, off"),
        ({"is_open": "maybe"}, "is_open 'maybe' is not true or false"),
        ({"level": "high"}, "level 'high' is not a number"),
        ({"level": float("inf")}, "level is inf, and must be at most 1"),
    ):
        with pytest.raises(BadRow, match=f"row 1: {told}"):
            checker(ODD).check(batch({**row, **change}))


@pytest.mark.parametrize(
    ("given_", "more", "expected"),
    [
        (pa.array([1_777_593_660], pa.int64()), {"unit": "s"}, 0),
        (pa.array([1_777_593_660_000], pa.int64()), {"unit": "ms"}, 0),
        (pa.array(["2026-05-01 02:01:00"]), {"zone": "Europe/Berlin"}, 0),
        (pa.array(["2026-05-01T02:01:00+02:00"]), {}, 0),
        (pa.array([datetime(2026, 5, 1, 0, 1)], pa.timestamp("s")), {"zone": "UTC"}, 0),  # noqa: DTZ001 - one without
        (pa.array([1_777_593_660_000_000_999], pa.timestamp("ns", "UTC")), {}, 0),
        (pa.array(["2026-05-01T00:01:00.000001Z"]), {}, 1),
        (pa.array(["2026-05-01 00:01:00+00"]), {}, 0),
        (pa.array([" 2026-05-01t00:01:00.000001999z "]), {}, 1),
        (pa.array(["1777593660000"]), {"unit": "ms"}, 0),
    ],
)
def test_times_as_others_write_them(given_: Any, more: dict[str, Any], expected: int) -> None:
    table = batch(GOOD).table.set_column(1, "timestamp", given_)
    assert checker(**more).check(Batch("file", 1, table)).times.tolist() == [1777593660000000 + expected]


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        (pa.array([1]), "timestamp is a whole number: say --time-unit"),
        (pa.array(["2026-05-01 02:01:00"]), "its times have no time zone: say --time-zone"),
        (pa.array([1.5]), "timestamp is double, which is no time"),
        (
            pa.array(["2026-10-25 02:30:00"]),
            "row 1: timestamp 2026-10-25 02:30:00 is twice in Europe/Berlin, or not at all",
        ),
        (
            pa.array(["2026-03-29 02:30:00"]),
            "row 1: timestamp 2026-03-29 02:30:00 is twice in Europe/Berlin, or not at all",
        ),
        (pa.array([2**64 - 1], pa.uint64()), "timestamp is uint64"),
    ],
)
def test_times_that_say_too_little(given_: Any, told: str) -> None:
    table = batch(GOOD).table.set_column(1, "timestamp", given_)
    looking = checker(zone="Europe/Berlin" if "Berlin" in told else None, unit="s" if "uint64" in told else None)
    with pytest.raises(InvalidArgument, match=told):
        looking.check(Batch("file", 1, table))


def test_columns_are_named_by_field_or_column_or_as_somebody_says() -> None:
    columns = ["vehicle_id", "timestamp", "charge", "kwhDeliveredDc", "battery_temp", "note"]
    assert renamed(VEHICLE, columns, {"soc": "charge"}, ["note"], "file") == {
        "charge": "soc",
        "vehicle_id": "vehicleId",
        "timestamp": "timestamp",
        "kwhDeliveredDc": "kwhDeliveredDc",
        "battery_temp": "batteryTemp",
    }
    for given_, left_out, told in (
        ({"soc": "charge"}, [], "the column 'note' is no field of vehicle: say --map FIELD=note, or --ignore note"),
        ({"soc": "level"}, ["note"], "there is no column 'level'"),
        ({"voltage": "note"}, [], "--map voltage: vehicle has no such field"),
    ):
        with pytest.raises(InvalidArgument, match=told):
            renamed(VEHICLE, columns, given_, left_out, "file")
    with pytest.raises(InvalidArgument, match="the column 'soc' is there twice"):
        renamed(VEHICLE, ["soc", "soc"], {}, [], "file")
    nested = Batch(
        "file", 1, pa.table({**dict.fromkeys(GOOD, pa.array([[1]])), "timestamp": pa.array(["2026-05-01T00:00:00Z"])})
    )
    with pytest.raises(InvalidArgument, match="vehicleId is list<item: int64>"):
        checker().check(nested)
    with pytest.raises(InvalidArgument, match="two columns are kwhConsumedAc: say which one with --map"):
        renamed(METER, ["kwhConsumedAc", "kwh_consumed_ac"], {}, [], "file")
    for missing in ("vehicleId", "timestamp", "soc"):
        with pytest.raises(InvalidArgument, match=f"no column is {missing}"):
            checker().check(batch({name: value for name, value in GOOD.items() if name != missing}))
    assert checker(device="V-9").check(batch({n: v for n, v in GOOD.items() if n != "vehicleId"})).devices == ["V-9"]


ROWS = st.lists(
    st.tuples(st.integers(0, 4 * 1440), st.sampled_from("ABC"), st.sampled_from([0.0, 0.25, -0.0, 1.5])), max_size=60
)


@given(ROWS, st.integers(1, 12))
def test_portions_hold_every_reading_once_and_no_part_of_a_day(rows: list[Any], size: int) -> None:
    shape = shape_of(VEHICLE)
    given_ = [(START + timedelta(minutes=minute), device, (50.0, kwh, 20.0)) for minute, device, kwh in rows]
    found = readings_of(shape, given_).sorted()
    whole, duplicates, conflicts = found.without_repeats()
    first: dict[tuple[int, str], str] = {}
    expected = [0, 0]
    for minute, device, kwh in rows:
        known = first.setdefault((minute, device), repr(kwh))
        expected[known != repr(kwh)] += 1
    assert (duplicates, conflicts) == (expected[0] - len(first), expected[1])
    kept = zip(whole.times.tolist(), whole.device.tolist(), map(repr, whole.values[1].listed()), strict=True)
    zero = int(START.timestamp()) * 1_000_000
    assert {((us - zero) // 60_000_000, whole.devices[at]): kwh for us, at, kwh in kept} == first
    places: list[int] = []
    days: list[set[tuple[int, int]]] = []
    for portion in whole.portions(size):
        some = whole.at(portion)
        assert portion.tolist() == sorted(portion.tolist())
        days.append(set(zip(some.device.tolist(), some.days.tolist(), strict=True)))
        places += portion.tolist()
    assert sorted(places) == list(range(len(whole)))
    assert sum(map(len, days)) == len(set().union(*days))


def test_sums_that_do_not_fit_are_told() -> None:
    shape = shape_of(METER)
    rows = [(START + timedelta(minutes=n), "M", (1e6, None, None)) for n in range(5000)]
    assert not sums.fit(METER, shape, readings_of(shape, rows))
    assert sums.fit(METER, shape, readings_of(shape, rows[:1000]))
    assert sums.hours(METER, shape, readings_of(shape, []), 0, 0) == []
    assert sums.minutes(METER, shape, readings_of(shape, []), 0, 0) == []
    assert DAY_US == 86_400_000_000


FORMS = {
    "csv": (
        "vehicleId,timestamp,soc,kwhDeliveredDc,batteryTemp\n"
        "V,2026-05-01T00:01:00Z,1,0,20\nV,2026-05-01T00:02:00Z,abc,0,20\nV,2026-05-01T00:03:00Z,3,0\n"
        "V,2026-05-01T00:04:00Z,4,0,20\n"
    ),
    "ndjson": (
        '{"vehicleId":"V","timestamp":"2026-05-01T00:01:00Z","soc":1,"kwhDeliveredDc":0,"batteryTemp":20}\n'
        '{"vehicleId":"V","timestamp":"2026-05-01T00:02:00Z","soc":"abc","kwhDeliveredDc":0,"batteryTemp":20}\n\n'
        '{"vehicleId":"V","timestamp":"2026-05-01T00:03:00Z","soc":3,"kwh":0,"batteryTemp":20}\n'
        '{"vehicle_id":"V","timestamp":"2026-05-01T00:04:00Z","soc":4,"kwhDeliveredDc":0,"batteryTemp":20}\n[]\n'
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
async def test_bad_rows_of_files_are_left_out_and_told(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"readings.{form}"
    path.write_text(FORMS[form])
    of = checker(skip_bad=True)
    file = File(path, form_of(path, None), Naming(VEHICLE), of.bad.append)
    found = [of.check(each) async for each in file.batches()]
    assert [value for each in found for value in each.values[0].listed()] == [1.0, 4.0]
    assert any("soc 'abc' is not a number" in each for each in of.bad)
    words = {
        "csv": "5 cells are expected, there are 4",
        "ndjson": "4: 'kwh' is no field of vehicle: say --map FIELD=kwh",
    }
    assert any(words[form] in each for each in of.bad), of.bad
    with pytest.raises(InvalidArgument):
        [checker().check(each) async for each in File(path, form_of(path, None), Naming(VEHICLE)).batches()]


@pytest.mark.parametrize("text", ["", "a,b", "vehicleId,timestamp,soc,kwhDeliveredDc,batteryTemp\n"])
async def test_files_without_rows(text: str, tmp_path: Path) -> None:
    path = tmp_path / "readings.csv"
    path.write_text(text)
    file = File(path, form_of(path, None), Naming(VEHICLE))
    if "soc" in text:
        assert sum([each.table.num_rows async for each in file.batches()]) == 0
    else:
        with pytest.raises(InvalidArgument, match=str(path)):
            [each async for each in file.batches()]


def test_a_spool_is_gone_on_with_by_the_same_load_alone(tmp_path: Path) -> None:
    """Also after it was interrupted while it was read: then that begins anew."""
    folder, rows = tmp_path / "spool", batch(GOOD, {**GOOD, "vehicleId": "V-2"})
    first = Spool(folder, VEHICLE, BucketRange(0, 4), ["one"])
    first.add(checker().check(rows))
    first._flush()
    again = Spool(folder, VEHICLE, BucketRange(0, 4), ["one"])
    assert (again.state.read, again.units()) == (False, [])
    again.add(checker().check(rows))
    again.finish()
    assert folder.stat().st_mode & 0o777 == 0o700
    resumed = Spool(folder, VEHICLE, BucketRange(0, 4), ["one"])
    assert resumed.state.read
    loaded = [resumed.load(unit) for unit in resumed.units()]
    assert sorted(each.devices[at] for each in loaded for at in each.device.tolist()) == ["V-1", "V-2"]
    with pytest.raises(InvalidArgument, match="another load was interrupted there"):
        Spool(folder, VEHICLE, BucketRange(0, 4), ["other"])


def test_a_text_that_a_batch_lacks_is_spooled(tmp_path: Path) -> None:
    row = {"oddId": "O", "timestamp": "2026-05-01T00:01:00Z", "count": 3, "state": "on"}
    spool = Spool(tmp_path / "spool", ODD, BucketRange(0, 1), ["one"])
    for each in (row, {**row, "state": None, "timestamp": "2026-05-01T00:02:00Z"}):
        spool.add(checker(ODD).check(batch({name: value for name, value in each.items() if value is not None})))
    spool.finish()
    (unit,) = spool.units()
    assert spool.load(unit).values[1].listed() == ["on", None]
