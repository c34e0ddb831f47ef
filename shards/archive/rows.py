"""Packed readings of a month as Arrow tables, some at a time, and back; a shard unpacks and packs.

A shard sends each column as one piece of bytes for a device (PostgreSQL's binary form, big-endian), so that nothing is
done for each reading here. A part ends with a device's day, however many tenants have that.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from io import BytesIO
from typing import Any, Final

from shards.errors import MachineError
from shards.kinds import Type
from shards.postgres.connections import Connection
from shards.postgres.sql import quote_identifier
from shards.postgres.transactions import transaction
from shards.storage.packing import Column, Shape, packed_rows, readings

PART_READINGS: Final = 131_072  # a row group
_DAYS_LOOKED_AT: Final = 20_000
_EPOCH_US: Final = 946_684_800_000_000  # PostgreSQL counts from 2000, Arrow from 1970
_IN_ORDER: Final = "SET LOCAL enable_hashagg = off"  # what is put together is in the order of the sub-select
_OF_MONTH: Final = "bucket = $1::smallint AND day >= $2::date AND day < $3::date"
_FIRST: Final = ("", date(1, 1, 1))
# How PostgreSQL sends a type, a value in place of NULL, the bytes as numpy reads them, and what Arrow calls it.
_SENT: Final = {
    Type.FLOAT8: ("float8send", "0", ">f8", "float64"),
    Type.FLOAT4: ("float4send", "0", ">f4", "float32"),
    Type.INT: ("int4send", "0", ">i4", "int32"),
    Type.BOOL: ("boolsend", "false", "?", "bool"),
}


def arrow() -> Any:
    """pyarrow, with Parquet. MachineError without it."""
    try:
        import numpy as np  # noqa: F401, PLC0415 - extras, and slow to import
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.csv  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        message = "this needs pyarrow and numpy, which are not installed: pip install 'voltroute[archive]'"
        raise MachineError(message) from None
    return pa


@dataclass(frozen=True)
class Month:
    """The packed readings of a bucket and kind in a month (UTC), as the shard of a connection has them."""

    kind: str
    bucket: int
    first: date
    shape: Shape

    @cached_property
    def past(self) -> date:
        """The first day behind it."""
        return (self.first + timedelta(days=32)).replace(day=1)

    @property
    def packed(self) -> str:
        """The root of packed readings, quoted."""
        return quote_identifier(f"{self.kind}_telemetry_packed")

    @property
    def place(self) -> tuple[int, str]:
        return self.bucket, self.kind

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Its first instant, and that behind it."""
        first, past = (datetime(each.year, each.month, 1, tzinfo=UTC) for each in (self.first, self.past))
        return first, past

    @property
    def bounds(self) -> tuple[int, date, date]:
        return self.bucket, self.first, self.past

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a packed row."""
        return tuple(name.strip().strip('"') for name in self.shape.listed.split(","))

    def schema(self, metadata: dict[bytes, bytes] | None = None) -> Any:
        """The columns of an object: the device's ID, tenant_id, timestamp, then values as history calls them."""
        pa = arrow()
        fields = [
            (self.shape.id_column, pa.string()),
            ("tenant_id", pa.int16()),
            ("timestamp", pa.timestamp("us", "UTC")),
        ]
        fields += [(each.name, _arrow_type(each)) for each in self.shape.columns]
        return pa.schema(fields, metadata)

    async def fingerprint(self, connection: Connection, columns: Sequence[str]) -> tuple[int, str]:
        """How many readings are packed, and a sum over their packed rows that tells whether they are the same."""
        listed = ", ".join(map(quote_identifier, columns))
        digest = f"('x' || substr(md5(record_send(ROW({listed}))), 1, 15))::bit(60)::bigint"
        query = (
            f"SELECT coalesce(sum(n), 0)::bigint, coalesce(sum({digest}), 0)::text FROM {self.packed} WHERE {_OF_MONTH}"
        )
        return tuple((await connection.fetch(query, *self.bounds))[0])

    async def parts(self, connection: Connection) -> AsyncIterator[Any]:
        """Tables of some devices' days each, in the order of device and day."""
        pa, statement, key = arrow(), self._select(), self.shape.key
        place: tuple[str, date] = _FIRST
        following = f"({key}, day) > ($4, $5)"
        days = (
            f"SELECT {key}, day, sum(n) OVER (ORDER BY {key}, day) AS upto FROM {self.packed} "
            f"WHERE {_OF_MONTH} AND {following} ORDER BY {key}, day LIMIT {_DAYS_LOOKED_AT}"
        )
        while found := await connection.fetch(days, *self.bounds, *place):
            some = [record for record in found if record["upto"] <= PART_READINGS] or found[:1]
            upto = (some[-1][0], some[-1]["day"])
            async with transaction(connection, readonly=True):
                await connection.execute(_IN_ORDER)
                records = await connection.fetch(statement, *self.bounds, *place, *upto)
            yield _table(pa, self, records)
            place = upto

    def _select(self) -> str:
        key, columns = self.shape.key, self.shape.columns
        rows = (
            f"(SELECT * FROM {self.packed} WHERE {_OF_MONTH} AND ({key}, day) > ($4, $5) AND ({key}, day) <= ($6, $7))"
        )
        listed = "".join(f", {part}" for column in columns for part in _sent(column))
        ordered = f"SELECT * FROM ({readings(self.shape, rows)}) AS r ORDER BY {key}, tenant_id, timestamp"
        return (
            f"SELECT {key}, tenant_id, count(*), string_agg(timestamptz_send(timestamp), ''::bytea){listed} "
            f"FROM ({ordered}) AS r GROUP BY {key}, tenant_id ORDER BY {key}, tenant_id"
        )

    async def pack(self, connection: Connection, table: Any) -> None:
        """Pack a part as it was; rows that are there already stay. The caller's transaction."""
        staged = quote_identifier(f"restoring_{self.kind}")
        history = quote_identifier(f"{self.kind}_telemetry_history")
        columns = table.schema.names  # a column that was added since holds nothing
        await connection.execute(
            f"CREATE TEMP TABLE IF NOT EXISTS {staged} ON COMMIT DELETE ROWS AS SELECT {self.shape.reading} "
            f"FROM {history} WITH NO DATA"
        )
        await connection.execute(_IN_ORDER)
        await connection.execute(f"ALTER TABLE {staged} ALTER COLUMN bucket SET DEFAULT {self.bucket:d}")
        await connection.copy_to_table(f"restoring_{self.kind}", source=_csv(table), columns=columns, format="csv")
        await connection.execute(
            f"INSERT INTO {self.packed} ({self.shape.listed}) {packed_rows(self.shape, staged)} ON CONFLICT DO NOTHING"
        )
        await connection.execute(f"TRUNCATE {staged}")


