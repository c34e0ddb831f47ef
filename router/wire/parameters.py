"""Path and query parameters: read once into a typed query, refused with a problem that names them."""

import base64
import binascii
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from router.wire.complaints import explain
from router.wire.problems import INVALID_REQUEST, ProblemError, invalid
from router.wire.readings import DeviceId, Timestamp
from shards.bins import MINUTE, ceil
from shards.clock import time_zone
from shards.window import Window

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
LINES_MAX: Final = 5_000
PERIOD_DEFAULT: Final = timedelta(hours=24)
SERIES_POINTS_MAX: Final = 1_000
POINTS_DEFAULT: Final = 300
POINTS_MIN: Final = 3
POINTS_MAX: Final = 2_000
INTERVAL_PATTERN: Final = "^([1-9][0-9]{0,5}[mhd]|day|week|month)$"
_INTERVAL: Final = re.compile(r"([1-9][0-9]{0,5})(m|h|d)")

Query = TypeVar("Query", bound=msgspec.Struct)
Reader = Callable[[str, str], Any]  # (text, name of the parameter) -> value, or a ProblemError 422


def read(query: type[Query], given: Iterable[tuple[str, str]], path: Mapping[str, str]) -> Query:
    """The typed query of a request. A 422 problem names what is unknown, repeated, missing or malformed.

    Unknown ones are refused because a misspelt one would silently give another answer.
    """
    fields = _fields(query)
    texts = dict(path)
    for name, value in given:
        if name not in fields or name in path:
            takes = ", ".join(sorted(fields.keys() - path.keys())) or "no parameters"
            raise invalid(name[:64], f"is not a parameter of this resource, which takes {takes}", "unknown_parameter")
        if name in texts:
            raise invalid(name, "is given twice", "repeated_parameter")
        texts[name] = value
    values = {}
    for name, field in fields.items():
        if name in texts:
            values[field.name] = field.read(texts[name], name)
        elif field.is_required:
            raise invalid(name, "is required", "missing_parameter")
    return query(**values)


class _Parameter(NamedTuple):
    name: str  # in Python
    read: Reader
    is_required: bool


@cache
def _fields(query: type[msgspec.Struct]) -> Mapping[str, _Parameter]:
    """The parameters of a query, by their names in a request: found once, not for each."""
    found = msgspec.structs.fields(query)
    return {each.encode_name: _Parameter(each.name, reader_of(each.type), each.required) for each in found}


def reader_of(annotation: Any) -> Reader:
    """How the text of a parameter with this type is read: by its Meta, else as it is."""
    for meta in metas(annotation):
        if meta.extra and "read" in meta.extra:
            found: Reader = meta.extra["read"]
            return found
    return _as_it_is


def metas(annotation: Any) -> Iterable[msgspec.Meta]:
    """Every Meta of a type, also inside `... | None`."""
    for each in typing.get_args(annotation):
        if isinstance(each, msgspec.Meta):
            yield each
        else:
            yield from metas(each)


def _as_it_is(text: str, _name: str) -> str:
    return text


def read_device(value: str, name: str) -> str:
    """`value` if it can be a device's ID."""
    try:
        return msgspec.convert(value, DeviceId)
    except (msgspec.ValidationError, UnicodeError) as error:
        _, code, detail = explain(str(error))
        raise invalid(name, detail, code) from None


def read_moment(value: str, name: str) -> datetime:
    """An RFC 3339 timestamp with offset, in UTC. A space stands for the `+` that URL decoding made of it."""
    text = value.replace(" ", "+") if "T" in value.upper() else value
    try:
        return in_utc(msgspec.convert(text, Timestamp), name)
    except (msgspec.ValidationError, UnicodeError) as error:
        _, code, detail = explain(str(error))
        raise invalid(name, detail, code) from None


def read_limit(value: str, name: str) -> int:
    """1 to 1,000."""
    return _read_number(value, name, LIMIT_MAX)


def read_lines(value: str, name: str) -> int:
    """1 to 5,000."""
    return _read_number(value, name, LINES_MAX)


def read_points(value: str, name: str) -> int:
    """3 to 2,000."""
    return _read_number(value, name, POINTS_MAX, POINTS_MIN)


def _read_number(value: str, name: str, most: int, least: int = 1) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and least <= int(value) <= most):
        raise invalid(name, f"must be a whole number from {least} to {most}", "out_of_range")
    return int(value)


class Step(NamedTuple):
    """The length of a series' intervals. `unit`: m, h, d, or day, week, month of the calendar (one of them)."""

    times: int
    unit: str


def read_interval(value: str, name: str) -> Step:
    """Minutes, hours or days, as in 15m, 1h, 1d; or a day, week or month of the calendar."""
    if value in {"day", "week", "month"}:
        return Step(1, value)
    match = _INTERVAL.fullmatch(value)
    if match is None:
        raise invalid(name, "must be a number of minutes, hours or days, as in 15m, 1h or 1d, or day, week or month")
    return Step(int(match[1]), match[2])


def read_zone(value: str, name: str) -> tzinfo:
    """A time zone of the IANA database, as in Europe/Berlin."""
    try:
        return time_zone(value)
    except ValueError as error:
        raise invalid(name, str(error), "unknown_zone") from None


def read_choice(*choices: str) -> Reader:
    """One of a few words."""

    def choose(value: str, name: str) -> str:
        if value not in choices:
            raise invalid(name, f"must be {' or '.join(choices)}")
        return value

    return choose


def in_utc(given: datetime, name: str) -> datetime:
    """The same instant in UTC. The first and the last year are refused: asyncpg takes their ends for infinity."""
    try:
        moved = given.astimezone(UTC)
    except OverflowError:
        moved = datetime.min  # noqa: DTZ901 - only its year is looked at
    if moved.year in {1, 9999}:
        raise invalid(name, "must lie between the years 2 and 9998 in UTC", "out_of_range")
    return moved


def window(start: datetime | None, end: datetime | None, now: datetime) -> Window:
    """`from` (default: 24 h before `to`, or the next whole minute) and `to` (default: now), as a window."""
    last = end or now
    if start is None:
        try:
            start = ceil(last - PERIOD_DEFAULT, MINUTE)
        except OverflowError:
            start = datetime.min.replace(tzinfo=UTC)
    if start >= last:
        raise invalid("from", "must be before `to`", "out_of_range")
    return Window(start, last)


def encode_cursor(*parts: str) -> str:
    """An opaque cursor that carries `parts`."""
    return base64.urlsafe_b64encode("\n".join(parts).encode()).decode().rstrip("=")


def decode_cursor(value: str | None, count: int) -> list[str] | None:
    """The `count` parts of a cursor; None of None."""
    if value is None:
        return None
    try:
        padded = value.encode("ascii") + b"=" * (-len(value) % 4)
        parts = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").split("\n")
    except (ValueError, binascii.Error):
        parts = []
    if len(parts) != count:
        raise ProblemError(
            INVALID_REQUEST,
            "cursor: must be the `next` of an earlier answer",
            extensions={"errors": [{"pointer": "cursor", "code": "invalid", "detail": "is not a cursor"}]},
        )
    return parts
