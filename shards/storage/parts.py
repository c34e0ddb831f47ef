"""Values in whole parts of a unit, whose sums are the same in whatever order, and from whatever tier."""

from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import quote_identifier

KWH: Final = "1e9"  # parts of one
DEGREE: Final = "1e6"
COUNT: Final = "1e8"  # of a kWh, of what a register counts
WHOLE_MAX: Final = 1e9  # of a unit: its parts fit in 64 bits
COUNT_MAX: Final = 1e10  # likewise


def _most(kind: Kind, column: str) -> float | None:
    """The largest magnitude that a field may have."""
    field = next(each for each in kind.stored if each.column == column)
    if field.minimum is None or field.maximum is None:
        return None
    return max(abs(field.minimum), abs(field.maximum))


def _is_whole(kind: Kind, column: str, limit: float = WHOLE_MAX) -> bool:
    most = _most(kind, column)
    return most is not None and most <= limit


def _parts(kind: Kind, column: str | None, unit: str, limit: float = WHOLE_MAX) -> str:
    if column is None:
        return "NULL::bigint"
    value = f"h.{quote_identifier(column)} * {unit}::float8"
    return f"round({value})::bigint" if _is_whole(kind, column, limit) else value


def energy(kind: Kind) -> str:
    """The energy of a row `h` (SQL); in fractions where the largest that is declared would not fit."""
    return _parts(kind, kind.energy, KWH)


def temperature(kind: Kind) -> str:
    """The temperature of a row `h`, likewise."""
    return _parts(kind, kind.temperature, DEGREE)


def register(kind: Kind) -> str:
    """The count of a row `h`, likewise."""
    return _parts(kind, kind.register, COUNT, COUNT_MAX)


def is_counted(kind: Kind) -> bool:
    """Whether it has a register, and counts in whole parts."""
    return kind.register is not None and _is_whole(kind, kind.register, COUNT_MAX)


def are_whole(kind: Kind) -> bool:
    """Whether all that is added up of a kind's readings is so in whole parts."""
    return all(_is_whole(kind, each) for each in (kind.energy, kind.temperature) if each is not None)


def total(column: str, unit: str, condition: str = "") -> str:
    """The sum of a column of parts, in its unit."""
    which = f" FILTER (WHERE {condition})" if condition else ""
    return f"(coalesce(sum({column}){which}, 0) / {unit})::float8"
