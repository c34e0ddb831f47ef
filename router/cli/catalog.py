"""Running a command's work with the catalog that it is about."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from router.cli.target import find_catalog, load_settings
from shards.catalog.database import Catalog

Result = TypeVar("Result")


def with_catalog(data: Path | None, work: Callable[[Catalog], Awaitable[Result]]) -> Result:
    """Run `work` with the catalog that --data or the environment names."""
    dsn = find_catalog(data, load_settings())

    async def run() -> Result:
        catalog = Catalog(dsn)
        try:
            return await work(catalog)
        finally:
            await catalog.close()

    return asyncio.run(run())
