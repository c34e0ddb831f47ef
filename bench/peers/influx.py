"""InfluxDB 1, as Debian has it: its write-ahead log is synced before it answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote

from bench.http1 import connect, post
from bench.peers.peer import Peer, Promises, ask_json, folder_of, free_port, lacking, running
from bench.systems import System
from bench.workload import Readings

_CONFIG: Final = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
dir = "{folder}/meta"
logging-enabled = false
[data]
dir = "{folder}/data"
wal-dir = "{folder}/wal"
wal-fsync-delay = "0s"
query-log-enabled = false
max-series-per-database = 0
max-values-per-tag = 0
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:{port}"
log-enabled = false
[logging]
level = "error"
"""


@asynccontextmanager
async def _start() -> AsyncIterator[System]:
    async with folder_of("influxdb") as folder:
        port = free_port()
        config = folder / "influxdb.conf"
        config.write_text(_CONFIG.format(folder=folder, port=port, rpc=free_port()), encoding="utf-8")
        async with running("InfluxDB 1", ["influxd", "-config", str(config)], port, "/ping") as system:
            connection = await connect(system.url)
            await connection.request(post(system.url, "/query?q=CREATE%20DATABASE%20bench", b""))
            connection.close()
            yield system


async def _count(system: System, readings: Readings) -> int:
    query = f'SELECT count("soc") FROM vehicle WHERE id =~ /^{readings.prefix}-/'
    found = await ask_json(system, f"/query?db=bench&q={quote(query)}")
    series = found["results"][0].get("series", [])
    return int(series[0]["values"][0][1]) if series else 0


INFLUX: Final = Peer(
    "InfluxDB 1",
    Promises("yes", "last one wins", "by query", "no (InfluxQL)"),
    lambda: lacking("influxd"),
    _start,
    "/write?db=bench",
    _count,
)
