"""A body of bytes into readings: one strict pass when all is well, item by item when something is wrong. Pure."""

import json
import math
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import msgspec
from msgspec.structs import astuple

from router.wire.complaints import UNKNOWN_FIELD, ItemError, explain, pointer_of
from router.wire.problems import CONTENT_TOO_LARGE, MALFORMED_BODY, ProblemError
from router.wire.readings import Cells, Mixed, Reading, energy_error, reading_type
from shards.kinds import Kind, Type

_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_WHITESPACE: Final = b" \t\r\n"
_LEAP_SECOND: Final = re.compile(r"(.{10}[Tt ]..:..:)60((?:\.[0-9]{1,6})?(?:[Zz]|[+-]..:..))")
_VALUES_MAX: Final = 16  # of a reading of few fields, on average: what has more commas or lines is not looked at
_SINGLE: Final = struct.Struct("f")
_DECLARABLE: Final = re.compile(r"[a-z][A-Za-z0-9]{0,39}")


@dataclass(slots=True)
class Items:
    """Readings of one kind, and the index of each in the request. A pair for each would be one object more."""

    indexes: Sequence[int]
    cells: list[Cells]

    def without(self, refused: Collection[int]) -> "Items":
        """Those whose index is not among these."""
        kept = [each for each in zip(self.indexes, self.cells, strict=True) if each[0] not in refused]
        return Items([index for index, _ in kept], [cells for _, cells in kept])


@dataclass(slots=True)
class Decoded:
    """Valid readings by kind, and an error for each other item."""

    readings: dict[Kind, Items] = field(default_factory=dict)
    errors: list[ItemError] = field(default_factory=list)
    ignored: int = 0  # values of fields that nobody declared, left out because a setting says so

    @property
    def valid(self) -> int:
        """Number of valid readings."""
        return sum(len(items.cells) for items in self.readings.values())

    def __len__(self) -> int:
        return self.valid + len(self.errors)


class KindShape:
    """How readings of one kind are decoded."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.type = reading_type(kind)
        self.one: msgspec.json.Decoder[Reading] = msgspec.json.Decoder(self.type)
        self.array: msgspec.json.Decoder[list[Reading]] = msgspec.json.Decoder(list[self.type])  # type: ignore[name-defined]
        # Where a device may send its count instead of an energy, a reading has one of them.
        self.energies = tuple(2 + kind.values.index(column) for column in kind.alternatives or ())
        self.choices = {f"/{field.name}": field.choices for field in kind.fields if field.choices}
        self.names = frozenset(self.type.__struct_fields__)
        self.retired = {field.name: field.retired for field in kind.retired}
        # What a column of half the width holds: a repeat must be equal to what is stored.
        self.singles = tuple(2 + at for at, field in enumerate(kind.fields) if field.type is Type.FLOAT4)

    def convert(self, value: object) -> Cells | ItemError:
        """A reading that was parsed as any JSON."""
        try:
            return self.rounded(astuple(msgspec.convert(value, self.type)))
        except msgspec.ValidationError as error:
            told = explain(str(error), self.choices)
            return self._not_taken(value) if told[1] == UNKNOWN_FIELD else ItemError(0, *told)

    def _not_taken(self, value: object) -> ItemError:
        """The first field that is none, and what could be done about it."""
        name = next((name for name in value if name not in self.names), "") if isinstance(value, dict) else ""
        if name in self.retired:
            return ItemError(0, f"/{name}", "retired_field", f"was retired on {self.retired[name]}: it is refused")
        hint = f"; `voltroute field add {self.kind} {name}` declares it" if _DECLARABLE.fullmatch(name) else ""
        return ItemError(0, pointer_of(name), UNKNOWN_FIELD, f"is not a field of this reading{hint}")

    def rounded(self, cells: Cells) -> Cells:
        """The cells as the columns of half the width have them."""
        if not self.singles:
            return cells
        changed = list(cells)
        for at in self.singles:
            if changed[at] is not None:
                (changed[at],) = _SINGLE.unpack(_SINGLE.pack(changed[at]))
        return tuple(changed)

    def check(self, index: int, cells: Cells) -> ItemError | None:
        """What is wrong with a reading beside its fields' own limits."""
        if not self.energies:
            return None
        energy, register = (cells[at] for at in self.energies)
        if (energy is None) is not (register is None):
            return None
        return energy_error(self.kind, index, has_energy=energy is not None)

    def settle(self, items: Items, decoded: Decoded) -> None:
        """These are the readings of this kind, but for those with something wrong."""
        if self.singles:
            items = Items(items.indexes, list(map(self.rounded, items.cells)))
        if self.energies:
            energy, register = self.energies
            energies, registers = [cells[energy] for cells in items.cells], [cells[register] for cells in items.cells]
            if None in energies or registers.count(None) < len(registers):
                told = map(self.check, items.indexes, items.cells)
                errors = [wrong for wrong in told if wrong is not None]
                decoded.errors += errors
                items = items.without({error.index for error in errors})
        if items.cells:
            decoded.readings[self.kind] = items


