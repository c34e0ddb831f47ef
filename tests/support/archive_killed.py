"""Archiving or restoring that ends at a place: python -m tests.support.archive_killed CATALOG PLACE leave|restore."""

import asyncio
import os
import signal
import sys

from tests.support.archiving import catalog_at, leave_from, restore_from


async def main(dsn: str, place: str, how: str) -> None:
    async def end(at: str) -> None:
        if at == place:
            os.kill(os.getpid(), signal.SIGKILL)

    async with catalog_at(dsn) as catalog:
        if how == "leave":
            await leave_from(catalog, end)
        else:
            await restore_from(catalog, end)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
