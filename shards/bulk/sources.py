"""Where readings come from: files of others and of ours, and tables of PostgreSQL, some rows at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any, Final

import asyncpg
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from shards.bulk.checking import Batch, renamed
from shards.bulk.lines import Lines
from shards.bulk.objects import JsonLines
from shards.errors import InvalidArgument
from shards.kinds import Kind, Type
from shards.postgres.dsn import environment_of
from shards.postgres.lineage import Role
from shards.postgres.sessions import SessionLimits, open_session
from shards.postgres.sql import quote_identifier

_BLOCK: Final = 16 * 2**20
_ROWS: Final = 262_144
_OPTIONS: Final = {
    "null_values": ["", "NULL", "null", "NaN", "nan"],
    "strings_can_be_null": True,
    "true_values": ["1", "true", "TRUE", "True", "t"],
    "false_values": ["0", "false", "FALSE", "False", "f"],
}
_TYPES: Final = {Type.FLOAT8: pa.float64(), Type.FLOAT4: pa.float64(), Type.INT: pa.int64(), Type.BOOL: pa.bool_()}
LIMITS: Final = SessionLimits(statement_timeout_s=86_400.0)


class Form(StrEnum):
    """Of a file."""

    CSV = "csv"
    PARQUET = "parquet"
    NDJSON = "ndjson"
    LINES = "lines"  # of InfluxDB


_BY_SUFFIX: Final = {
    ".csv": Form.CSV,
    ".parquet": Form.PARQUET,
    ".ndjson": Form.NDJSON,
    ".jsonl": Form.NDJSON,
    ".lp": Form.LINES,
}
_PACKED: Final = {".gz", ".zst", ".bz2"}


@dataclass(frozen=True)
class Naming:
    """What columns mean: field -> column, and those left out. `counted`: times are whole numbers.

    `measurement`: the one that is taken, of lines.
    """

    kind: Kind
    given: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    counted: bool = False
    measurement: str | None = None

    def of(self, columns: Sequence[str], name: str) -> dict[str, str]:
        """Column -> field. InvalidArgument for what cannot be."""
        return renamed(self.kind, columns, self.given, self.left_out, name)

    def type_of(self, named: str) -> Any:
        """As what a field's column is read from text."""
        if named == "timestamp" and self.counted:
            return pa.int64()
        types = {each.name: _TYPES.get(each.type, pa.string()) for each in self.kind.fields}
        return types.get(named, pa.string())


def form_of(path: Path, told: Form | None) -> Form:
    """By its name, unless somebody says so. InvalidArgument when neither tells."""
    suffixes = [each.lower() for each in path.suffixes]
    last = next((each for each in reversed(suffixes) if each not in _PACKED), "")
    found = told or _BY_SUFFIX.get(last)
    if found is None:
        raise InvalidArgument(f"{path}: its name does not tell what it is: say --format csv, parquet, ndjson or lines")
    return found


