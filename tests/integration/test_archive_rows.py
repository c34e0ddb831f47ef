"""What is written to an object is what was packed, bit by bit, and what comes back packs as it was."""

import struct
import tempfile
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import asyncpg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from shards.archive import objects
from shards.archive import rows as archive_rows
from shards.archive.objects import Reader, Writer, described, same
from shards.archive.rows import Month
from shards.archive.store import StoreError
from shards.storage.packing import packed_rows, readings
from tests.conftest import LoopRunner
from tests.integration.test_packing import SETUP, SHAPE, bits, columns, days
from tests.support.servers import TestCluster

MONTHS = [Month("x", 0, first, SHAPE) for first in (date(2026, 3, 1), date(2026, 4, 1))]
RENAMED = """
ALTER TABLE source RENAME TO x_telemetry_history; ALTER TABLE packed RENAME TO x_telemetry_packed;
ALTER TABLE x_telemetry_packed ADD PRIMARY KEY (x_id, day, tenant_id, bucket)
"""
BACK = f"SELECT timestamp, tenant_id, x_id{SHAPE.values} FROM ({readings(SHAPE, 'x_telemetry_packed')}) AS r"


async def check(dsn: str, rows: list[tuple[Any, ...]], folder: Path) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(SETUP.format(columns=columns()) + RENAMED)
        names = ("timestamp", "tenant_id", "x_id", *(column.name for column in SHAPE.columns))
        await connection.copy_records_to_table("x_telemetry_history", records=rows, columns=names)
        packed = packed_rows(SHAPE, "x_telemetry_history")
        await connection.execute(f"INSERT INTO x_telemetry_packed ({SHAPE.listed}) {packed}")
        count = 0
        for month in MONTHS:
            listed = [name.strip().strip('"') for name in SHAPE.listed.split(",")]
            before = await month.fingerprint(connection, listed)
            tables = [table async for table in month.parts(connection)]
            path = folder / f"{month.first}.parquet"
            writer = Writer(path, month, described(month, "mine", before[0]))
            for table in tables:
                writer.write(table)
            writer.close()
            assert writer.readings == before[0]
            reader = Reader(path, "key")
            found = [reader.part(number) for number in range(reader.parts)]
            assert all(same(one, other) for one, other in zip(found, tables, strict=True))
            await connection.execute("DELETE FROM x_telemetry_packed WHERE day >= $1 AND day < $2", *month.bounds[1:])
            async with connection.transaction():
                for table in found:
                    await month.pack(connection, table)
                    await month.pack(connection, table)  # what is there stays
            assert await month.fingerprint(connection, listed) == before
            count += before[0]
        assert count == len(rows)
        back = await connection.fetch(BACK)
        assert sorted(map(bits, map(tuple, back)), key=repr) == sorted(map(bits, rows), key=repr)
    finally:
        await connection.close()


@given(days())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_there_and_back(cluster: TestCluster, event_loop_runner: LoopRunner, rows: list[tuple[Any, ...]]) -> None:
    rows = [
        (*row[:4], None if row[4] is None else struct.unpack("f", struct.pack("f", row[4]))[0], *row[5:])
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder, patch.object(archive_rows, "PART_READINGS", 50):
        event_loop_runner.run(check(cluster.shards["s1"], rows, Path(folder)))


def table(**changed: Any) -> Any:
    values = {"x": pa.array([0.0, None, 1.5]), "n": pa.array([1, 2, None], pa.int32())}
    return pa.table({**values, **changed})


def test_what_differs_is_seen() -> None:
    assert same(table(), table())
    assert same(table(), table(more=pa.nulls(3, pa.float64())))
    for changed in (
        {"x": pa.array([-0.0, None, 1.5])},
        {"x": pa.array([0.0, 0.0, 1.5])},
        {"n": pa.array([1, 2, 0], pa.int32())},
        {"more": pa.array([None, None, 1.0])},
    ):
        assert not same(table(), table(**changed))
    assert not same(table(), table().slice(1))
    assert not same(table(), table().drop_columns(["n"]))


def test_a_file_that_is_no_object_says_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"PAR1 and nothing of it PAR1"):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="key is no object of an archive"):
            Reader(path, "key")
    pa.parquet.write_table(table(), path)
    with pytest.raises(StoreError, match="key is no object of an archive"):
        Reader(path, "key")
    assert objects.digest(path)[0] == path.stat().st_size
