"""Decoding: the fast pass and the careful one agree, and nothing but a problem ever comes out."""

import json
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ingest.decode import decode, decode_together, in_pieces
from router.ingest.gathering import may_join
from router.wire.problems import ProblemError
from tests.support.readings import meter, vehicle
from tests.support.shapes import METER_SHAPE, MIXED_SHAPE, VEHICLE_SHAPE, meters, vehicles

FORMATS = st.sampled_from([METER_SHAPE, VEHICLE_SHAPE, MIXED_SHAPE])
READINGS = st.one_of(
    st.builds(meter, st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True), st.integers(0, 10**6)),
    st.builds(vehicle, st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True), st.integers(0, 10**6)),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(["meterId", "vehicleId", "kwhConsumedAc", "voltage", "soc", "timestamp", "extra"])


@given(body=st.binary(max_size=300), shape=FORMATS, ndjson=st.booleans())
def test_any_bytes(body: bytes, shape: Any, ndjson: bool) -> None:
    try:
        decode(body, shape, ndjson=ndjson, readings_max=1_000)
    except ProblemError as error:
        assert error.problem.status == 400


@given(items=st.lists(JSON | st.dictionaries(FIELDS, JSON), max_size=5), shape=FORMATS, ndjson=st.booleans())
def test_any_json_and_every_item_is_accounted_for(items: list[Any], shape: Any, ndjson: bool) -> None:
    texts = [json.dumps(item) for item in items]
    body = ("\n".join(texts) if ndjson else "[" + ",".join(texts) + "]").encode("utf-8", "surrogatepass")
    decoded = decode(body, shape, ndjson=ndjson, readings_max=1_000)
    assert len(decoded) == len(items)
    indexes = [index for index, _ in [*meters(decoded), *vehicles(decoded)]] + [e.index for e in decoded.errors]
    assert sorted(indexes) == list(range(len(items)))
    for error in decoded.errors:
        assert error.code
        assert error.detail
        orjson.dumps(msgspec.to_builtins(error))


@given(readings=st.lists(READINGS, min_size=1, max_size=20), place=st.integers(0, 20), ndjson=st.booleans())
def test_a_bad_neighbour_changes_nothing(readings: list[dict[str, Any]], place: int, ndjson: bool) -> None:
    place = min(place, len(readings))

    def run(items: list[Any]) -> Any:
        texts = [orjson.dumps(item) for item in items]
        body = b"\n".join(texts) if ndjson else b"[" + b",".join(texts) + b"]"
        return decode(body, MIXED_SHAPE, ndjson=ndjson, readings_max=1_000)

    alone = run(readings)
    among = run([*readings[:place], {"meterId": "x"}, *readings[place:]])
    assert alone.errors == []
    assert [e.index for e in among.errors] == [place]

    def plain(found: Any) -> list[Any]:
        return sorted((cells for _, cells in [*meters(found), *vehicles(found)]), key=repr)

    assert plain(alone) == plain(among)


ITEMS = st.one_of(READINGS, JSON, st.dictionaries(FIELDS, JSON))


@given(
    items=st.lists(ITEMS, max_size=12),
    shape=FORMATS,
    ndjson=st.booleans(),
    most=st.integers(1, 5),
    broken=st.booleans(),
)
def test_in_pieces_is_what_it_is_at_once(items: list[Any], shape: Any, ndjson: bool, most: int, broken: bool) -> None:
    texts = [json.dumps(item) for item in items] + ["{" if broken else "{}"]
    body = ("\n".join(texts) if ndjson else "[" + ",".join(texts) + "]").encode("utf-8", "surrogatepass")

    def told(found: Any) -> tuple[list[Any], list[Any]]:
        values = [*meters(found), *vehicles(found)]
        return sorted(values, key=repr), [(e.index, e.pointer, e.code) for e in found.errors]

    try:
        whole = told(decode(body, shape, ndjson=ndjson, readings_max=100))
    except ProblemError as error:
        with pytest.raises(ProblemError) as caught:
            list(in_pieces(body, shape, ndjson=ndjson, readings_max=100, items_max=most))
        assert caught.value.detail == error.detail
        return
    pieces = [told(each) for each in in_pieces(body, shape, ndjson=ndjson, readings_max=100, items_max=most)]
    values, errors = ([each for piece in pieces for each in piece[part]] for part in (0, 1))
    assert sorted(values, key=repr) == whole[0]
    assert sorted(errors) == sorted(whole[1])


def test_a_large_body_is_cut() -> None:
    readings = [meter("M", minute) for minute in range(10)]
    for ndjson in (True, False):
        body = (b"\n".join(map(orjson.dumps, readings))) if ndjson else orjson.dumps(readings)
        found = list(in_pieces(body, METER_SHAPE, ndjson=ndjson, readings_max=10, items_max=4))
        assert [[index for index, _ in meters(each)] for each in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


ENDS = st.sampled_from([b""] * 6 + [b" ", b"}", b",{}", b"\t{}", b"[]", b"\xff"])


@given(
    bodies=st.lists(st.tuples(READINGS | st.dictionaries(FIELDS, JSON), ENDS), min_size=1, max_size=8), shape=FORMATS
)
def test_together_is_what_each_is_alone(bodies: list[tuple[Any, bytes]], shape: Any) -> None:
    texts = [json.dumps(item).encode("utf-8", "surrogatepass") + end for item, end in bodies]
    texts = [text for text in texts if may_join(text)]
    together = decode_together(texts, shape, readings_max=1_000)
    alone: list[Any] = []
    for text in texts:
        try:
            alone.append(decode(text, shape, ndjson=False, readings_max=1_000))
        except ProblemError:
            alone.append(None)
    if together is None:
        # What is valid but for a leap second, or says twice whose it is, is taken alone.
        return
    assert all(each is not None and not each.errors for each in alone)
    for index, each in enumerate(alone):
        each.move(index)
    mine = [(index, cells) for each in alone for index, cells in [*meters(each), *vehicles(each)]]
    assert sorted([*meters(together), *vehicles(together)]) == sorted(mine)


def test_plain_ones_are_taken_together() -> None:
    texts = [orjson.dumps(vehicle(f"V-{number}", number)) for number in range(5)]
    for shape in (VEHICLE_SHAPE, MIXED_SHAPE):
        together = decode_together(texts, shape, readings_max=1_000)
        assert together is not None
        assert [index for index, _ in vehicles(together)] == [0, 1, 2, 3, 4]
        assert decode_together([*texts, b"{}"], shape, readings_max=1_000) is None
    lacking = b'{"meterId": "M-2", "timestamp": "2026-05-01T00:00:00Z"}'
    assert decode_together([orjson.dumps(meter()), lacking], METER_SHAPE, readings_max=1_000) is None
    assert decode_together([orjson.dumps(meter())] * 6, METER_SHAPE, readings_max=1) is None
