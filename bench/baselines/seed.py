"""The seed's way in the same stack: one database, its tables and indexes, a transaction for each request.

Pool of 5 to 20 connections. A request upserts the current status and then inserts into history: two statements of many
rows each, `VALUES ($1, ...), (...)`, which is what the seed's `manager.upsert` and `manager.insert` send. asyncpg keeps
them prepared; the seed's driver parses them each time.
"""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import asyncpg
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.baselines.serving import run

SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS seed;
CREATE TABLE IF NOT EXISTS seed.vehicle_current_status (
    vehicle_id varchar(50) PRIMARY KEY, soc float8 NOT NULL, kwh_delivered_dc float8 NOT NULL,
    battery_temp float8 NOT NULL, last_updated timestamptz NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS status_last_updated ON seed.vehicle_current_status (last_updated);
CREATE TABLE IF NOT EXISTS seed.vehicle_telemetry_history (
    id bigserial PRIMARY KEY, vehicle_id varchar(50) NOT NULL, soc float8 NOT NULL, kwh_delivered_dc float8 NOT NULL,
    battery_temp float8 NOT NULL, timestamp timestamptz NOT NULL, ingested_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS history_vehicle_timestamp ON seed.vehicle_telemetry_history (vehicle_id, timestamp DESC);
CREATE INDEX IF NOT EXISTS history_timestamp ON seed.vehicle_telemetry_history (timestamp DESC);
"""
UPSERT: Final = """
INSERT INTO seed.vehicle_current_status (vehicle_id, soc, kwh_delivered_dc, battery_temp, last_updated) VALUES {rows}
ON CONFLICT (vehicle_id) DO UPDATE SET soc = excluded.soc, kwh_delivered_dc = excluded.kwh_delivered_dc,
    battery_temp = excluded.battery_temp, last_updated = excluded.last_updated
"""
INSERT: Final = """
INSERT INTO seed.vehicle_telemetry_history (vehicle_id, soc, kwh_delivered_dc, battery_temp, timestamp) VALUES {rows}
"""
FIELDS: Final = ("vehicleId", "soc", "kwhDeliveredDc", "batteryTemp")
WIDTH: Final = len(FIELDS) + 1
ROWS_MAX: Final = 32_767 // WIDTH  # asyncpg's limit of arguments


@lru_cache
def statement(template: str, rows: int) -> str:
    """The statement for so many rows."""
    tuples = (", ".join(f"${row * WIDTH + column + 1}" for column in range(WIDTH)) for row in range(rows))
    return template.format(rows=", ".join(f"({each})" for each in tuples))


def row_of(reading: dict[str, Any]) -> tuple[Any, ...]:
    """The five values of a reading."""
    return (*(reading[name] for name in FIELDS), datetime.fromisoformat(reading["timestamp"]))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The pool, and the seed's tables in a schema of their own."""
    dsn = os.environ["BENCH_SEED_DSN"]
    async with asyncpg.create_pool(dsn, min_size=5, max_size=20, max_inactive_connection_lifetime=30) as pool:
        await pool.execute(SCHEMA)
        app.state.pool = pool
        yield


async def ingest(request: Request) -> Response:
    """One JSON object, or NDJSON with each device at most once."""
    readings = [orjson.loads(line) for line in (await request.body()).split(b"\n")]
    rows = [row_of(reading) for reading in readings]
    async with request.app.state.pool.acquire(timeout=10) as connection, connection.transaction():
        for template in (UPSERT, INSERT):
            for at in range(0, len(rows), ROWS_MAX):
                part = rows[at : at + ROWS_MAX]
                await connection.execute(statement(template, len(part)), *itertools.chain.from_iterable(part))
    answer = {"accepted": len(readings), "duplicates": 0, "rejected": 0, "errors": []}
    return Response(orjson.dumps(answer), media_type="application/json")


if __name__ == "__main__":
    run(Starlette(routes=[Route("/v1/ingest/vehicle", ingest, methods=["POST"])], lifespan=lifespan))
