"""haproxy in front of routers, as a TCP balancer that asks /readyz."""

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.embedded.ports import free_ports
from tests.support.programs import need

READY_S: Final = 30
_CONFIGURATION: Final = """
global
    stats socket {folder}/stats.sock
defaults
    mode tcp
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    retries 2
    option redispatch
listen routers
    bind 127.0.0.1:{port}
    balance leastconn
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost
    http-check expect status 200
    default-server check inter 100ms fall 1 rise 1
"""


@dataclass
class Balancer:
    """`url`: where it listens; its routers are called by their ports."""

    url: str
    folder: Path

    async def states(self) -> dict[int, str]:
        """Port -> UP or DOWN."""
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "stats.sock"))
        writer.write(b"show stat\n")
        told = (await reader.read()).decode().splitlines()
        writer.close()
        columns = told[0].removeprefix("# ").split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in told[1:] if line]
        return {int(row["svname"][1:]): row["status"] for row in rows if row["svname"].startswith("r")}

    async def until(self, port: int, state: str) -> None:
        """It sees that router so."""
        async with asyncio.timeout(READY_S):
            while not (await self.states())[port].startswith(state):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def balancer(ports: Sequence[int]) -> AsyncIterator[Balancer]:
    """In front of the routers on these ports."""
    need("haproxy")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="voltroute-") as name:
        folder = Path(name)
        servers = [f"    server r{each} 127.0.0.1:{each}\n" for each in ports]
        (folder / "haproxy.cfg").write_text(_CONFIGURATION.format(folder=folder, port=port) + "".join(servers))
        process = await asyncio.create_subprocess_exec(
            "haproxy", "-f", str(folder / "haproxy.cfg"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            made = Balancer(f"http://127.0.0.1:{port}", folder)
            async with asyncio.timeout(READY_S):
                while not (folder / "stats.sock").exists():
                    await asyncio.sleep(0.02)
            yield made
        finally:
            process.terminate()
            await process.wait()
