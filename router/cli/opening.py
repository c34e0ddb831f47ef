"""Who a cluster is open to: its first key, and a router that would serve everybody."""

import asyncio
import os
from pathlib import Path
from typing import Final

from router.cli.show.output import errors
from router.settings import Settings
from shards.catalog import keys
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused, ShardError
from shards.operations import tenants

ASK_TIMEOUT_S: Final = 5.0


def write_first_key(catalog_dsn: str, file: Path) -> None:
    """A key that may do everything, into a new file, for a cluster that has never had one.

    The file is made first: a key that nobody can read again would close the cluster.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        errors.print(f"{file} is there already: no key is made", soft_wrap=True)
        return
    try:
        with os.fdopen(descriptor, "w") as writing:
            text = asyncio.run(_first_key(catalog_dsn))
            writing.write(text or "")
    except BaseException:
        file.unlink()
        raise
    if text is None:
        file.unlink()
        errors.print("the cluster has had keys before: none is made", soft_wrap=True)


async def _first_key(catalog_dsn: str) -> str | None:
    catalog = Catalog(catalog_dsn)
    try:
        return await tenants.first_key(catalog)
    finally:
        await catalog.close()


async def check_open(settings: Settings, catalog_dsn: str) -> None:
    """Refused when everybody could read and write: more than loopback listens, and the cluster has never had a key.

    A catalog that does not answer says nothing; the router itself asks again, and serves nobody until it knows.
    """
    if settings.is_loopback or settings.insecure:
        return
    catalog = Catalog(catalog_dsn)
    try:
        ring = await keys.ring(catalog, deadline_in(ASK_TIMEOUT_S))
    except ShardError:
        return
    finally:
        await catalog.close()
    if not ring.closed:
        raise Refused(
            f"whoever reaches {settings.host} could read and write everything: the cluster has no keys. Make one with "
            "`voltroute key create --scope ingest --scope read --scope admin`, or say --insecure"
        )
