"""Our own files: NDJSON, and CSV whose columns are called like the fields of readings."""

import codecs
import io
from collections.abc import Iterator
from typing import Any, Final

import orjson

from router.files.cells import is_missing, number, tidy
from router.files.layout import FileError, Layout
from router.files.readings import Source
from router.files.table import Row, rows
from shards.declaration import camel_case
from shards.kinds import KINDS, Role

_COUNTED: Final = (Role.ENERGY, Role.REGISTER)
# Of kinds that everybody has: a row with none of these has no value.
_ENERGIES: Final = {kind.name: {each.name for each in kind.fields if each.role in _COUNTED} for kind in KINDS}
_WORDS: Final = {"true": True, "false": False}
# Of the kinds that everybody has: what is said of them is a number.
_NUMBERS: Final = frozenset(field.name for kind in KINDS for field in kind.fields)


def _is_text(name: str) -> bool:
    return name == "timestamp" or name.endswith("Id")


def is_ours(columns: list[str]) -> bool:
    """Whether a header has the names of our fields."""
    return "timestamp" in columns


def from_csv(
    source: Source, kind: str, columns: list[str], below: Iterator[Row]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, reading) of a table with our names. An empty cell is a field that is not there."""
    energies = _ENERGIES.get(kind, set()) & set(columns)
    for line, cells in below:
        if len(cells) != len(columns):
            source.bad(line, f"{len(columns)} columns are expected, there are {len(cells)}")
            continue
        given = {name: cell for name, cell in zip(columns, cells, strict=True) if _is_given(name, cell)}
        if "timestamp" not in given:
            source.bad(line, "timestamp is empty")
            continue
        if energies and not energies & given.keys():
            source.skipped.missing += 1
            continue
        try:
            yield line, {name: _value(name, cell, source.layout) for name, cell in given.items()}
        except ValueError as error:
            source.bad(line, str(error))


def _is_given(name: str, cell: str) -> bool:
    """A number may be called `unknown`; a device, or a word that somebody declared, is what is written there."""
    return not is_missing(cell) if name in _NUMBERS else bool(tidy(cell))


def _value(name: str, cell: str, layout: Layout) -> str | float | bool:
    """A text, a number, or of a field that somebody declared what it looks like: the router knows what it must be."""
    if _is_text(name):
        return tidy(cell)
    try:
        return number(cell, layout.decimal)
    except ValueError:
        if name not in _NUMBERS:
            return _WORDS.get(tidy(cell).lower(), tidy(cell))
        hint = " (is it a decimal comma? say --decimal ,)" if "," in cell and layout.decimal == "." else ""
        message = f"{name} is {cell[:40]!r}, not a number{hint}"
        raise ValueError(message) from None


def from_ndjson(source: Source, file: io.BufferedReader) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, reading) of a file with a JSON object a line."""
    for number_, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
        except orjson.JSONDecodeError as error:
            source.bad(number_, str(error))
            continue
        if not isinstance(value, dict):
            source.bad(number_, "a JSON object is expected")
            continue
        yield number_, value


def with_device(
    source: Source, kind: str, readings: Iterator[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same readings, each with a device: its own, or the one that was named for the file."""
    field = f"{camel_case(kind)}Id"
    for line, reading in readings:
        if field not in reading:
            if source.device is None:
                raise FileError(f"{source.name}:{line}: no {field}; name the device with --device")
            reading[field] = source.device
        yield line, reading


def header_of(name: str, file: io.BufferedReader, layout: Layout) -> tuple[list[str], Iterator[Row]]:
    """The first row's names, and the rows below it. FileError of an empty file's sake: no names."""
    found = rows(name, file, layout)
    _, cells = next(found, (0, []))
    return [tidy(cell) for cell in cells], found
