"""A body of bytes into readings: one strict pass when all is well, item by item when something is wrong. Pure."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from router.ingest.shapes import Decoded, Items, Shape
from router.wire.complaints import ItemError, pointer_of
from router.wire.problems import CONTENT_TOO_LARGE, MALFORMED_BODY, ProblemError
from router.wire.readings import Cells, Reading
from shards.kinds import Kind

_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_WHITESPACE: Final = b" \t\r\n"
_RAW: Final = msgspec.json.Decoder(list[msgspec.Raw])
_LEAP_SECOND: Final = re.compile(r"(.{10}[Tt ]..:..:)60((?:\.[0-9]{1,6})?(?:[Zz]|[+-]..:..))")


def decode(body: bytes, shape: Shape, *, ndjson: bool, readings_max: int) -> Decoded:
    """Readings of a body. ProblemError when it cannot be parsed at all, or holds more than `readings_max`."""
    _check_size(body, readings_max * shape.values_max, readings_max, ndjson=ndjson)
    try:
        return _fast(body, shape, ndjson=ndjson, readings_max=readings_max)
    except _BROKEN:
        items = _lines(body) if ndjson else _elements(body)
        _check_count(len(items), readings_max)
        return _one_by_one(items, shape)


def decode_together(bodies: Sequence[bytes], shape: Shape, *, readings_max: int) -> Decoded | None:
    """Bodies of several requests, each one JSON object on one line, as items of one: None when any is not valid.

    Then each has to be decoded by itself, and is told what is wrong with it.
    """
    decoded = Decoded()
    lines = b"\n".join(bodies)
    try:
        _check_size(lines, readings_max * shape.values_max, readings_max, ndjson=True)
        if shape.kind is None:
            _sort_out(bodies, shape, decoded, ndjson=True)
        else:
            only = shape.kinds[shape.kind]
            found = only.one.decode_lines(lines)
            only.settle(Items(range(len(found)), only.cells(found)), decoded)
    except (*_BROKEN, ProblemError):
        return None
    return decoded if decoded.valid == len(bodies) else None


def in_pieces(body: bytes, shape: Shape, *, ndjson: bool, readings_max: int, items_max: int) -> Iterator[Decoded]:
    """The same, some items at a time, for whoever has something else to do in between."""
    _check_size(body, readings_max * shape.values_max, readings_max, ndjson=ndjson)
    try:
        items = [line for line in body.split(b"\n") if line.strip(_WHITESPACE)] if ndjson else _undecoded(body)
    except _BROKEN:
        items = []
    _check_count(len(items), readings_max)
    if len(items) <= items_max:
        yield decode(body, shape, ndjson=ndjson, readings_max=readings_max)
        return
    for start in range(0, len(items), items_max):
        some = items[start : start + items_max]
        piece = b"\n".join(some) if ndjson else b"[" + b",".join(some) + b"]"
        decoded = decode(piece, shape, ndjson=ndjson, readings_max=readings_max)
        decoded.move(start)
        yield decoded


def _check_size(body: bytes, values_max: int, readings_max: int, *, ndjson: bool) -> None:
    """Refuse, before any of it becomes an object, a small body of very many values: `[0,0,...]`, or empty lines."""
    values = body.count(b",") + (body.count(b"\n") if ndjson else 0) + 1
    if values > values_max:
        detail = f"more than {values_max} values in one request; at most {readings_max} readings are stored"
        raise ProblemError(CONTENT_TOO_LARGE, detail)


def _check_count(count: int, readings_max: int) -> None:
    if count > readings_max:
        detail = f"{count} readings in one request; at most {readings_max} are stored"
        raise ProblemError(CONTENT_TOO_LARGE, detail)


def _fast(body: bytes, shape: Shape, *, ndjson: bool, readings_max: int) -> Decoded:
    decoded = Decoded()
    if shape.kind is None:
        items = [line for line in body.split(b"\n") if line.strip(_WHITESPACE)] if ndjson else _undecoded(body)
        _check_count(len(items), readings_max)
        _sort_out(items, shape, decoded, ndjson=ndjson)
        return decoded
    only = shape.kinds[shape.kind]
    found: Sequence[Reading]
    if ndjson:
        found = only.one.decode_lines(body)
    elif body.lstrip(_WHITESPACE)[:1] == b"[":
        found = only.array.decode(body)
    else:
        found = [only.one.decode(body)]
    _check_count(len(found), readings_max)
    only.settle(Items(range(len(found)), only.cells(found)), decoded)
    return decoded


def _undecoded(body: bytes) -> list[bytes]:
    if body.lstrip(_WHITESPACE)[:1] == b"[":
        return list(map(bytes, _RAW.decode(body)))
    return [body]


def _sort_out(items: Sequence[bytes], shape: Shape, decoded: Decoded, *, ndjson: bool) -> None:
    """Each kind's readings in one strict pass of its own, in which an item that only seems to be of a kind is none.

    ValidationError for an item that does not say plainly whose it is.
    """
    mine: dict[Kind, tuple[list[int], list[bytes]]] = {kind: ([], []) for kind in shape.kinds}
    marks = [(mark, *mine[kind]) for mark, kind in shape.marks]
    for index, item in enumerate(items):
        for mark, indexes, found in marks:
            if mark in item:
                indexes.append(index)
                found.append(item)
                break
        else:
            raise msgspec.ValidationError
    for kind, (indexes, found) in mine.items():
        if found:
            known = shape.kinds[kind]
            # Lines stay lines: what is broken in one must not be mended by the next.
            lines = b"\n".join(found) if ndjson else b"[" + b",".join(found) + b"]"
            readings = known.one.decode_lines(lines) if ndjson else known.array.decode(lines)
            if len(readings) != len(found):  # the body is no array, and was not one value
                raise msgspec.ValidationError
            known.settle(Items(indexes, known.cells(readings)), decoded)


def keep_prefix(decoded: Decoded, prefix: str) -> None:
    """Readings of devices whose IDs do not begin so become errors: the key that sent them is not for these devices."""
    text = f"must begin with {prefix}: the key is for such devices alone"
    for kind, items in decoded.readings.items():
        pairs = zip(items.indexes, items.cells, strict=True)
        foreign = {index for index, cells in pairs if not cells[0].startswith(prefix)}
        decoded.errors += [ItemError(index, f"/{kind.id_name}", "foreign_device", text) for index in sorted(foreign)]
        decoded.readings[kind] = items.without(foreign) if foreign else items


def _lines(body: bytes) -> list[bytes | object]:
    return [line for line in body.split(b"\n") if line.strip(_WHITESPACE)]


def _elements(body: bytes) -> list[bytes | object]:
    """The items of a JSON array, or the one JSON value, undecoded where possible."""
    try:
        if body.lstrip(_WHITESPACE)[:1] == b"[":
            return [bytes(raw) for raw in _RAW.decode(body)]
        msgspec.json.decode(body)
    except _BROKEN as error:
        return _lenient(body, error)
    return [body]


def _lenient(body: bytes, error: Exception) -> list[bytes | object]:
    """Items of a body that is JSON but for NaN, Infinity, raw control characters or bad UTF-8.

    Python's parser lets these through, so that the answer can name the item and the field.
    """
    try:
        value = json.loads(body.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        detail = _broken_text(error) if body.strip(_WHITESPACE) else "the body is empty"
        raise ProblemError(MALFORMED_BODY, detail) from None
    return list(value) if isinstance(value, list) else [value]


def _broken_text(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8"
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    return str(error)


def _one_by_one(items: list[bytes | object], shape: Shape) -> Decoded:
    decoded = Decoded()
    valid: dict[Kind, tuple[list[int], list[Cells]]] = {kind: ([], []) for kind in shape.kinds}
    for index, item in enumerate(items):
        try:
            found = _item(item, shape, decoded)
        except ProblemError as error:
            decoded.errors.append(ItemError(index, "", "malformed", error.detail))
        except UnicodeError:  # half of a surrogate pair, written as an escape
            decoded.errors.append(ItemError(index, "", "malformed", "holds text that is not Unicode"))
        else:
            if isinstance(found, ItemError):
                decoded.errors.append(msgspec.structs.replace(found, index=index))
            else:
                indexes, cells = valid[found[0]]
                indexes.append(index)
                cells.append(found[1])
    decoded.readings = {kind: Items(*mine) for kind, mine in valid.items() if mine[0]}
    return decoded


def _item(item: bytes | object, shape: Shape, decoded: Decoded) -> tuple[Kind, Cells] | ItemError:
    """One reading, or what is wrong with it. ProblemError when it is no JSON."""
    value = item
    if isinstance(item, bytes):
        try:
            value = msgspec.json.decode(item)
        except _BROKEN as error:
            found = _lenient(item, error)
            value = found[0] if len(found) == 1 else found
    if shape.ignoring and isinstance(value, dict):
        value = _declared(value, shape, decoded)
    if isinstance(value, dict):
        for name, number in value.items():
            if isinstance(number, float) and not math.isfinite(number):
                return ItemError(0, pointer_of(name), "out_of_range", "must be a finite number")
        timestamp = value.get("timestamp")
        if isinstance(timestamp, str) and (leap := _LEAP_SECOND.fullmatch(timestamp)):
            value = {**value, "timestamp": _after_leap_second(leap[1] + "59" + leap[2])}
        if shape.kind is None:  # a null is a field that is not there, as in the fast pass
            value = {name: given for name, given in value.items() if given is not None}
    kind = shape.kind or _kind_of_object(value, shape)
    if isinstance(kind, ItemError):
        return kind
    known = shape.kinds[kind]
    cells = known.convert(value)
    return cells if isinstance(cells, ItemError) else known.check(0, cells) or (kind, cells)


def _declared(value: dict[str, object], shape: Shape, decoded: Decoded) -> dict[str, object]:
    """The fields that its kind has; the others are counted. Whose it is must be plain for that."""
    kind = shape.kind or _kind_of_object(value, shape)
    if isinstance(kind, ItemError):
        return value
    names = shape.kinds[kind].names
    taken = {name: given for name, given in value.items() if name in names}
    decoded.ignored += len(value) - len(taken)
    return taken


def _after_leap_second(second_before: str) -> str | datetime:
    """A leap second is stored as the second after it, as POSIX counts it: RFC 3339 allows it, PostgreSQL does too."""
    try:
        return datetime.fromisoformat(second_before.upper()) + timedelta(seconds=1)
    except (ValueError, OverflowError):
        return second_before


def _kind_of_object(value: object, shape: Shape) -> Kind | ItemError:
    if not isinstance(value, dict):
        return ItemError(0, "", "wrong_type", "must be an object")
    named = [name for name in shape.by_id if name in value]
    if len(named) == 1:
        return shape.by_id[named[0]]
    if named:
        return ItemError(0, "", "ambiguous_kind", f"has both {named[0]} and {named[1]}")
    *others, last = shape.by_id
    return ItemError(0, "", "ambiguous_kind", f"has neither {', '.join(others)} nor {last}")
