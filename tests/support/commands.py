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


async def run_command(*arguments: object, env: dict[str, str] | None = None) -> Finished:
    """Run to the end, with a limit."""
    process = await start_command(*map(str, arguments), env=env, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(COMMAND_TIMEOUT_S):
        out, err = await process.communicate()
    return Finished(process.returncode, out.decode(), err.decode())


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
