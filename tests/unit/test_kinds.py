"""Readings of kinds that are declared: every type of field, alone and in batches of several kinds."""

import re
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import msgspec
import orjson
import pytest

from router.ingest.decode import decode
from router.ingest.shapes import Decoded, Shape
from router.wire.openapi import example
from router.wire.problems import ProblemError
from router.wire.readings import ID_PATTERN, foreign_letters, reading_type
from router.wire.stored import history_type, status_of
from shards.kinds import KINDS, METER, VEHICLE, Role, Type
from shards.postgres.sql import for_kind
from shards.storage.write import _statement
from tests.support.declared import CHARGER
from tests.support.readings import START, meter, vehicle
from tests.support.shapes import of

ALONE, ALL = Shape([CHARGER]), Shape((*KINDS, CHARGER))
WHOLE = {
    "chargerId": "C-1",
    "timestamp": "2026-05-01T00:00:00Z",
    "kwh": 0.5,
    "powerKw": 11,
    "voltage": 400.5,
    "phases": 3,
    "plugged": True,
    "state": "charging",
}
EARLIER = START - timedelta(hours=1)
CELLS = ("C-1", START, 0.5, 11.0, 400.5, 3, True, "charging")


def taken(shape: Shape, *items: object) -> Decoded:
    return decode(orjson.dumps(list(items)), shape, ndjson=False, readings_max=100)


@pytest.mark.parametrize("shape", [ALONE, ALL], ids=["alone", "mixed"])
@pytest.mark.parametrize("beside", [(), (5,)], ids=["all well", "one by one"])
def test_a_whole_reading(shape: Shape, beside: tuple[int, ...]) -> None:
    decoded = taken(shape, WHOLE, *beside)
    assert (list(decoded.readings), of(decoded, CHARGER)) == ([CHARGER], [(0, CELLS)])
    assert [type(cell) for cell in of(decoded, CHARGER)[0][1]] == list(map(type, CELLS))
    assert len(decoded.errors) == len(beside)


@pytest.mark.parametrize("shape", [ALONE, ALL], ids=["alone", "mixed"])
@pytest.mark.parametrize(
    ("change", "pointer", "code", "detail"),
    [
        ({"kwh": "much"}, "/kwh", "wrong_type", "must be a number, not str"),
        ({"kwh": -1}, "/kwh", "out_of_range", "must be >= 0"),
        ({"powerKw": 501}, "/powerKw", "out_of_range", "must be <= 500"),
        ({"voltage": 2001}, "/voltage", "out_of_range", "must be <= 2000"),
        ({"phases": 4}, "/phases", "out_of_range", "must be <= 3"),
        ({"phases": 1.5}, "/phases", "wrong_type", "must be a whole number, not float"),
        ({"plugged": 1}, "/plugged", "wrong_type", "must be true or false, not int"),
        ({"state": "flying"}, "/state", "not_a_choice", "must be one of idle, charging, faulted"),
        ({"state": 1}, "/state", "wrong_type", "must be a string, not int"),
        (
            {"soc": 5},
            "/soc",
            "unknown_field",
            "is not a field of this reading; `voltroute field add charger soc` declares it",
        ),
    ],
)
def test_each_field_has_its_limits(shape: Shape, change: dict[str, Any], pointer: str, code: str, detail: str) -> None:
    decoded = taken(shape, WHOLE, {**WHOLE, **change}, WHOLE)
    assert [index for index, _ in of(decoded, CHARGER)] == [0, 2]
    (error,) = decoded.errors
    assert (error.index, error.pointer, error.code, error.detail) == (1, pointer, code, detail)


def test_kinds_with_a_name_in_common_keep_their_own_limits() -> None:
    """`voltage` of a meter goes up to a million."""
    high = {**meter("HIGH"), "voltage": 5_000}
    decoded = taken(ALL, meter("M"), high, vehicle("V"), {**WHOLE, "voltage": 5_000}, WHOLE)
    assert {kind: list(items.indexes) for kind, items in decoded.readings.items()} == {
        METER: [0, 1],
        VEHICLE: [2],
        CHARGER: [4],
    }
    assert [(error.index, error.pointer, error.code) for error in decoded.errors] == [(3, "/voltage", "out_of_range")]
    assert of(decoded, CHARGER) == [(4, CELLS)]


def test_a_name_in_common_may_be_left_out() -> None:
    without = {name: value for name, value in WHOLE.items() if name != "voltage"}
    nobodys = {name: value for name, value in meter("M").items() if name != "voltage"}
    decoded = taken(ALL, without, nobodys)
    assert of(decoded, CHARGER) == [(0, (*CELLS[:4], None, *CELLS[5:]))]
    assert of(decoded, METER) == [(1, ("M", START, 0.5, None, None))]
    needed = replace(CHARGER, fields=tuple(replace(each, required=True) for each in CHARGER.fields))
    (error,) = taken(Shape((*KINDS, needed)), without).errors
    assert (error.pointer, error.code) == ("/voltage", "missing_field")


def test_what_is_wrong_with_the_kind_is_told_by_all_names() -> None:
    nobodys = {"timestamp": WHOLE["timestamp"]}
    details = [error.detail for error in taken(ALL, nobodys, {**WHOLE, "meterId": "M"}).errors]
    assert details == ["has neither meterId, vehicleId nor chargerId", "has both meterId and chargerId"]


def test_examples_are_readings() -> None:
    for kind in (*KINDS, CHARGER):
        assert taken(Shape([kind]), example(kind)).valid == 1


