"""What a router knew last, in a private file: it starts from there while the catalog is away.

The file holds the shards' passwords and the digests of keys. It is a hint, as the map in a router's memory is: the
shards' own word is asked before it is believed, and they refuse what is not theirs afterwards.
"""

import asyncio
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from shards.catalog.keys import Keyring
from shards.catalog.shard_map import ShardMap
from shards.errors import MachineError, Refused, ShardError
from shards.kinds import Kind
from shards.postgres.dsn import addresses
from shards.shard import ShardRecord

FORMAT: Final = 1
OWNED: Final = "SELECT coalesce(array_agg(bucket ORDER BY bucket), '{}') FROM owned_bucket"


@dataclass(frozen=True)
class Known:
    """A cluster as a router saw it. `system`, `timeline`: of the catalog's primary."""

    cluster_id: str
    shard_map: ShardMap
    shards: tuple[ShardRecord, ...]
    keyring: Keyring
    kinds: tuple[Kind, ...]
    kinds_epoch: int
    system: int | None = None
    timeline: int = 0
    format: int = FORMAT


def save(path: Path, known: Known) -> None:
    """Write it so that a crash leaves the old one or the new one, readable by its owner alone. OSError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(known))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Known | None:
    """What was saved; None when nothing was. MachineError when others could have written or read it, or it is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise MachineError(message) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            message = f"{path} is not a file of this account alone (mode 0600)"
            raise MachineError(message)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = file.read()
    finally:
        os.close(descriptor)
    try:
        known = msgspec.json.decode(content, type=Known)
        for record in known.shards:
            addresses(record.owner_dsn)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors too
        message = f"{path} holds no cluster: {error}"
        raise MachineError(message) from None
    if known.format != FORMAT:
        message = f"{path} was written by another release"
        raise MachineError(message)
    return known


def check(known: Known, owned: Mapping[str, frozenset[int] | ShardError]) -> None:
    """Refused unless each shard that answered owns what the map gives it, and at least one answered.

    A bucket that two shards own is on its way: then either may be right, and the shards refuse what is not theirs.
    """
    answered = {name: buckets for name, buckets in owned.items() if not isinstance(buckets, ShardError)}
    if not answered:
        reasons = "; ".join(f"{name}: {error.detail}" for name, error in owned.items() if isinstance(error, ShardError))
        raise Refused(f"no shard confirms it: {reasons or 'it names none'}")
    for name, buckets in answered.items():
        missing = set(known.shard_map.by_shard.get(name, ())) - buckets
        if missing:
            raise Refused(f"it is older than {name} says: bucket {min(missing)} is not there any more")


class Cache:
    """The file of one router. `path`: None: nothing is remembered."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._saved: Known | None = None

    async def load(self) -> Known | None:
        """See above."""
        return None if self._path is None else await asyncio.to_thread(load, self._path)

    async def keep(self, known: Known) -> None:
        """Save it when it is another than was saved last. OSError."""
        if self._path is not None and not _is_same(known, self._saved):
            await asyncio.to_thread(save, self._path, known)
            self._saved = known


def _is_same(one: Known, other: Known | None) -> bool:
    """By the objects that were read, of which there may be many: they are read anew when their epoch moves."""
    if other is None or one.shard_map is not other.shard_map or one.keyring is not other.keyring:
        return False
    own, others = ((each.shards, each.kinds, each.kinds_epoch, each.system, each.timeline) for each in (one, other))
    return own == others
