"""Running `voltroute` as its users do."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.routers import read_json, start_command

COMMAND_TIMEOUT_S = 120


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def run_command(
    *arguments: object, env: dict[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_S
) -> Finished:
    """Run to the end, with a limit."""
    process = await start_command(*map(str, arguments), env=env, stderr=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[bytearray] = [bytearray(), bytearray()]
    streams = zip((process.stdout, process.stderr), said, strict=True)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(_gather(stream, into) for stream, into in streams))
            await process.wait()
    except TimeoutError:  # what it said until then is the only hint at what it waits for
        process.kill()
        await process.wait()
        out, err = (part[-4_000:].decode(errors="replace") for part in said)
        pytest.fail(f"no end after {timeout_s} s: {' '.join(map(str, arguments))}\n{out}\n{err}")
    return Finished(process.returncode, said[0].decode(), said[1].decode())


async def _gather(stream: asyncio.StreamReader, into: bytearray) -> None:
    while part := await stream.read(65_536):
        into += part


@dataclass
class Up:
    """A running `voltroute up`."""

    process: asyncio.subprocess.Process
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.ready["url"])


@asynccontextmanager
async def up(data: Path, *arguments: str) -> AsyncIterator[Up]:
    """`voltroute up --data DATA --port 0 --json ...`, ended with SIGTERM unless it is gone already."""
    environment = {"VOLTROUTE_POOL_MIN": "1"}
    process = await start_command("up", "--data", str(data), "--port", "0", "--json", *arguments, env=environment)
    try:
        yield Up(process, await read_json(process))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            await process.wait()


def no_settings() -> dict[str, str]:
    """An environment for checking what a command does without any."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VOLTROUTE_")}
