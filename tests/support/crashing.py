"""A leader that kills or stops its own process at a step: python -m tests.support.crashing CATALOG kill|stop STEP.

Killed as power does, or paused as a hypervisor does. Woken up, it goes on where it stood, and ends when it has
noticed that another one leads. What fails on the way is printed, for the report of the test that waits for it.
"""

import asyncio
import os
import signal
import sys

from shards.catalog.database import Catalog
from shards.duties.leader import Leader
from shards.moves.phases import Move
from shards.moves.runner import Moves, Watcher
from tests.support.moving import LEASE_S


async def main(dsn: str, how: str, step: str) -> None:
    done: list[str] = []

    async def end(_move: Move, name: str) -> None:
        if name == step and not done:
            done.append(name)
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)

    def tell(move: Move, error: Exception) -> None:
        print(f"move {move.move_id} in {move.phase}: {type(error).__name__}: {error}", flush=True)

    catalog = Catalog(dsn)
    leader = Leader(catalog, f"{how} at {step}", [Moves(catalog, Watcher(step=end, failed=tell))], lease_s=LEASE_S)
    running = asyncio.create_task(leader.run())
    while not (done and not leader.leads):
        await asyncio.sleep(0.01)
    running.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
