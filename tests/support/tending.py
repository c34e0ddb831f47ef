"""A lifecycle that kills or stops its own process at a place: python -m tests.support.tending CATALOG PLACE TIMES.

Late readings are merged at once.
"""

import asyncio
import os
import signal
import sys
from datetime import timedelta

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.policy import Policies
from shards.tiers import due
from shards.tiers.runner import Tender
from tests.support.tiering import HOT


async def main(dsn: str, place: str, times: str) -> None:
    left = int(times)

    async def end(at: str) -> None:
        nonlocal left
        left -= at == place
        if left == 0 and at == place:
            os.kill(os.getpid(), signal.SIGKILL)

    due.MERGE_AFTER = timedelta(0)  # type: ignore[misc]
    catalog = Catalog(dsn)
    records = await catalog.shards(deadline_in(10))
    await asyncio.gather(*(Tender(record, Policies(HOT), watch=end).run() for record in records))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
