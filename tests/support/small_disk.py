"""A disk that can be full: a small file system of its own, on which a shard's database lies."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ledger import execute, fetch
from tests.support.servers import TestCluster, database_dsn, drop_database, scratch_folder

SIZE = "192m"
_CHUNK = b"\1" * 2**20

#: What PostgreSQL's cache of relations has room in, a few times over. Less than half a MiB is told as 0 MiB.
ROOM_FOR_SESSIONS = 400 * 2**10


@dataclass(frozen=True)
class SmallDisk:
    """What else lies on the disk beside the database is one file, `filler`."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self, spare: int = 0) -> None:
        """No more than `spare` bytes are free after this.

        With none, an autovacuum of PostgreSQL's own catalogs is enough that nobody is let in any more: it takes away
        the cache of relations, and a new session has to write it again.
        """
        with self._filler.open("ab", buffering=0) as file:
            for size in (len(_CHUNK), 4096, 1):
                try:
                    while file.write(_CHUNK[:size]) == size:
                        pass
                except OSError as error:
                    assert error.errno == 28, error  # ENOSPC
            file.truncate(self._filler.stat().st_size - spare)

    def let_nobody_in(self) -> None:
        """As after any change of its catalogs: PostgreSQL has to write its cache of relations to begin a session."""
        while caches := list(self.folder.glob("space/*/*/pg_internal.init")):
            for cache in caches:
                cache.unlink()
            self.fill()

    def make_room(self) -> None:
        self._filler.unlink()


@contextmanager
def _mounted() -> Iterator[Path]:
    folder = scratch_folder()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=711", "voltroute-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        folder.rmdir()
        pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@asynccontextmanager
async def on_small_disk(cluster: TestCluster, shard: str) -> AsyncIterator[SmallDisk]:
    """Put a shard's whole database on a disk of its own, until the end of the block, where it goes with its disk."""
    dsn = cluster.shards[shard]
    admin, name = database_dsn(dsn, "postgres"), dsn.rpartition("/")[2]
    data = Path((await fetch(admin, "SHOW data_directory"))[0][0])
    if not data.is_dir():
        pytest.skip("the servers are not on this machine")
    with _mounted() as folder:
        place = folder / "space"
        place.mkdir(mode=0o700)
        os.chown(place, data.stat().st_uid, data.stat().st_gid)
        space = f"small_{name}"
        await execute(admin, f"CREATE TABLESPACE {space} LOCATION '{place}'")
        await execute(admin, f"ALTER DATABASE {name} SET TABLESPACE {space}")
        try:
            yield SmallDisk(folder)
        finally:
            await drop_database(admin, name)
            await execute(admin, f"DROP TABLESPACE {space}")
