"""PostgreSQL's own pg_dump and pg_restore. Passwords go by the environment, which nobody else sees."""

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.errors import ClusterError, MachineError
from shards.postgres.dsn import redact_text, without_password

LIMIT_S: Final = 24 * 3600.0  # of one database
_SYSTEM: Final = Path("/usr/lib/postgresql")
_LOCK_WAIT_S: Final = 60  # for each of pg_dump's locks, which wait for a DROP at most
# What only a superuser may make, and what every database has.
_NOT_RESTORED: Final = re.compile(r"^\d+; \d+ \d+ (EXTENSION|COMMENT - EXTENSION|COMMENT - SCHEMA public) ")


@dataclass(frozen=True)
class Programs:
    """Of one PostgreSQL."""

    folder: Path

    async def dump(self, dsn: str, snapshot: str, into: Path, jobs: int, without: Sequence[str] = ()) -> None:
        """A database as a snapshot sees it, into a new folder; `without`: tables whose rows are left out."""
        arguments = [
            "--format=directory",
            f"--jobs={jobs}",
            f"--snapshot={snapshot}",
            "--no-owner",
            "--compress=gzip:1",
        ]
        arguments += [f"--lock-wait-timeout={_LOCK_WAIT_S * 1000}", f"--file={into}"]
        arguments += [f"--exclude-table-data={table}" for table in without]
        await self._run("pg_dump", dsn, arguments)

    async def restore(self, dsn: str, source: Path, jobs: int, sections: Sequence[str] = ()) -> None:
        """A dump into a database without tables. ClusterError at the first statement that fails."""
        contents = await self._run("pg_restore", None, ["--list", str(source)])
        chosen = source.with_name(f"{source.name}.list")
        kept = [line for line in contents.splitlines() if not _NOT_RESTORED.match(line)]
        chosen.write_text("\n".join(kept) + "\n")
        try:
            arguments = ["--exit-on-error", "--no-owner", f"--jobs={jobs}", f"--use-list={chosen}"]
            arguments += [f"--section={section}" for section in sections]
            await self._run("pg_restore", dsn, [*arguments, str(source)])
        finally:
            chosen.unlink()

    async def _run(self, program: str, dsn: str | None, arguments: Sequence[str]) -> str:
        """What it says. Ended with us, and after a day."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name in _OURS}
        named = []
        if dsn is not None:
            plain, password = without_password(dsn)
            named = [f"--dbname={plain}"]
            environment |= _NETWORK | ({} if password is None else {"PGPASSWORD": password})
        process = await asyncio.create_subprocess_exec(
            self.folder / program,
            *named,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                said, complained = await process.communicate()
        except BaseException:
            if process.returncode is None:
                process.terminate()
                await process.wait()
            raise
        if process.returncode:
            last = " ".join(complained.decode(errors="replace").split()[-60:])
            raise ClusterError(f"{program}: {redact_text(last)}")
        return said.decode()


# Where passwords and services of an operator are.
_OURS: Final = frozenset({"PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"})
_NETWORK: Final = {"PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "voltroute backup"}


def programs_for(major: int, preferred: Path | None) -> Programs:
    """Those of a server's own version, or the next newer ones. MachineError when there are none."""
    folders = [each for each in (preferred, *sorted(_SYSTEM.glob("*/bin"))) if each is not None]
    found = {version: each for each in folders if (version := version_of(each))}
    newer = sorted(version for version in found if version >= major)
    if not newer:
        raise MachineError(
            f"no pg_dump of PostgreSQL {major} or newer on this machine: install postgresql-client-{major}, or say in "
            "which folder it is with VOLTROUTE_PG_BIN"
        )
    return Programs(found[newer[0]])


def version_of(folder: Path) -> int:
    """The major version of the programs in a folder; 0: they are not all there."""
    import subprocess  # noqa: PLC0415 - of what runs before there is a loop to wait in

    if not (folder / "pg_restore").exists():
        return 0
    try:
        said = subprocess.run(
            [folder / "pg_dump", "--version"], capture_output=True, text=True, check=False, timeout=10
        )
    except OSError:
        return 0
    number = re.search(r"\d+", said.stdout)
    return int(number[0]) if number else 0
