"""Declarations: what they say comes back as it was, and those that could not work are refused with the reason."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from shards.declaration import check_beside, check_kind, read, with_fields, written
from shards.errors import InvalidArgument, Refused
from shards.kinds import BUILT_IN, KINDS, METER, VEHICLE, Direction, Kind, Kinds, Role, Side, Type
from shards.readymade import EXTENSIONS, READY_MADE
from tests.support.declared import CHARGER, kinds

PLAIN: dict[str, Any] = {"name": "pump", "fields": [{"name": "flow"}]}


def field(**said: Any) -> dict[str, Any]:
    return {**PLAIN, "fields": [{"name": "flow", **said}]}


@given(kinds())
def test_a_declaration_comes_back_as_it_was(kind: Kind) -> None:
    assert read(written(kind)).is_declared_as(kind)


def test_what_is_left_out_is_what_one_expects() -> None:
    kind = read({**PLAIN, "name": "heat_pump"})
    assert (kind.path, kind.plural, kind.id_name, kind.id_column) == (
        "heat-pump",
        "heat-pumps",
        "heatPumpId",
        "heat_pump_id",
    )
    (flow,) = kind.fields
    assert (flow.column, flow.type, flow.kept, flow.in_status) == ("flow", Type.FLOAT8, True, True)
    assert read(field(type="int4")).fields[0].minimum == -(2**31)
    assert read(field(required=True)).fields[0].kept is False
    assert read(field(name="kwhOut", role="energy", min=0, direction="out")).energy is None


def test_ready_made_ones_are_valid_and_fit_together() -> None:
    everything = [*KINDS, *READY_MADE.values()]
    for kind in everything:
        check_beside(kind, everything)
        assert kind in KINDS or read(written(kind)).is_declared_as(kind)
    for name, groups in EXTENSIONS.items():
        extended = with_fields(BUILT_IN.by_name[name], [each for group in groups.values() for each in group])
        assert all(each.kept and not each.required for each in extended.fields[len(BUILT_IN.by_name[name].fields) :])
    assert METER.energy == with_fields(METER, EXTENSIONS["meter"]["export"]).energy


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({}, "missing required field `name`"),
        ({**PLAIN, "name": "Pump"}, "a name is lower case"),
        ({**PLAIN, "name": "pump; DROP TABLE x"}, "a name is lower case"),
        ({**PLAIN, "name": "p" * 21}, "at most 20"),
        ({**PLAIN, "name": "unknown"}, "a name is lower case"),
        ({**PLAIN, "fields": []}, "length >= 1 - at `fields`"),
        ({**PLAIN, "fields": [{"name": f"f{n}"} for n in range(65)]}, "length <= 64 - at `fields`"),
        ({**PLAIN, "colour": "red"}, "unknown field `colour`"),
        ({**PLAIN, "plural": "shards"}, "the path 'shards' is taken"),
        ({**PLAIN, "path": "a/b"}, "the path 'a/b' is taken, or not lower case"),
        ({**PLAIN, "plural": "pump"}, "both pump"),
        ({**PLAIN, "fields": [{"name": "pumpId2", "column": "pump_id"}]}, "(column pump_id) is there twice"),
        ({**PLAIN, "id": "id of it"}, "cannot be the name of an ID"),
        ({**PLAIN, "id": "timestamp"}, "cannot be the name of an ID"),
        ({**PLAIN, "id": "bucket"}, "the column bucket is taken"),
        ({**PLAIN, "side": "ac"}, "needs a field with the role energy"),
        ({**PLAIN, "side": "hot"}, "Invalid enum value 'hot' - at `side`"),
        ({**PLAIN, "interval_s": 0}, "Expected `float` >= 1.0 - at `interval_s`"),
        (field(name="a-b"), "lowerCamelCase"),
        (field(name='a"b'), "lowerCamelCase"),
        (field(name="timestamp"), "is taken by voltroute itself"),
        (field(name="class"), "is taken by voltroute itself"),
        (field(column="a b"), "is not snake_case"),
        (field(column="bucket"), "column bucket is taken"),
        (field(column="flow_at"), "column flow_at is taken"),
        (field(column="f" * 49), "at most 48"),
        (field(name="xmin"), "column xmin is taken"),
        (field(column="created"), "column created is taken"),
        (field(max=float("inf")), "a limit is a finite number"),
        (field(min=float("nan")), "a limit is a finite number"),
        ({**PLAIN, "id": "madeAt"}, "the column made_at is taken"),
        ({**PLAIN, "id": "ctid"}, "the column ctid is taken"),
        (field(type="uuid"), "Invalid enum value 'uuid' - at `fields[0].type`"),
        (field(min=5, max=1), "its limits are reversed: min 5 is above max 1"),
        (field(type="int4", max=2**31), "more than a int4 can hold"),
        (field(type="int4", min=0.5), "0.5 is no whole number"),
        (field(type="float4", max=1e39), "more than a float4 can hold"),
        (field(type="bool", min=0), "a bool has no limits"),
        (field(type="text"), "a text has a closed list of choices"),
        (field(choices=["a"]), "a text has a closed list of choices"),
        (field(type="text", choices=["a", "a"]), "each once"),
        (field(type="text", choices=["a\nb"]), "is no choice"),
        (field(type="text", choices=[""]), "is no choice"),
        (field(role="energy", type="float4", min=0), "the role energy needs the type float8"),
        (field(role="energy"), "the least energy is 0 or more"),
        (field(role="energy", min=-1), "what goes out is another field"),
        (field(role="level", type="bool"), "the role level needs the type"),
        (field(direction="out"), "only an energy has a direction"),
        (field(status=False), "its status needs a field"),
        ({**PLAIN, "fields": [{"name": "flow"}, {"name": "flow"}]}, "field flow (column flow) is there twice"),
        ({**PLAIN, "fields": [{"name": "flow"}, {"name": "other", "column": "flow"}]}, "(column flow) is there twice"),
        ({**PLAIN, "fields": [{"name": "pumpId"}]}, "field pumpId (column pump_id) is there twice"),
        (
            {**PLAIN, "fields": [{"name": name, "role": "energy", "min": 0} for name in ("one", "two")]},
            "field two: the role energy is there twice",
        ),
        (
            {
                **PLAIN,
                "fields": [
                    {"name": "one", "role": "energy", "min": 0, "required": True},
                    {"name": "count", "role": "register", "min": 0},
                ],
            },
            "neither is required",
        ),
    ],
)
def test_what_cannot_work_is_refused(declared: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read(declared)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"name": "other", "path": "meter"}, "a path of it is one of kind meter"),
        ({"name": "other", "path": "vehicles"}, "a path of it is one of kind vehicle"),
        (
            {"name": "other", "path": "other", "plural": "others", "id_name": "meterId"},
            "meterId is the ID of kind meter",
        ),
        ({"fields": (replace(CHARGER.fields[0], name="vehicleId"),)}, "its field vehicleId is the ID of kind vehicle"),
    ],
)
def test_what_could_be_taken_for_another_kind_is_refused(changed: dict[str, Any], reason: str) -> None:
    check_beside(CHARGER, KINDS)
    with pytest.raises(Refused) as refused:
        check_beside(replace(CHARGER, **changed), KINDS)
    assert reason in str(refused.value)


def test_added_fields_are_checked_with_the_others() -> None:
    twice = replace(VEHICLE.fields[0], name="other")
    with pytest.raises(InvalidArgument, match="is there twice"):
        with_fields(VEHICLE, [twice])
    check_kind(with_fields(VEHICLE, [replace(twice, column="other")]))
    many = [replace(twice, name=f"f{n}", column=f"f{n}") for n in range(62)]
    with pytest.raises(InvalidArgument, match="1 to 64 fields are expected, not 65"):
        with_fields(VEHICLE, many)


def test_a_kind_on_a_side_comes_back_as_it_was() -> None:
    for kind in (*KINDS, replace(CHARGER, side=Side.DC)):
        assert read(written(kind)).side is kind.side


def test_kinds_keep_the_objects_that_did_not_change() -> None:
    same = [replace(kind) for kind in KINDS]
    kept = Kinds([*same, CHARGER], 7).keeping(BUILT_IN)
    assert (kept.all, kept.epoch) == ((METER, VEHICLE, CHARGER), 7)
    changed = replace(VEHICLE, fields=VEHICLE.fields[:2])
    assert Kinds([METER, changed]).keeping(kept).all == (METER, changed)
    assert kept.on(Side.AC) == (METER,)
    assert [*kept] == [METER, VEHICLE, CHARGER]
    assert (kept.meter, kept.vehicle) == (METER, VEHICLE)
    assert {each.direction for each in VEHICLE.fields} == {Direction.IN}
    assert CHARGER.named(Role.ENERGY) == "kwh"
