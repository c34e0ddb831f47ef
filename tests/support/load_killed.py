"""A load that ends at a place: python -m tests.support.load_killed CATALOG FILE SPOOL PLACE TIMES."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from shards.kinds import VEHICLE
from tests.support.loading import load_files
from tests.support.servers import TestCluster


async def main(dsn: str, file: str, spool: str, place: str, times: str) -> None:
    seen = 0

    async def end(at: str) -> None:
        nonlocal seen
        seen += at == place
        if seen == int(times):
            os.kill(os.getpid(), signal.SIGKILL)

    await load_files(TestCluster(dsn, {}, 8), VEHICLE, [Path(file)], Path(spool), watch=end)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
