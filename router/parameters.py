"""Path and query parameters: parsed once, refused with a problem that names them."""

import base64
import binascii
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from starlette.requests import Request

from router.problems import INVALID_REQUEST, ProblemError, invalid
from router.readings import DeviceId, Timestamp, explain
from shards.queries import Window

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
PERIOD_DEFAULT: Final = timedelta(hours=24)
SERIES_POINTS_MAX: Final = 1_000
_INTERVAL: Final = re.compile(r"([1-9]\d{0,5})(m|h|d)")
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def check_known(request: Request, known: Iterable[str]) -> None:
    """Refuse unknown and repeated parameters: a misspelt one would silently give another answer."""
    allowed = set(known)
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in allowed:
            takes = ", ".join(sorted(allowed)) or "no parameters"
            raise invalid(name[:64], f"is not a parameter of this resource, which takes {takes}", "unknown_parameter")
        if name in seen:
            raise invalid(name, "is given twice", "repeated_parameter")
        seen.add(name)


def check_device_id(value: str, name: str) -> str:
    """`value` if it can be a device's ID."""
    try:
        return msgspec.convert(value, DeviceId)
    except (msgspec.ValidationError, UnicodeError) as error:
        _, code, detail = explain(str(error))
        raise invalid(name, detail, code) from None


def moment(value: str, name: str) -> datetime:
    """An RFC 3339 timestamp with offset, in UTC. A space stands for the `+` that URL decoding made of it."""
    text = value.replace(" ", "+") if "T" in value.upper() else value
    try:
        return in_utc(msgspec.convert(text, Timestamp), name)
    except (msgspec.ValidationError, UnicodeError) as error:
        _, code, detail = explain(str(error))
        raise invalid(name, detail, code) from None


def in_utc(given: datetime, name: str) -> datetime:
    """The same instant in UTC. The first and the last year are refused: asyncpg takes their ends for infinity."""
    try:
        moved = given.astimezone(UTC)
    except OverflowError:
        moved = datetime.min  # noqa: DTZ901 - only its year is looked at
    if moved.year in {1, 9999}:
        raise invalid(name, "must lie between the years 2 and 9998 in UTC", "out_of_range")
    return moved


def optional_moment(request: Request, name: str) -> datetime | None:
    """A timestamp parameter, None when absent."""
    value = request.query_params.get(name)
    return None if value is None else moment(value, name)


def window(request: Request, now: datetime, default: timedelta = PERIOD_DEFAULT) -> Window:
    """`from` (default: 24 h before `to`) and `to` (default: now): readings with from < timestamp <= to."""
    end = optional_moment(request, "to") or now
    start = optional_moment(request, "from")
    if start is None:
        try:
            start = end - default
        except OverflowError:
            start = datetime.min.replace(tzinfo=UTC)
    if start >= end:
        raise invalid("from", "must be before `to`", "out_of_range")
    return Window(start, end)


def interval(request: Request, period: Window) -> timedelta | None:
    """`interval`: minutes, hours or days, as in 15m, 1h, 1d; None when absent."""
    value = request.query_params.get("interval")
    if value is None:
        return None
    match = _INTERVAL.fullmatch(value)
    if match is None:
        raise invalid("interval", "must be a number of minutes, hours or days, as in 15m, 1h or 1d")
    length = int(match[1]) * _UNITS[match[2]]
    if (period.end - period.start) / length > SERIES_POINTS_MAX:
        raise invalid("interval", f"gives more than {SERIES_POINTS_MAX} intervals in this period", "out_of_range")
    return length


def limit(request: Request) -> int:
    """`limit`: 1 to 1,000, default 100."""
    value = request.query_params.get("limit")
    if value is None:
        return LIMIT_DEFAULT
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and 1 <= int(value) <= LIMIT_MAX):
        raise invalid("limit", f"must be a whole number from 1 to {LIMIT_MAX}", "out_of_range")
    return int(value)


def choice(request: Request, name: str, choices: tuple[str, ...]) -> str | None:
    """A parameter that takes one of a few words; None when absent."""
    value = request.query_params.get(name)
    if value is not None and value not in choices:
        raise invalid(name, f"must be {' or '.join(choices)}")
    return value


def encode_cursor(*parts: str) -> str:
    """An opaque cursor that carries `parts`."""
    return base64.urlsafe_b64encode("|".join(parts).encode()).decode().rstrip("=")


def decode_cursor(request: Request, count: int) -> list[str] | None:
    """The `count` parts of the `cursor` parameter; None when absent."""
    value = request.query_params.get("cursor")
    if value is None:
        return None
    try:
        padded = value.encode("ascii") + b"=" * (-len(value) % 4)
        parts = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").split("|")
    except (ValueError, binascii.Error):
        parts = []
    if len(parts) != count:
        raise ProblemError(
            INVALID_REQUEST,
            "cursor: must be the `next` of an earlier answer",
            extensions={"errors": [{"pointer": "cursor", "code": "invalid", "detail": "is not a cursor"}]},
        )
    return parts