def test_stored_readings_are_told_by_their_names_in_json() -> None:
    row = {"charger_id": "C-1", **dict(zip(CHARGER.values, CELLS[2:], strict=True))}
    told = msgspec.to_builtins(history_type(CHARGER)(**row, timestamp=START, ingested_at=START))
    assert told == {**WHOLE, "powerKw": 11.0, "ingestedAt": WHOLE["timestamp"]}
    times = {field.time_column: START for field in CHARGER.kept} | {"power_kw_at": EARLIER, "phases_at": None}
    status = status_of(CHARGER, {**row, **times, "phases": None, "last_updated": START, "created_at": START})
    shown = msgspec.to_builtins(status)
    assert (shown["phases"], shown["powerKw"]) == (None, 11.0)
    assert shown["valueTimes"] == {"powerKw": "2026-04-30T23:00:00Z"}


def test_statements_have_an_array_of_its_type_for_each_field_that_is_there() -> None:
    all_of = _statement(CHARGER, ())
    for text in ("$5::float8[]", "$6::float8[]", "$8::int4[]", "$9::bool[]", "$10::text[]"):
        assert text in all_of
    few = _statement(CHARGER, CHARGER.optional)
    assert "$5::float8[], $6::text[]\n" in few
    assert "power_kw" not in few  # what is not there stays in the status as it is
    whole = _statement(VEHICLE, (2,))
    assert "$6::float8[], $7::boolean[]" in whole
    assert '"battery_temp" = excluded."battery_temp"' in whole  # what is not there is not the reading's before
    register = _statement(METER, (0,))
    assert 'THEN excluded."kwh_consumed_ac" ELSE' in register
    assert for_kind("{temperature} {register}", CHARGER) == "NULL::float8 NULL::float8"


def test_a_float4_is_shown_by_its_text_and_taken_as_it_is_stored() -> None:
    narrow = replace(CHARGER, fields=(replace(CHARGER.fields[1], type=Type.FLOAT4),))
    assert for_kind("{stored_values}", narrow) == '"power_kw"::text::float8 AS "power_kw"'
    (mine,) = of(taken(Shape([narrow]), {"chargerId": "C", "timestamp": WHOLE["timestamp"], "powerKw": 0.1}), narrow)
    assert mine[1][2] == 0.10000000149011612
    (mine,) = of(taken(Shape([narrow]), {"chargerId": "C", "timestamp": WHOLE["timestamp"]}), narrow)
    assert mine[1][2] is None


def test_values_that_are_no_list_are_not_taken_for_one() -> None:
    """What follows the first value is not JSON, also where a kind's readings are decoded together."""
    two = b",".join([orjson.dumps(WHOLE)] * 2)
    with pytest.raises(ProblemError, match="trailing characters"):
        decode(two, ALL, ndjson=False, readings_max=100)
    broken = b"\n".join([two, orjson.dumps(WHOLE)])
    decoded = decode(broken, ALL, ndjson=True, readings_max=100)
    assert ([error.index for error in decoded.errors], decoded.valid) == ([0], 1)


@pytest.mark.parametrize("shape", [Shape([CHARGER], ignoring=True), Shape((*KINDS, CHARGER), ignoring=True)])
def test_fields_that_nobody_declared_may_be_left_out(shape: Shape) -> None:
    decoded = taken(shape, WHOLE, {**WHOLE, "soc": 5, "colour": "red"}, {**WHOLE, "state": "flying", "colour": "red"})
    assert of(decoded, CHARGER) == [(0, CELLS), (1, CELLS)]
    assert (decoded.ignored, [error.pointer for error in decoded.errors]) == (3, ["/state"])
    odd = orjson.dumps(WHOLE).replace(b'"kwh"', b'"odd":NaN,"kwh"')
    decoded = decode(odd, shape, ndjson=False, readings_max=1)
    assert (decoded.ignored, decoded.valid) == (1, 1)
    nobodys = decode(b'{"odd":1}', shape, ndjson=False, readings_max=1)
    assert (nobodys.ignored, len(nobodys.errors)) == (0 if shape.kind is None else 1, 1)


def test_a_retired_field_is_refused_with_that_reason() -> None:
    gone = replace(CHARGER.fields[1], retired=date(2026, 11, 27))
    kind = replace(CHARGER, fields=(CHARGER.fields[0], *CHARGER.fields[2:]), retired=(gone,))
    (error,) = taken(Shape([kind]), WHOLE).errors
    assert (error.pointer, error.code) == ("/powerKw", "retired_field")
    assert error.detail == "was retired on 2026-11-27: it is refused"


def test_roles_and_names() -> None:
    assert (METER.energy, METER.register, METER.column(Role.LEVEL)) == ("kwh_consumed_ac", "register_kwh", None)
    assert (VEHICLE.temperature, VEHICLE.named(Role.LEVEL), str(VEHICLE)) == ("battery_temp", "soc", "vehicle")
    assert reading_type(METER) is reading_type(METER)


def test_the_letters_of_ids_are_those_of_their_pattern() -> None:
    for letter in map(chr, range(0x2FF)):
        try:
            foreign = bool(foreign_letters([f"M{letter}1"]))
        except UnicodeEncodeError:
            foreign = True
        assert foreign is (re.search(ID_PATTERN + r"(?!\n)", f"M{letter}1") is None), letter
        reading = {**WHOLE, "chargerId": f"C{letter}"}
        assert (taken(Shape([CHARGER]), reading).valid == 0) is foreign
