"""Decoding: each way in which an item or a body is refused, with the field that is named."""

from datetime import UTC, datetime, timedelta

import orjson
import pytest

from router.ingest.decode import decode, keep_prefix
from router.ingest.routing import route
from router.reads.efficiency import coverage
from router.wire.complaints import explain
from router.wire.problems import CONTENT_TOO_LARGE, MALFORMED_BODY, ProblemError
from shards.catalog.shard_map import ShardMap
from shards.errors import InvalidArgument
from shards.kinds import METER
from shards.moves.phases import Move, Phase, Recorded, Role, check_record
from shards.shard import ShardRecord, ShardState, check_name
from shards.window import Window
from tests.support.readings import START, meter, register, vehicle
from tests.support.shapes import METER_SHAPE, MIXED_SHAPE, VEHICLE_SHAPE, meters, vehicles


def body_of(*items: object) -> bytes:
    return orjson.dumps(list(items))


@pytest.mark.parametrize(
    ("item", "pointer", "code"),
    [
        ({**meter(), "vehicleId": "V"}, "", "ambiguous_kind"),
        ({"timestamp": meter()["timestamp"]}, "", "ambiguous_kind"),
        ({k: v for k, v in meter().items() if k != "kwhConsumedAc"}, "/kwhConsumedAc", "missing_field"),
        ({**meter(), "registerKwh": 5}, "/registerKwh", "ambiguous_energy"),
        ({**meter(), "registerKwh": -1}, "/registerKwh", "out_of_range"),
        ({k: v for k, v in vehicle().items() if k != "soc"}, "/soc", "missing_field"),
        ({**meter(), "soc": 5}, "/soc", "unknown_field"),
        ({**vehicle(), "soc": 500}, "/soc", "out_of_range"),
        (7, "", "wrong_type"),
    ],
)
def test_a_mixed_item_that_is_no_reading(item: object, pointer: str, code: str) -> None:
    decoded = decode(body_of(meter("GOOD"), item, vehicle("GOOD")), MIXED_SHAPE, ndjson=False, readings_max=10)
    assert (len(meters(decoded)), len(vehicles(decoded))) == (1, 1)
    assert [(e.index, e.pointer, e.code) for e in decoded.errors] == [(1, pointer, code)]


@pytest.mark.parametrize(
    ("text", "pointer", "code"),
    [
        (
            b'{"meterId":"M","kwhConsumedAc":NaN,"voltage":1,"timestamp":"2026-05-01T00:00:00Z"}',
            "/kwhConsumedAc",
            "out_of_range",
        ),
        (b'{"timestamp":"\\ud800"}', "", "malformed"),
        (b"{not json}", "", "malformed"),
        (b"1 2", "", "malformed"),
    ],
)
def test_a_line_that_is_no_reading(text: bytes, pointer: str, code: str) -> None:
    lines = b"\n".join([orjson.dumps(meter("GOOD")), text])
    decoded = decode(lines, METER_SHAPE, ndjson=True, readings_max=10)
    assert [(e.index, e.pointer, e.code) for e in decoded.errors] == [(1, pointer, code)]
    assert len(decoded) == 2


def test_every_meter_has_one_energy() -> None:
    readings = [meter("A"), {**meter("B"), "registerKwh": 5}, {"meterId": "C", "timestamp": meter()["timestamp"]}]
    for shape in (METER_SHAPE, MIXED_SHAPE):
        decoded = decode(body_of(*readings), shape, ndjson=False, readings_max=10)
        assert [index for index, _ in meters(decoded)] == [0]
        assert [(error.index, error.pointer) for error in decoded.errors] == [
            (1, "/registerKwh"),
            (2, "/kwhConsumedAc"),
        ]


def test_a_null_is_a_field_that_is_not_there_whatever_stands_beside_it() -> None:
    item = {**vehicle(), "kwhConsumedAc": None}
    for beside in ([], [5]):
        decoded = decode(body_of(item, *beside), MIXED_SHAPE, ndjson=False, readings_max=10)
        assert (len(vehicles(decoded)), len(decoded.errors)) == (1, len(beside))


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31t23:59:60.25z", "2017-01-01T00:00:00.250000Z"),
        ("2017-01-01T00:59:60+01:00", "2017-01-01T01:00:00+01:00"),
        ("2016-12-31T23:61:60Z", None),
        ("2016-12-31T23:59:61Z", None),
    ],
)
def test_a_leap_second_is_the_second_after_it(text: str, stored: str | None) -> None:
    decoded = decode(body_of({**meter(), "timestamp": text}), METER_SHAPE, ndjson=False, readings_max=10)
    if stored is None:
        assert [error.pointer for error in decoded.errors] == ["/timestamp"]
    else:
        assert [cells[1].isoformat() for _, cells in meters(decoded)] == [stored.replace("Z", "+00:00")]


