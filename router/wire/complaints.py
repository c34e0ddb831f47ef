"""msgspec's complaints about an item in our words, and what else is wrong with one. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from msgspec import Struct


class ItemError(Struct, frozen=True):
    """Why one reading was not stored. `pointer` is a JSON Pointer into the item; `index` counts from 0."""

    index: int
    pointer: str
    code: str
    detail: str


UNKNOWN_FIELD: Final = "unknown_field"
_COMPLAINT: Final = re.compile(r"(?P<text>.*?)(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_BOUND: Final = re.compile(r"Expected `(?:float|int)(?: \| null)?` (>=|<=) (\S+)")

_Parsed: TypeAlias = tuple[str, str, str]  # pointer, code, detail
_TEXTS: Final[list[tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[str, str]]]]] = [
    (_BOUND, lambda m: ("out_of_range", f"must be {m[1]} {float(m[2]):g}")),
    (re.compile("Number out of range"), lambda _: ("out_of_range", "must be a finite number")),
    (re.compile("Expected `datetime` with a timezone"), lambda _: ("no_offset", "must have an offset, as in ...Z")),
    (re.compile("Invalid RFC3339"), lambda _: ("invalid_timestamp", "must be RFC 3339, as in 2026-05-01T12:00:00Z")),
    (
        re.compile("Expected `str` matching regex .*A-Za"),
        lambda _: ("invalid_id", "may hold only A-Z a-z 0-9 . _ : * + | @ = -"),
    ),
    (re.compile("Expected `str` matching regex"), lambda _: ("invalid_text", "may hold no control characters")),
    (
        re.compile("Expected `str` of length (>=|<=) ([0-9]+)"),
        lambda m: ("invalid_length", f"must have at {'least' if m[1] == '>=' else 'most'} {m[2]} characters"),
    ),
    (re.compile("Expected `(.*)`, got `(.*)`"), lambda m: ("wrong_type", f"must be {_article(m[1])}, not {m[2]}")),
]


_NAMES: Final = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a string",
    "datetime": "a string with a timestamp",
    "object": "an object",
}


def _article(type_name: str) -> str:
    name = type_name.removesuffix(" | null")
    return _NAMES.get(name, type_name)


def pointer_of(name: str) -> str:
    """A JSON Pointer to a field, however long its name is; half of a surrogate pair in it becomes a `?`."""
    shown = (name if len(name) <= 64 else name[:64] + "...").encode("utf-8", "replace").decode()
    return "/" + shown.replace("~", "~0").replace("/", "~1")


def explain(message: str, choices: Mapping[str, Sequence[str]] | None = None) -> _Parsed:
    """(pointer, code, detail) of a msgspec complaint about one item. No value of the item is repeated.

    `choices`: pointer -> texts that a field may be.
    """
    message = message.encode("utf-8", "replace").decode()
    if unknown := _UNKNOWN.search(message):
        return pointer_of(unknown[1]), UNKNOWN_FIELD, "is not a field of this reading"
    if missing := _MISSING.search(message):
        return pointer_of(missing[1]), "missing_field", "is required"
    parts = _COMPLAINT.fullmatch(message)
    text, path = (parts["text"], parts["path"] or "") if parts else (message, "")
    pointer = path.replace(".", "/")
    if choices and pointer in choices and text.startswith("Invalid enum value"):
        return pointer, "not_a_choice", f"must be one of {', '.join(choices[pointer])}"
    for pattern, describe in _TEXTS:
        if match := pattern.search(text):
            code, detail = describe(match)
            return pointer, code, detail
    return pointer, "invalid", text