@dataclass(frozen=True)
class File:
    """A file; `.gz`, `.zst` and `.bz2` are unpacked as they are read.

    `told`: takes rows that are none; None: they are refused.
    """

    path: Path
    form: Form
    naming: Naming
    told: Callable[[str], None] | None = None

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def is_partial(self) -> bool:
        """Whether a row may be a part of a reading."""
        return self.form is Form.LINES

    @property
    def identity(self) -> str:
        """Another one when it was changed."""
        found = self.path.stat()
        return f"{self.path.resolve()} {found.st_size} {found.st_mtime_ns}"

    async def batches(self) -> AsyncIterator[Batch]:
        """All of it. InvalidArgument names what cannot be read."""
        found, row = self._tables(), 1
        reading = asyncio.create_task(asyncio.to_thread(next, found, None))
        try:
            while (table := await reading) is not None:
                reading = asyncio.create_task(asyncio.to_thread(next, found, None))  # while this one is worked on
                yield Batch(self.name, row, table)
                row += table.num_rows
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{self.name}: {str(error).splitlines()[0][:300]}") from None
        finally:
            await asyncio.wait([reading])

    def _tables(self) -> Iterator[Any]:
        reading = {Form.CSV: self._csv, Form.PARQUET: self._parquet, Form.NDJSON: self._ndjson, Form.LINES: self._lines}
        yield from reading[self.form]()

    def _csv(self) -> Iterator[Any]:
        with pa.input_stream(str(self.path)) as file:
            first = file.read(_BLOCK).split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf")
        delimiter = ";" if first.count(b";") > first.count(b",") else ","
        head = pa.csv.read_csv(BytesIO(first + b"\n"), parse_options=pa.csv.ParseOptions(delimiter=delimiter))
        found = self.naming.of(head.schema.names, self.name)
        done = 0
        try:
            for table in self._csv_tables(found, delimiter, typed=True):
                yield table
                done += table.num_rows
        except pa.ArrowInvalid:  # as texts, each value can be looked at by itself
            for table in self._csv_tables(found, delimiter, typed=False):
                if table.num_rows > done:
                    yield table.slice(done)
                done = max(done - table.num_rows, 0)

    def _csv_tables(self, found: Mapping[str, str], delimiter: str, *, typed: bool) -> Iterator[Any]:
        types = {column: self.naming.type_of(named) if typed else pa.string() for column, named in found.items()}
        options = pa.csv.ConvertOptions(column_types=types, include_columns=list(found), **_OPTIONS)
        parsing = pa.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=None if typed else self._odd)
        with (
            pa.input_stream(str(self.path)) as file,
            pa.csv.open_csv(file, pa.csv.ReadOptions(block_size=_BLOCK), parsing, options) as reader,
        ):
            for batch in reader:
                yield _named(pa.Table.from_batches([batch]), found)

    def _odd(self, row: Any) -> str:
        """A row that has more cells, or fewer, than there are columns."""
        if self.told is None:
            return "error"
        self.told(
            f"{self.name}: {row.expected_columns} cells are expected, there are {row.actual_columns}: {row.text[:60]}"
        )
        return "skip"

    def _parquet(self) -> Iterator[Any]:
        with pa.parquet.ParquetFile(self.path) as file:
            found = self.naming.of(file.schema_arrow.names, self.name)
            for batch in file.iter_batches(_ROWS, columns=list(found)):
                yield _named(pa.Table.from_batches([batch]), found)

    def _ndjson(self) -> Iterator[Any]:
        names = self._names_of_json()
        schema = pa.schema([(column, self.naming.type_of(named)) for column, named in names.items()])
        options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        done = 0
        try:
            with pa.input_stream(str(self.path)) as file:
                for batch in pa.json.open_json(file, pa.json.ReadOptions(block_size=_BLOCK), options):
                    table = pa.Table.from_batches([batch])
                    there = {c: n for c, n in names.items() if table.column(c).null_count < table.num_rows}
                    yield _named(table, there)
                    done += table.num_rows
        except pa.ArrowInvalid:  # line by line, what is wrong can be told
            with pa.input_stream(str(self.path)) as file:
                objects = JsonLines(self.name, self.naming.kind, self._names_of_json(), self.naming.left_out, self.told)
                yield from objects.tables(TextIOWrapper(file, "utf-8"), done)

    def _names_of_json(self) -> dict[str, str]:
        """Name in an object -> field."""
        fields = ["timestamp", self.naming.kind.id_name, *(each.name for each in self.naming.kind.fields)]
        return {self.naming.given.get(each, each): each for each in fields}

    def _lines(self) -> Iterator[Any]:
        kind, given = self.naming.kind, self.naming.given
        names = {kind.id_name: kind.id_column} | {each.name: each.column for each in kind.fields}
        found = {column: name for name, column in given.items()}
        for name, column in names.items():
            if name not in given:
                found |= {name: name, column: name}
        lines = Lines(self.name, self.naming.measurement, found, self.naming.left_out)
        with pa.input_stream(str(self.path)) as file:
            yield from lines.tables(TextIOWrapper(file, "utf-8"))


