"""Packed days give back what was packed, bit by bit, whatever the values, times and the session's time zone are."""

import math
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shards.bulk import planes
from shards.kinds import Type
from shards.storage.packing import Column, Shape, differing, packed_rows, part_of, readings, times
from tests.conftest import LoopRunner
from tests.support.bulk import readings_of
from tests.support.servers import TestCluster

SHAPE = Shape(
    "x_id",
    (
        Column("a", Type.FLOAT8),
        Column("b", Type.FLOAT4),
        Column("n", Type.INT),
        Column("day", Type.BOOL),
        Column("unit", Type.TEXT),
    ),
)
TYPES = {Type.FLOAT8: "double precision", Type.FLOAT4: "real", Type.INT: "integer", Type.BOOL: "boolean"}
SETUP = """
CREATE TEMP TABLE source (timestamp timestamptz, bucket smallint DEFAULT 0, tenant_id smallint,
    x_id varchar(64) COLLATE "C", a double precision, b real, n integer, day boolean, unit varchar(64));
CREATE TEMP TABLE packed (day date, bucket smallint, tenant_id smallint, x_id varchar(64) COLLATE "C", n integer,
    unit integer, t_base bigint, t_step bigint, marks bigint [], t_0 bytea, t_1 bytea, t_2 integer [], {columns});
SET enable_hashagg = off;
"""
DAY = datetime(2026, 3, 28, tzinfo=UTC)
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(-200, 200, places=1).map(float),
    st.decimals(0, 20_000_000, places=4).map(float),
    st.sampled_from([0.0, -0.0, 1e10, 9e9, 12345678901.5, 5e-324, 0.1 + 0.2, 1e-7]),
)
FLOATS4 = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.decimals(-100, 100, places=2).map(lambda x: struct.unpack("f", struct.pack("f", float(x)))[0]),
)


def columns() -> str:
    return ", ".join(
        f"{part} {kind}"
        for column in SHAPE.columns
        for part, kind in zip(
            column.parts,
            ("bigint", "smallint", "bytea", "bytea", "integer []", f"{TYPES.get(column.type)} []")
            if column.type is not Type.TEXT
            else ("varchar(64) []",),
            strict=True,
        )
    )


