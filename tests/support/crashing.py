"""A runner that kills its own process at a step, as power does: python -m tests.support.crashing CATALOG STEP."""

import asyncio
import os
import signal
import sys

from shards.catalog.database import Catalog
from shards.duties.leader import Leader
from shards.moves.phases import Move
from shards.moves.runner import Moves, Watcher
from tests.support.moving import LEASE_S


async def main(dsn: str, step: str) -> None:
    async def kill(_move: Move, name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    catalog = Catalog(dsn)
    await Leader(catalog, f"crashes at {step}", [Moves(catalog, Watcher(step=kill))], lease_s=LEASE_S).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