def _named(table: Any, found: Mapping[str, str]) -> Any:
    return table.select(list(found)).rename_columns(list(found.values()))


@dataclass(frozen=True)
class Foreign:
    """A table, or a view, of a PostgreSQL (or TimescaleDB) somewhere: read in one statement, as it was at one time."""

    dsn: str
    table: str
    naming: Naming

    @property
    def name(self) -> str:
        return self.table

    @property
    def is_partial(self) -> bool:
        return False

    @property
    def identity(self) -> str:
        where = {name: value for name, value in environment_of(self.dsn).items() if name != "PGPASSWORD"}
        return f"table {self.table} of {sorted(where.items())}"

    async def batches(self) -> AsyncIterator[Batch]:
        """All of it. InvalidArgument for what is not there; ShardError when it does not answer."""
        async with open_session(self.table, self.dsn, LIMITS, "voltroute load", role=Role.ANY) as connection:
            found, selected = await self._columns(connection)
            queue: asyncio.Queue[bytes | None] = asyncio.Queue(8)
            copying = asyncio.create_task(self._copy(connection, selected, queue))
            try:
                row = 1
                async for text in _lines(queue):
                    table = await asyncio.to_thread(self._read, text, found)
                    yield Batch(self.name, row, table)
                    row += table.num_rows
                await copying
            finally:
                copying.cancel()

    async def _columns(self, connection: Any) -> tuple[dict[str, str], str]:
        """Column -> field, and what is selected of them, in that order."""
        listed = ".".join(quote_identifier(each) for each in self.table.split("."))
        try:
            statement = await connection.prepare(f"SELECT * FROM {listed}")
        except asyncpg.PostgresError as error:
            raise InvalidArgument(f"--table {self.table}: {error.args[0]}") from None
        types = {each.name: each.type.name for each in statement.get_attributes()}
        found = self.naming.of(list(types), self.table)
        selected = []
        for column, named in found.items():
            quoted = quote_identifier(column)
            if named == "timestamp" and types[column] in {"timestamp", "timestamptz"}:
                # A time without a zone stays one: whoever loads it says which one. One of before our era is none.
                has_zone = types[column] == "timestamptz"
                at, mark = (f"{quoted} AT TIME ZONE 'UTC'", " || 'Z'") if has_zone else (quoted, "")
                text = f"to_char({at}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US'){mark}"
                quoted = f"CASE WHEN {at} >= '0001-01-01' AND {at} < '10000-01-01' THEN {text} END"
            selected.append(f"{quoted} AS {quote_identifier(named)}")
        return found, f"SELECT {', '.join(selected)} FROM {listed}"

    async def _copy(self, connection: Any, query: str, queue: "asyncio.Queue[bytes | None]") -> None:
        try:
            await connection.copy_from_query(query, output=queue.put, format="csv", timeout=LIMITS.statement_timeout_s)
        finally:
            await queue.put(None)

    def _read(self, text: bytes, found: Mapping[str, str]) -> Any:
        names = list(found.values())
        for typed in (True, False):  # as texts, each value can be looked at by itself
            types = {name: self.naming.type_of(name) if typed else pa.string() for name in names}
            options = pa.csv.ConvertOptions(column_types=types, **_OPTIONS)
            try:
                return pa.csv.read_csv(BytesIO(text), pa.csv.ReadOptions(column_names=names), convert_options=options)
            except pa.ArrowInvalid as error:
                if not typed:
                    raise InvalidArgument(f"--table {self.table}: {str(error)[:300]}") from None
        raise AssertionError  # the loop returns or raises


async def _lines(queue: "asyncio.Queue[bytes | None]") -> AsyncIterator[bytes]:
    """Whole lines, about a block at a time."""
    parts: list[bytes] = []
    size = 0
    while (part := await queue.get()) is not None:
        parts.append(part)
        size += len(part)
        if size >= _BLOCK:
            text = b"".join(parts)
            cut = text.rfind(b"\n") + 1
            yield text[:cut]
            parts, size = [text[cut:]], len(text) - cut
    if rest := b"".join(parts):
        yield rest
