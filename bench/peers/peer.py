"""What a peer is: what it promises, how it is started, and how what it stored is counted."""

import asyncio
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import orjson

from bench.measure import MeasurementError
from bench.systems import System
from bench.workload import Readings

START_S: Final = 60
STOP_S: Final = 30
VISIBLE_S: Final = 30  # until what was acknowledged can be read


@dataclass(frozen=True)
class Promises:
    """What an answer means, and what the system keeps, in a word or two each."""

    durable: str
    duplicates: str
    status: str
    sql: str


@dataclass(frozen=True)
class Peer:
    """A system under test. `missing`: why it cannot be started here, or None."""

    name: str
    promises: Promises
    missing: Callable[[], str | None]
    start: Callable[[], AbstractAsyncContextManager[System]]
    path: str
    count: Callable[[System, Readings], Awaitable[int]]


def lacking(program: str) -> str | None:
    """Why a program cannot be used; None when it can."""
    return None if shutil.which(program) else f"{program} is not installed"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def folder_of(name: str) -> AsyncIterator[Path]:
    """A folder for a peer's data, deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def running(
    name: str, command: Sequence[str], port: int, ready: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[System]:
    """A peer's server until it is not needed any more; it is there when `ready` answers."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    system = System(name, f"http://127.0.0.1:{port}", server_pid=process.pid, stores=False)
    try:
        await _until_ready(system, process, ready)
        yield system
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _until_ready(system: System, process: asyncio.subprocess.Process, path: str) -> None:
    async with asyncio.timeout(START_S):
        while process.returncode is None:
            try:
                await ask(system, path)
            except (OSError, HTTPException):
                await asyncio.sleep(0.05)
            else:
                return
    message = f"{system.name} did not start"
    raise MeasurementError(message)


async def ask(system: System, path: str) -> bytes:
    """The body of a GET; OSError when it is refused or cut off."""
    return await asyncio.to_thread(_read, system.url + path)


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=VISIBLE_S) as answer:  # noqa: S310 - of a server that we started
        body: bytes = answer.read()
        return body


async def ask_json(system: System, path: str) -> Any:
    """The same, as JSON."""
    return orjson.loads(await ask(system, path))
