"""Arrays as PostgreSQL reads them, made a column at a time: asyncpg looks at every element, which takes thrice as long.

A connection that was taught sends and receives one-dimensional arrays of these types in the binary format.
"""

import contextlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

_HEAD: Final = struct.Struct(">iiIii")  # dimensions, whether NULLs, elements' type, their number, first index
_EMPTY: Final = struct.Struct(">iiI")
_LENGTH: Final = struct.Struct(">i")
_NULL: Final = _LENGTH.pack(-1)
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_MICROSECONDS: Final = 1_000_000
_MICROSECOND: Final = timedelta(microseconds=1)
_SHORT: Final = tuple(_LENGTH.pack(length).decode("ascii") for length in range(128))
_LAYOUTS: Final = 256  # of columns, by type and length, that are remembered


@dataclass(frozen=True)
class ArrayType:
    """An array type of PostgreSQL, by its OIDs. `encode` takes values or None, `decode` gives a list of them."""

    name: str
    oid: int
    encode: Callable[[Sequence[Any]], bytes]
    decode: Callable[[bytes], list[Any]]


@lru_cache(_LAYOUTS)
def _layout(code: str, count: int) -> struct.Struct:
    return struct.Struct(">" + f"i{code}" * count)


def _whole(oid: int, elements: bytes, count: int) -> bytes:
    return (_HEAD.pack(1, 0, oid, count, 1) if count else _EMPTY.pack(0, 0, oid)) + elements


def _one_by_one(oid: int, values: Sequence[Any], encode: Callable[[Any], bytes]) -> bytes:
    """Of values that may be None, or have any length."""
    encoded = [None if value is None else encode(value) for value in values]
    elements = [_NULL if each is None else _LENGTH.pack(len(each)) + each for each in encoded]
    return _HEAD.pack(1, 1, oid, len(elements), 1) + b"".join(elements)


def _elements(data: bytes, decode: Callable[[bytes], Any]) -> list[Any]:
    if not _LENGTH.unpack_from(data)[0]:
        return []
    _, _, _, count, _ = _HEAD.unpack_from(data)
    found, at = [], _HEAD.size
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        found.append(None if length < 0 else decode(data[at : at + length]))
        at += max(length, 0)
    return found


def _packed(oid: int, code: str, values: Sequence[Any]) -> bytes:
    count = len(values)
    flat: list[Any] = [struct.calcsize(">" + code)] * (2 * count)
    flat[1::2] = values
    return _whole(oid, _layout(code, count).pack(*flat), count)


def _fixed(name: str, oid: int, element: int, code: str) -> ArrayType:
    """Of a type whose values have one width, by `struct`'s name."""
    one = struct.Struct(">" + code)

    def encode(values: Sequence[Any]) -> bytes:
        if None in values:
            return _one_by_one(element, values, one.pack)
        return _packed(element, code, values)

    return ArrayType(name, oid, encode, lambda data: _elements(data, lambda each: one.unpack(each)[0]))


def _encode_times(values: Sequence[datetime | None]) -> bytes:
    """Microseconds since 2000, exactly: no float is between."""
    try:
        since = [value - _EPOCH for value in values]  # type: ignore[operator]
    except TypeError:
        return _one_by_one(_TIMESTAMPTZ, values, lambda value: struct.pack(">q", (value - _EPOCH) // _MICROSECOND))
    numbers = [(each.days * 86_400 + each.seconds) * _MICROSECONDS + each.microseconds for each in since]
    return _packed(_TIMESTAMPTZ, "q", numbers)


def _decode_time(data: bytes) -> datetime:
    return _EPOCH + timedelta(microseconds=struct.unpack(">q", data)[0])


def _texts(name: str, oid: int, element: int) -> ArrayType:
    def encode(values: Sequence[str | None]) -> bytes:
        # Short and of ASCII, as device IDs are: lengths and texts in one pass.
        with contextlib.suppress(TypeError, IndexError, UnicodeEncodeError):
            elements = "".join([_SHORT[len(value)] + value for value in values]).encode("ascii")  # type: ignore[arg-type,operator]
            return _whole(element, elements, len(values))
        return _one_by_one(element, values, str.encode)

    return ArrayType(name, oid, encode, lambda data: _elements(data, bytes.decode))


_TIMESTAMPTZ: Final = 1184
TYPES: Final = (
    _fixed("_bool", 1000, 16, "?"),
    _fixed("_int2", 1005, 21, "h"),
    _fixed("_int4", 1007, 23, "i"),
    _fixed("_float4", 1021, 700, "f"),
    _fixed("_float8", 1022, 701, "d"),
    ArrayType("_timestamptz", 1185, _encode_times, lambda data: _elements(data, _decode_time)),
    _texts("_text", 1009, 25),
    _texts("_varchar", 1015, 1043),
)


def teach(connection: Any) -> bool:
    """Let an asyncpg connection use these. Its public way is for types of one value alone.

    False, and it goes on with its own, when another release keeps them elsewhere.
    """
    try:
        add = connection._protocol.get_settings().add_python_codec  # noqa: SLF001
        for each in TYPES:
            add(each.oid, each.name, "pg_catalog", [], "scalar", each.encode, each.decode, "binary")
    except (AttributeError, TypeError):
        return False
    return True
