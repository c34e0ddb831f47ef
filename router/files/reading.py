"""Opening a file of readings, whoever wrote it, and reading it once."""

import codecs
import io
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

from router.files import own, readings
from router.files.layout import FileError, Layout, Shape
from router.files.presets import PRESETS
from router.files.readings import Skipped, Source
from router.files.table import table
from shards.clock import time_zone
from shards.errors import InvalidArgument

STDIN: Final = "-"
_SNIFFED: Final = 4_096
_READERS: Final = {
    Shape.ROWS: readings.from_rows,
    Shape.DAYS: readings.from_days,
    Shape.NEM12: readings.rows_of_nem12,
}

Numbered = tuple[int, dict[str, Any]]  # line, reading


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file, or standard input for `-`."""
    if str(path) == STDIN:
        if sys.stdin is None:
            raise InvalidArgument("there is no standard input to read")
        yield cast("io.BufferedReader", sys.stdin.buffer)
        return
    with path.open("rb") as file:
        yield file


def name_of(path: Path) -> str:
    """What a file is called in messages."""
    return "standard input" if str(path) == STDIN else str(path)


def zone_of(name: str | None) -> ZoneInfo | None:
    """A time zone by its name. InvalidArgument names what is none."""
    if name is None:
        return None
    try:
        return time_zone(name)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def preset_of(name: str) -> Layout:
    """A known layout by its name. InvalidArgument names what is none."""
    preset = PRESETS.get(name)
    if preset is None:
        raise InvalidArgument(f"{name[:40]!r} is no preset: one of {', '.join(PRESETS)}")
    return preset.layout


def read(
    path: Path,
    kind: str,
    layout: Layout,
    told: str | None,
    device: str | None = None,
    skipped: Skipped | None = None,
    *,
    skip_bad: bool = False,
) -> Iterator[Numbered]:
    """(line, reading) of a file (`-`: standard input), read once.

    `told`: what the layout is called (a preset, or the columns that were named); None: our own names. `device`: of rows
    that name none. FileError names file and line, unless `skip_bad` puts such rows into `skipped`.
    """
    name = name_of(path)
    source = Source(name, layout, zone_of(layout.zone), device, skipped or Skipped(), skip_bad)
    with opened(path) as file:
        if told is not None:
            yield from _READERS[layout.shape](source, table(name, file, layout, told))
        elif path.suffix.lower() != ".csv" and _sniffed(file)[:1] in {b"{", b""}:
            yield from own.with_device(source, kind, own.from_ndjson(source, file))
        else:
            yield from own.with_device(source, kind, _own_csv(source, kind, file))


def _sniffed(file: io.BufferedReader) -> bytes:
    return file.peek(_SNIFFED).removeprefix(codecs.BOM_UTF8).lstrip()


def _own_csv(source: Source, kind: str, file: io.BufferedReader) -> Iterator[Numbered]:
    start = file.peek(_SNIFFED)
    first = start.partition(b"\n")[0]
    if source.layout.delimiter == "," and first.count(b";") > first.count(b","):
        source = replace(source, layout=replace(source.layout, delimiter=";"))
    columns, below = own.header_of(source.name, file, source.layout)
    if not own.is_ours(columns):
        hint = _looks_like(start)
        remedy = f"it looks like --preset {hint}" if hint else "see --preset, --map and `voltroute presets`"
        raise FileError(f"{source.name}:1: the first line must name the columns, `timestamp` among them; {remedy}")
    if twice := {name for name in columns if columns.count(name) > 1}:
        raise FileError(f"{source.name}:1: the column {min(twice)} is there twice")
    yield from own.from_csv(source, kind, columns, below)


def _looks_like(start: bytes) -> str | None:
    """The preset whose columns a file has, as far as its beginning tells."""
    for name, preset in PRESETS.items():
        layout = preset.layout
        if layout.shape is Shape.NEM12:
            if start.startswith(b"100,NEM12"):
                return name
            continue
        try:
            table("", cast("io.BufferedReader", io.BufferedReader(io.BytesIO(start))), layout, name)
        except FileError:
            continue
        return name
    return None


def batched(numbered: Iterator[Numbered], size: int) -> Iterator[list[Numbered]]:
    """Lists of at most `size`."""
    while batch := list(itertools.islice(numbered, size)):
        yield batch