@pytest.mark.parametrize(
    ("body", "detail"),
    [(b'{"meterId":"\xff" x}', "not UTF-8"), (b"[" * 100_000, "nested too deeply"), (b"{", "truncated")],
)
def test_a_body_that_cannot_be_parsed(body: bytes, detail: str) -> None:
    with pytest.raises(ProblemError) as refused:
        decode(body, METER_SHAPE, ndjson=False, readings_max=10)
    assert refused.value.problem is MALFORMED_BODY
    assert detail in refused.value.detail


@pytest.mark.parametrize("ndjson", [False, True])
def test_too_many_readings(ndjson: bool) -> None:
    readings = [meter(f"M-{n}") for n in range(11)]
    body = b"\n".join(map(orjson.dumps, readings)) if ndjson else body_of(*readings)
    with pytest.raises(ProblemError) as refused:
        decode(body, METER_SHAPE, ndjson=ndjson, readings_max=10)
    assert refused.value.problem is CONTENT_TOO_LARGE
    assert "11 readings in one request" in refused.value.detail


def test_one_reading_and_readings_of_one_kind() -> None:
    assert len(vehicles(decode(orjson.dumps(vehicle()), VEHICLE_SHAPE, ndjson=False, readings_max=1))) == 1
    assert len(decode(b" [] ", METER_SHAPE, ndjson=False, readings_max=1)) == 0


def test_readings_outside_their_time_are_told_which_limit() -> None:
    late, early = vehicle("V", 5), vehicle("V", -5)
    decoded = decode(body_of(late, early, meter("M", -5)), MIXED_SHAPE, ndjson=False, readings_max=10)
    chunks, errors = route(decoded, ShardMap(1, ("a",)), 0, START, START + timedelta(minutes=1))
    assert chunks == {}
    assert sorted((e.index, e.code) for e in errors) == [(0, "in_future"), (1, "too_old"), (2, "too_old")]


def test_a_complaint_nobody_has_words_for_is_passed_on() -> None:
    assert explain("Something new - at `$.soc`") == ("/soc", "invalid", "Something new")


def test_coverage_is_a_share() -> None:
    hour = Window(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 1, 1, tzinfo=UTC))
    assert [coverage(*each, hour) for each in ((30, 1), (60, 2), (90, 1), (0, 0))] == [0.5, 0.5, 1.0, 0.0]


def test_names_and_records() -> None:
    assert check_name("shard-1") == "shard-1"
    for bad in ("", "1a", "A", "a" * 32, "ä", "a b"):
        with pytest.raises(InvalidArgument):
            check_name(bad)
    secret = ShardRecord("a", ShardState.ACTIVE, "postgresql://u:SECRET@h/d", "w", "r")
    assert repr(secret) == "ShardRecord('a', 'active')"
    assert str(METER) == "meter"


def test_a_record_takes_only_legal_steps() -> None:
    check_record(Role.SOURCE, Recorded.COPYING, Recorded.FENCED)
    for role, before, after in (
        (Role.SOURCE, Recorded.FENCED, Recorded.COPYING),
        (Role.SOURCE, Recorded.ABORTED, Recorded.FENCED),
        (Role.TARGET, Recorded.ABORTED, Recorded.ATTACHED),
        (Role.TARGET, Recorded.COPYING, Recorded.FENCED),
    ):
        with pytest.raises(ValueError, match="does not go"):
            check_record(role, before, after)
    move = Move(1, 1, 0, "a", "b", Phase.PLANNED)
    assert (move.shard(Role.SOURCE), move.shard(Role.TARGET)) == ("a", "b")


def test_a_prefix_keeps_readings_of_its_devices_alone() -> None:
    items = [meter("A-1"), meter("B-1"), vehicle("A-2"), vehicle("AB"), {"meterId": "A-3"}, 5]
    decoded = decode(orjson.dumps(items), MIXED_SHAPE, ndjson=False, readings_max=10)
    keep_prefix(decoded, "A-")
    assert [index for index, _ in meters(decoded)] == [0]
    assert [index for index, _ in vehicles(decoded)] == [2]
    errors = {error.index: (error.pointer, error.code) for error in decoded.errors}
    assert errors == {
        1: ("/meterId", "foreign_device"),
        3: ("/vehicleId", "foreign_device"),
        4: ("/timestamp", "missing_field"),
        5: ("", "wrong_type"),
    }


def test_meters_with_energies_and_registers_in_one_batch() -> None:
    items = [register("R"), meter("M"), {**meter("X"), "registerKwh": 1.0}]
    decoded = decode(orjson.dumps(items), METER_SHAPE, ndjson=False, readings_max=10)
    assert [index for index, _ in meters(decoded)] == [0, 1]
    assert [(error.index, error.code) for error in decoded.errors] == [(2, "ambiguous_energy")]
    whole = decode(orjson.dumps(items[:2]), METER_SHAPE, ndjson=False, readings_max=10)
    assert ([index for index, _ in meters(whole)], whole.errors) == ([0, 1], [])
