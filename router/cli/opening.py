"""Who a cluster is open to: its first key, and a router that would serve everybody."""

import asyncio
import os
from pathlib import Path
from typing import Final

from router.cli.show.output import errors
from router.settings import Settings
from shards.catalog import keys
from shards.catalog.database import Catalog
from shards.catalog.keys import new_text
from shards.clock import deadline_in
from shards.errors import Refused, ShardError
from shards.operations import tenants

ASK_TIMEOUT_S: Final = 5.0


def write_first_key(catalog_dsn: str, file: Path) -> None:
    """A key that may do everything, into a new file, for a cluster that has never had one.

    It is written before it becomes valid: a key that nobody can read again would close the cluster.
    """
    if asyncio.run(_closed(catalog_dsn)):
        errors.print("the cluster has had keys before: none is made", soft_wrap=True)
        return
    text = new_text()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise Refused(f"{file} is there already, and the cluster has no key: remove it, or name another file") from None
    try:
        with os.fdopen(descriptor, "w") as writing:
            writing.write(text)
            writing.flush()
            os.fsync(writing.fileno())
        asyncio.run(_make(catalog_dsn, text))
    except BaseException:
        file.unlink()
        raise


async def _closed(catalog_dsn: str) -> bool:
    catalog = Catalog(catalog_dsn)
    try:
        return await tenants.has_had_keys(catalog)
    finally:
        await catalog.close()


async def _make(catalog_dsn: str, text: str) -> None:
    catalog = Catalog(catalog_dsn)
    try:
        await tenants.first_key(catalog, text)
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
