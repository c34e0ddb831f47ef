"""Readings from CSV and NDJSON files."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

_ID_FIELD: Final = {"meter": "meterId", "vehicle": "vehicleId"}
_TEXT_FIELDS: Final = frozenset({"timestamp", "meterId", "vehicleId"})


class FileError(Exception):
    """The file cannot be used; the message names the line."""


def read_readings(path: Path, kind: str, device_id: str | None) -> Iterator[dict[str, Any]]:
    """Readings of a file, `.csv` with a header line or else NDJSON. `device_id` is for lines that name no device."""
    id_field = _ID_FIELD[kind]
    source = _csv(path) if path.suffix.lower() == ".csv" else _ndjson(path)
    for number, reading in source:
        if device_id is not None:
            reading.setdefault(id_field, device_id)
        if id_field not in reading:
            message = f"{path}:{number}: no {id_field}; name the device with --device"
            raise FileError(message)
        yield reading


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames or "timestamp" not in reader.fieldnames:
            message = f"{path}:1: the first line must name the columns, `timestamp` among them"
            raise FileError(message)
        for row in reader:
            if None in row or None in row.values():
                message = f"{path}:{reader.line_num}: {len(reader.fieldnames)} columns are expected"
                raise FileError(message)
            yield reader.line_num, {name: _value(path, reader.line_num, name, text) for name, text in row.items()}


def _value(path: Path, line: int, name: str, text: str) -> str | float:
    if name in _TEXT_FIELDS:
        return text
    try:
        return float(text)
    except ValueError:
        message = f"{path}:{line}: {name} is {text[:40]!r}, not a number"
        raise FileError(message) from None


def _ndjson(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                message = f"{path}:{number}: {error}"
                raise FileError(message) from None
            if not isinstance(value, dict):
                message = f"{path}:{number}: a JSON object is expected"
                raise FileError(message)
            yield number, value


def batched(readings: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most `size` readings."""
    while batch := list(itertools.islice(readings, size)):
        yield batch
