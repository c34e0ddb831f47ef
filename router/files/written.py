"""Exported lines in other forms: CSV, and Parquet where pyarrow is there. Each reads and writes a part at a time."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import orjson

from shards.errors import MachineError

ROWS_AT_ONCE: Final = 100_000  # a row group of Parquet
TIME: Final = "timestamp"


class Form(StrEnum):
    """Of a file of readings."""

    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


def note_fields(lines: bytes, known: dict[str, str]) -> int:
    """Add the fields of lines to those that are known (name -> "number", "boolean" or "text"); how many lines."""
    count = 0
    for line in lines.splitlines():
        count += 1
        for name, value in orjson.loads(line).items():
            known.setdefault(name, _type_of(value))
    return count


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "text"


def check_form(form: Form) -> None:
    """MachineError when a form cannot be written here: before anything is fetched."""
    if form is Form.PARQUET:
        _pyarrow()


def convert(source: Path, target: Path, form: Form, fields: Mapping[str, str]) -> None:
    """Write the lines of a file in a form; its columns are `fields`."""
    (_to_csv if form is Form.CSV else _to_parquet)(source, target, fields)


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    with source.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def _to_csv(source: Path, target: Path, fields: Mapping[str, str]) -> None:
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(fields), restval="")
        writer.writeheader()
        writer.writerows(_plain(row) for row in _rows(source))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}


def _pyarrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to import
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        message = "Parquet needs pyarrow, which is not installed: pip install 'voltroute[parquet]'"
        raise MachineError(message) from None
    return pa


def _to_parquet(source: Path, target: Path, fields: Mapping[str, str]) -> None:
    """Times are of microseconds in UTC, numbers float64; zstd, statistics, and a checksum of every page."""
    pa = _pyarrow()
    types = {"number": pa.float64(), "boolean": pa.bool_(), "text": pa.string()}
    moment = pa.timestamp("us", tz="UTC")
    schema = pa.schema([(name, moment if name == TIME else types[kind]) for name, kind in fields.items()])
    with pa.parquet.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as writer:
        for rows in _batched(_rows(source), ROWS_AT_ONCE):
            for row in rows:
                row[TIME] = datetime.fromisoformat(row[TIME])
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _batched(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
