"""The steps of a move, and a runner that is killed or paused at one of them."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from shards.moves.placement import PlannedMove
from tests.support.loaded import Loaded
from tests.support.moving import ended, running
from tests.support.processes import eventually

BUCKETS = 4
STEPS = [
    "before claim", "after claim", "before prepare", "after prepare", "after entering backfill", "before leaf",
    "after leaf", "before entering catchup", "after entering catchup", "before pass", "after pass", "after mark",
    "before entering verify", "after entering verify", "before entering fence", "after entering fence", "inside fence",
    "after fence", "before entering cutover", "after entering cutover", "before adopt", "after adopt", "after cutover",
    "after dropping", "before detach", "after detach", "after drop", "after forget", "before entering done",
    "after entering done",
]  # fmt: skip
STEPS_OF_ABORT = ["before give up", "after give up", "after drop", "after forget", "before entering aborted"]
STEPS_OF_ROLLBACK = [
    "after reverse fence", "before return", "after return", "after reverse cutover", "after dropping",
    "before detach", "after detach", "after drop", "after forget", "before entering rolled_back",
]  # fmt: skip
# Those at which something that a later move has could be harmed; the others take `make test-fault`.
OFTEN = {"inside fence", "after fence", "before adopt", "after dropping", "before detach", "after detach"}


def steps_of(steps: list[str]) -> list[object]:
    """Every step a test of its own; those that rarely matter are long proofs."""
    return [step if step in OFTEN else pytest.param(step, marks=pytest.mark.long) for step in steps]


@asynccontextmanager
async def crash(dsn: str, how: str, step: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A runner that was killed or stopped at `step`; it is gone at the end of the block."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.crashing", dsn, how, step)
    try:
        if how == "kill":
            async with asyncio.timeout(60):
                assert await process.wait() == -signal.SIGKILL, step
        else:
            await eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def move_on(under: Loaded, move: PlannedMove, *, state: str = "done") -> None:
    async with running(under.catalog):
        assert await ended(under.catalog) == state
    assert await under.owner(0) == (move.target if state == "done" else move.source)


async def wake(process: asyncio.subprocess.Process, how: str) -> None:
    """Let a paused runner go on, until it has noticed that it was replaced."""
    if how == "stop":
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