class Shape:
    """What an endpoint takes: readings of one kind or of several, and how to decode one, an array, or lines of them.

    `ignoring`: fields that nobody declared are left out, and counted, instead of refused.
    """

    def __init__(self, kinds: Sequence[Kind], *, ignoring: bool = False) -> None:
        self.ignoring = ignoring
        self.values_max = max(_VALUES_MAX, *(4 + len(kind.fields) for kind in kinds))
        self.kinds = {kind: KindShape(kind) for kind in kinds}
        self.by_id = {kind.id_name: kind for kind in kinds}
        self.kind = kinds[0] if len(kinds) == 1 else None
        self.mixed = None if len(kinds) == 1 else Mixed(kinds)
        if self.mixed is None:
            only = self.kinds[kinds[0]]
            self.one, self.array = only.one, only.array
        else:
            self.one = msgspec.json.Decoder(self.mixed.type)
            self.array = msgspec.json.Decoder(list[self.mixed.type])  # type: ignore[name-defined]


def decode(body: bytes, shape: Shape, *, ndjson: bool, readings_max: int) -> Decoded:
    """Readings of a body. ProblemError when it cannot be parsed at all, or holds more than `readings_max`."""
    _check_size(body, readings_max * shape.values_max, readings_max, ndjson=ndjson)
    try:
        return _fast(body, shape, ndjson=ndjson, readings_max=readings_max)
    except _BROKEN:
        items = _lines(body) if ndjson else _elements(body)
        _check_count(len(items), readings_max)
        return _one_by_one(items, shape)


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
    found: Sequence[Reading]
    if ndjson:
        found = shape.one.decode_lines(body)
    elif body.lstrip(_WHITESPACE)[:1] == b"[":
        found = shape.array.decode(body)
    else:
        found = [shape.one.decode(body)]
    _check_count(len(found), readings_max)
    decoded = Decoded()
    if shape.mixed is None:
        only = next(iter(shape.kinds.values()))
        only.settle(Items(range(len(found)), list(map(astuple, found))), decoded)
    else:
        _sort_out(found, shape, shape.mixed, decoded)
    return decoded


def _sort_out(found: Sequence[Reading], shape: Shape, mixed: Mixed, decoded: Decoded) -> None:
    items: dict[Kind, tuple[list[int], list[Cells]]] = {kind: ([], []) for kind in shape.kinds}
    own = mixed.own
    for index, reading in enumerate(found):
        told = own(reading) or _convert(reading, shape, decoded)
        if isinstance(told, ItemError):
            decoded.errors.append(msgspec.structs.replace(told, index=index))
        else:
            indexes, cells = items[told[0]]
            indexes.append(index)
            cells.append(told[1])
    for kind, mine in items.items():
        shape.kinds[kind].settle(Items(*mine), decoded)


def _convert(reading: Reading, shape: Shape, decoded: Decoded) -> tuple[Kind, Cells] | ItemError:
    """A mixed reading by the limits of its own kind, or what it lacks, or has too much of."""
    values = ((name, getattr(reading, name)) for name in reading.__struct_fields__)
    given = {name: value for name, value in values if value is not None and value is not msgspec.UNSET}
    kind = _kind_of_object(given, shape)
    if isinstance(kind, ItemError):
        return kind
    known = shape.kinds[kind]
    cells = known.convert(_taken(given, known, decoded) if shape.ignoring else given)
    return cells if isinstance(cells, ItemError) else (kind, cells)


def _taken(value: dict[str, object], known: KindShape, decoded: Decoded) -> dict[str, object]:
    """What was declared; the rest is counted."""
    taken = {name: given for name, given in value.items() if name in known.names}
    decoded.ignored += len(value) - len(taken)
    return taken


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
            return [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
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
    if isinstance(value, dict):
        for name, number in value.items():
            if isinstance(number, float) and not math.isfinite(number):
                return ItemError(0, f"/{name}", "out_of_range", "must be a finite number")
        timestamp = value.get("timestamp")
        if isinstance(timestamp, str) and (leap := _LEAP_SECOND.fullmatch(timestamp)):
            value = {**value, "timestamp": _after_leap_second(leap[1] + "59" + leap[2])}
        if shape.kind is None:  # a null is a field that is not there, as in the fast pass
            value = {name: given for name, given in value.items() if given is not None}
    kind = shape.kind or _kind_of_object(value, shape)
    if isinstance(kind, ItemError):
        return kind
    known = shape.kinds[kind]
    if shape.ignoring and isinstance(value, dict):
        value = _taken(value, known, decoded)
    cells = known.convert(value)
    return cells if isinstance(cells, ItemError) else known.check(0, cells) or (kind, cells)


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