def _sent(column: Column) -> tuple[str, str]:
    """A column's values, and which of them are missing (NULL: none is)."""
    missing = f"string_agg(boolsend({column.quoted} IS NULL), ''::bytea)"
    missing = f"CASE WHEN count({column.quoted}) < count(*) THEN {missing} END"
    if column.type is Type.TEXT:
        return f"array_agg({column.quoted})", missing
    send, instead, _, _ = _SENT[column.type]
    return f"string_agg({send}(coalesce({column.quoted}, {instead})), ''::bytea)", missing


def _arrow_type(column: Column) -> Any:
    pa = arrow()
    if column.type is Type.TEXT:
        return pa.string()
    return pa.bool_() if column.type is Type.BOOL else getattr(pa, _SENT[column.type][3])()


def _table(pa: Any, month: Month, records: Sequence[Any]) -> Any:
    import numpy as np  # noqa: PLC0415 - an extra

    counts = [record[2] for record in records]
    ids = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(records), dtype=np.int32), counts)),
        pa.array([record[0] for record in records]),
    ).cast(pa.string())
    tenants = np.repeat(np.array([record[1] for record in records], dtype=np.int16), counts)
    times = np.frombuffer(b"".join(record[3] for record in records), ">i8").astype("<i8") + _EPOCH_US
    arrays = [ids, pa.array(tenants), pa.array(times).cast(pa.timestamp("us", "UTC"))]
    for at, column in enumerate(month.shape.columns):
        values, missing = ([record[4 + 2 * at + part] for record in records] for part in (0, 1))
        if column.type is Type.TEXT:
            arrays.append(pa.array([value for some in values for value in some], pa.string()))
            continue
        form = np.dtype(_SENT[column.type][2])
        data = np.frombuffer(b"".join(values), form).astype(form.newbyteorder("="))
        mask = None
        if any(each is not None for each in missing):
            parts = (bytes(count) if each is None else each for each, count in zip(missing, counts, strict=True))
            mask = np.frombuffer(b"".join(parts), "?")
        arrays.append(pa.array(data, _arrow_type(column), mask=mask))
    return pa.table(arrays, schema=month.schema())


def _csv(table: Any) -> BytesIO:
    """NULL is nothing, and every value stands in quotes."""
    pa = arrow()
    options = pa.csv.WriteOptions(include_header=False, quoting_style="all_valid")
    buffer = BytesIO()
    pa.csv.write_csv(table, buffer, options)
    buffer.seek(0)
    return buffer
