"""Readings from CSV and NDJSON files."""

import csv
import io
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import orjson

_ID_FIELD: Final = {"meter": "meterId", "vehicle": "vehicleId"}
_TEXT_FIELDS: Final = frozenset({"timestamp", "meterId", "vehicleId"})


STDIN: Final = "-"
_SNIFFED: Final = 4_096


class FileError(Exception):
    """The file cannot be used; the message names the line."""


def read_readings(path: Path, kind: str, device_id: str | None) -> Iterator[dict[str, Any]]:
    """Readings of a file (`-`: standard input), CSV with a header line or NDJSON, read once.

    `device_id` is for lines that name no device. FileError names file and line.
    """
    id_field = _ID_FIELD[kind]
    name = "standard input" if str(path) == STDIN else str(path)
    with _opened(path) as file:
        lines = path.suffix.lower() != ".csv" and file.peek(_SNIFFED).lstrip()[:1] in {b"{", b""}
        for number, reading in _ndjson(name, file) if lines else _csv(name, file):
            if device_id is not None:
                reading.setdefault(id_field, device_id)
            if id_field not in reading:
                message = f"{name}:{number}: no {id_field}; name the device with --device"
                raise FileError(message)
            yield reading


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    if str(path) == STDIN:
        yield cast("io.BufferedReader", sys.stdin.buffer)
        return
    with path.open("rb") as file:
        yield file


def _csv(name: str, file: io.BufferedReader) -> Iterator[tuple[int, dict[str, Any]]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text)
    try:
        if not reader.fieldnames or "timestamp" not in reader.fieldnames:
            message = f"{name}:1: the first line must name the columns, `timestamp` among them"
            raise FileError(message)
        for row in reader:
            if None in row or None in row.values():
                message = f"{name}:{reader.line_num}: {len(reader.fieldnames)} columns are expected"
                raise FileError(message)
            yield reader.line_num, {key: _value(name, reader.line_num, key, text) for key, text in row.items()}
    except UnicodeDecodeError:
        message = f"{name}:{reader.line_num + 1}: is not UTF-8, or near it"
        raise FileError(message) from None
    finally:
        text.detach()  # the file is its opener's to close


def _value(file: str, line: int, name: str, text: str) -> str | float:
    if name in _TEXT_FIELDS:
        return text
    try:
        return float(text)
    except ValueError:
        message = f"{file}:{line}: {name} is {text[:40]!r}, not a number"
        raise FileError(message) from None


def _ndjson(name: str, file: io.BufferedReader) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            message = f"{name}:{number}: {error}"
            raise FileError(message) from None
        if not isinstance(value, dict):
            message = f"{name}:{number}: a JSON object is expected"
            raise FileError(message)
        yield number, value


def batched(readings: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most `size` readings."""
    while batch := list(itertools.islice(readings, size)):
        yield batch
