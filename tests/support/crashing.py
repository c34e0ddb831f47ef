"""A runner that kills its own process at a step, as power does: python -m tests.support.crashing CATALOG STEP."""

import asyncio
import os
import signal
import sys

from shards.catalog import Catalog
from shards.moves import Move
from shards.runner import Runner, Watcher


async def main(dsn: str, step: str) -> None:
    async def kill(_move: Move, name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    await Runner(Catalog(dsn), f"crashes at {step}", Watcher(step=kill)).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
