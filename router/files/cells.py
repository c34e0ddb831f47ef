"""Cells of a table: numbers as they are written, names, and what stands for a missing value. Pure."""

import math
import re
from typing import Final

_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_MISSING: Final = frozenset(
    {"", "-", "--", "n/a", "na", "nan", "nanstt", "nonemsg", "no ct", "null", "none", "unavailable", "unknown"}
)
_NOT_OF_AN_ID: Final = re.compile(r"[^A-Za-z0-9._:*+|@=-]+")


def tidy(cell: str) -> str:
    """A cell without blanks around it, and without what keeps Excel from taking text for a number."""
    text = cell.replace("\xa0", " ").strip()
    if text.startswith("="):
        text = text[1:].strip('"')
    return text.removeprefix("'").strip()


def is_missing(cell: str) -> bool:
    """Whether it stands for no value."""
    return tidy(cell).lower() in _MISSING


def number(cell: str, decimal: str) -> float:
    """A number. ValueError for anything else; a decimal comma only where it is said, a thousands sign never."""
    text = tidy(cell)
    if decimal != ".":
        if "." in text:
            raise ValueError(text)
        text = text.replace(decimal, ".")
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def device_id(text: str) -> str:
    """A name as a device's ID: what an ID cannot hold becomes `-`."""
    return _NOT_OF_AN_ID.sub("-", tidy(text)).strip("-")[:64]
