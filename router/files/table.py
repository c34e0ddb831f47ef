"""Rows of a delimited file, whatever stands above the header: with their line numbers, and by column."""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from router.files.cells import tidy
from router.files.layout import FileError, Layout, Name, Shape, wanted

PREAMBLE_MAX: Final = 60  # lines above the header
_BOMS: Final = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_FIELD_MAX: Final = 131_072

Row = tuple[int, list[str]]  # line, cells


@dataclass(frozen=True)
class Table:
    """The rows below a header, and where its columns are."""

    columns: list[str]
    rows: Iterator[Row]

    def find(self, name: Name) -> int | None:
        """The position of a column, None when there is none of that name."""
        for at, column in enumerate(self.columns):
            if name.fullmatch(column) if isinstance(name, re.Pattern) else column.lower() in name.lower().split("|"):
                return at
        return None


def rows(name: str, file: io.BufferedReader, layout: Layout) -> Iterator[Row]:
    """All rows of a file that hold something. FileError names the line that is not text, or no row."""
    encoding = next((known for bom, known in _BOMS.items() if file.peek(4).startswith(bom)), layout.encoding)
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    reader = csv.reader(text, delimiter=layout.delimiter, strict=True)
    try:
        for row in reader:
            if any("\n" in cell or "\r" in cell for cell in row):
                raise FileError(f"{name}:{reader.line_num}: a quote is not closed, so that rows run into each other")
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except UnicodeError:
        where = f"{name}:{reader.line_num + 1}"
        raise FileError(
            f"{where}: is not {encoding.upper()}, or near it: say what it is, as in --encoding latin-1"
        ) from None
    except csv.Error as error:
        raise FileError(f"{name}:{reader.line_num}: {error}") from None
    finally:
        with contextlib.suppress(ValueError):  # who stops in the middle may have closed it before this is cleared away
            text.detach()  # the file is its opener's to close


def table(name: str, file: io.BufferedReader, layout: Layout, told: str) -> Table:
    """Find the header of a layout. FileError when the file has none; `told`: what the layout is called."""
    found = rows(name, file, layout)
    if layout.shape is Shape.NEM12:
        return Table([], found)
    above: list[list[str]] = []
    for _, cells in itertools.islice(found, PREAMBLE_MAX):
        columns = [tidy(cell) for cell in cells]
        header = Table(columns, found)
        if fits(header, layout):
            return header
        above.append(columns)
    widest = max(above, key=lambda columns: (len(columns), len("".join(columns))), default=[])
    shown = ", ".join(widest)[:200] or "nothing"
    raise FileError(f"{name}: {told} expects the columns {wanted(layout)}; the file has {shown}")


def fits(header: Table, layout: Layout) -> bool:
    """Whether a row of names can be the header of a layout."""
    if any(header.find(column) is None for column in layout.required()):
        return False
    if layout.shape is Shape.DAYS:
        return len(day_columns(header.columns)) > 1
    return any(all(header.find(column) is not None for column in each) for each in layout.energy)


def day_columns(columns: Sequence[str]) -> list[tuple[int, str]]:
    """The columns of a row a day that are called HH:MM-HH:MM: position, start."""
    return [
        (at, column[:5])
        for at, column in enumerate(columns)
        if len(column) == 11 and column[2] == column[8] == ":" and column[5] == "-"
    ]


csv.field_size_limit(_FIELD_MAX)