@st.composite
def days(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Readings of one device, at distinct times of about a day."""
    tick = draw(st.sampled_from([1_000_000, 1_000, 1]))
    step = draw(st.sampled_from([60, 10, 900]))
    jitter = st.integers(-5_000_000 // tick, 5_000_000 // tick)
    gaps = st.one_of(
        jitter.map(lambda j: step * 1_000_000 + j * tick),
        st.integers(1, 3600 * 1_000_000 // tick).map(lambda g: g * tick),
    )
    at, times = draw(st.integers(0, 86_399_999_999 // tick)) * tick, []
    for gap in draw(st.lists(gaps, min_size=0, max_size=200)):
        times.append(DAY + timedelta(microseconds=at))
        at += max(gap, tick)
    times.append(DAY + timedelta(microseconds=at))
    fields = [FLOATS, FLOATS4, st.integers(-(2**31), 2**31 - 1), st.booleans(), st.text("abc", max_size=4)]
    kinds = [draw(st.sampled_from(["values", "missing", "some", "constant"])) for _ in fields]
    rows = []
    constants = [draw(field) for field in fields]
    for moment in times:
        values = [
            None
            if kind == "missing" or (kind == "some" and draw(st.booleans()))
            else constants[at]
            if kind == "constant"
            else draw(field)
            for at, (kind, field) in enumerate(zip(kinds, fields, strict=True))
        ]
        rows.append((moment, draw(st.integers(0, 1)), "V-1", *values))
    return rows


def bits(row: Any) -> tuple[Any, ...]:
    return tuple(
        struct.pack("d", value) if isinstance(value, float) and not math.isnan(value) else value for value in row
    )


def here(rows: list[tuple[Any, ...]], tenant: int) -> list[tuple[object, ...]]:
    """The same packed rows without a database."""
    of_tenant = [(moment, device, values) for moment, whose, device, *values in rows if whose == tenant]
    return planes.packed(SHAPE, readings_of(SHAPE, of_tenant).sorted(), 0, tenant)


async def check(dsn: str, rows: list[tuple[Any, ...]], zone: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(SETUP.format(columns=columns()))
        await connection.execute("SELECT set_config('timezone', $1, false)", zone)
        names = ("timestamp", "tenant_id", "x_id", *(column.name for column in SHAPE.columns))
        await connection.copy_records_to_table("source", records=rows, columns=names)
        await connection.execute(f"INSERT INTO packed ({SHAPE.listed}) {packed_rows(SHAPE, 'source')}")
        back = await connection.fetch(
            f"SELECT timestamp, tenant_id, x_id{SHAPE.values} FROM ({readings(SHAPE, 'packed')}) AS r"
        )
        assert sorted(map(bits, map(tuple, back)), key=repr) == sorted(map(bits, rows), key=repr)
        unpacked = f"({readings(SHAPE, 'packed')})"
        assert await connection.fetchval(differing(SHAPE, "source", unpacked)) == 0
        assert await connection.fetchval("SELECT sum(n) FROM packed") == len(rows)
        packed_here = [row for tenant in (0, 1) for row in here(rows, tenant)]
        stored = await connection.fetch(f"SELECT {SHAPE.listed} FROM packed")
        assert sorted(map(repr, packed_here)) == sorted(repr(tuple(row)) for row in stored)
        # Packing what was unpacked gives the same rows.
        again = (
            f"SELECT count(*) FROM (({packed_rows(SHAPE, unpacked)}) EXCEPT ALL SELECT {SHAPE.listed} FROM packed) AS d"
        )
        assert await connection.fetchval(again) == 0
        only = f"SELECT count(*) FROM ({readings(SHAPE, 'packed', SHAPE.columns[2:3])}) AS r WHERE n IS NOT NULL"
        assert await connection.fetchval(only) == sum(row[5] is not None for row in rows)
        # Each reading is found by its time in the one part that would have it.
        which = "p.day = (s.timestamp AT TIME ZONE 'UTC')::date AND p.tenant_id = s.tenant_id"
        parts = (
            f"(SELECT DISTINCT p.*, {part_of('p', 's.timestamp')} AS part FROM source AS s JOIN packed AS p ON {which})"
        )
        found = await connection.fetch(f"SELECT timestamp, tenant_id FROM ({times(SHAPE, parts)}) AS t")
        assert len(found) == len(rows)
        assert {tuple(row) for row in found} == {(row[0], row[1]) for row in rows}
        # A value that is another one is told.
        await connection.execute(
            "UPDATE source SET n = coalesce(n, 0) # 1 WHERE timestamp = (SELECT min(timestamp) FROM source)"
        )
        assert await connection.fetchval(differing(SHAPE, "source", unpacked)) == 2
    finally:
        await connection.close()


@example(
    [(DAY + timedelta(minutes=n, microseconds=n % 7), 0, "V-1", n / 10, None, n, None, None) for n in range(1440)],
    "UTC",
)
@example(
    [
        (DAY + timedelta(seconds=n), 0, "V-1", 1e10 - n / 10000, 0.1, 2**31 - 1 if n % 2 else -(2**31), True, "x")
        for n in range(90)
    ],
    "UTC",
)
@given(days(), st.sampled_from(["UTC", "Asia/Kolkata", "America/St_Johns"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_packed_comes_back(
    cluster: TestCluster, event_loop_runner: LoopRunner, rows: list[tuple[Any, ...]], zone: str
) -> None:
    rows = [
        (*row[:4], None if row[4] is None else struct.unpack("f", struct.pack("f", row[4]))[0], *row[5:])
        for row in rows
    ]
    event_loop_runner.run(check(cluster.shards["s1"], rows, zone))
