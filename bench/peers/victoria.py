"""VictoriaMetrics, as Debian has it: it answers from memory, and writes to disk once a second."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote

from bench.peers.peer import Peer, Promises, ask, ask_json, folder_of, free_port, lacking, running
from bench.systems import System
from bench.workload import DAYS_BACK, Readings


@asynccontextmanager
async def _start() -> AsyncIterator[System]:
    async with folder_of("victoria") as folder:
        port = free_port()
        command = ["victoria-metrics", f"-storageDataPath={folder}", f"-httpListenAddr=127.0.0.1:{port}"]
        command += ["-retentionPeriod=12", "-loggerLevel=ERROR", "-search.maxUniqueTimeseries=1000000"]
        command += ["-search.maxQueryDuration=60s"]
        async with running("VictoriaMetrics", command, port, "/health") as system:
            yield system


async def _count(system: System, readings: Readings) -> int:
    await ask(system, "/internal/force_flush")
    query = f'sum(count_over_time(vehicle_soc{{id=~"{readings.prefix}-.*"}}[{DAYS_BACK + 5}d]))'
    moment = int(readings.start.timestamp()) + (DAYS_BACK + 2) * 86_400
    found = await ask_json(system, f"/api/v1/query?query={quote(query)}&time={moment}&nocache=1")
    result = found["data"]["result"]
    return int(result[0]["value"][1]) if result else 0


VICTORIA: Final = Peer(
    "VictoriaMetrics",
    Promises("no: a second in memory", "both kept", "by query", "no (MetricsQL)"),
    lambda: lacking("victoria-metrics"),
    _start,
    "/write",
    _count,
)
