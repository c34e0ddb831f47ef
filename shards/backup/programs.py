"""PostgreSQL's own pg_dump and pg_restore. Passwords go by the environment, which nobody else sees."""

import asyncio
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.errors import ClusterError, MachineError
from shards.postgres.dsn import environment_of, redact_text
from shards.postgres.sessions import MOVER

_PRIMARY: Final = {"PGTARGETSESSIONATTRS": "read-write"}  # of several hosts; what the DSN says goes before
LIMIT_S: Final = 24 * 3600.0  # of one database
_SYSTEM: Final = Path("/usr/lib/postgresql")
_LOCK_WAIT_S: Final = 60  # for each of pg_dump's locks, which wait for a DROP at most
# What only a superuser may make, and what every database has.
_NOT_RESTORED: Final = re.compile(r"^\d+; \d+ \d+ (EXTENSION|COMMENT - EXTENSION|COMMENT - SCHEMA public) ")


@dataclass(frozen=True)
class Programs:
    """Of one PostgreSQL."""

    folder: Path
    version: int

    async def dump(self, dsn: str, snapshot: str, into: Path, jobs: int, without: Sequence[str] = ()) -> None:
        """A database as a snapshot sees it, into a new folder; `without`: tables whose rows are left out."""
        arguments = [
            "--format=directory",
            f"--jobs={jobs}",
            f"--snapshot={snapshot}",
            "--no-owner",
            "--no-tablespaces",
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
            arguments = ["--exit-on-error", "--no-owner", "--no-tablespaces", f"--jobs={jobs}", f"--use-list={chosen}"]
            arguments += [f"--section={section}" for section in sections]
            await self._run("pg_restore", dsn, [*arguments, str(source)])
        finally:
            chosen.unlink()

    async def _run(self, program: str, dsn: str | None, arguments: Sequence[str]) -> str:
        """What it says. Ended with us, and after a day."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name in _OURS}
        named: list[str] = []
        if dsn is not None:
            environment |= _NETWORK | _PRIMARY | environment_of(dsn)  # of all of it, the name alone stands in argv
            named = [f"--dbname={environment.get('PGDATABASE', '')}"]
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
            raise ClusterError(f"{program}: {redact_text(_reason(complained.decode(errors='replace')))}")
        return said.decode()


# Where passwords, services and certificates of an operator are.
_OURS: Final = frozenset(
    {"PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"}
)
_NETWORK: Final = {"PGCONNECT_TIMEOUT": "10", "PGAPPNAME": f"{MOVER} of backups"}
_NEWER_FORM: Final = 17  # of pg_restore: it sets what older servers do not know


def _reason(said: str) -> str:
    """The lines that say what was wrong, and not all tables that somebody tried to lock."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()] or lines[-3:]
    return "; ".join(line[:300] for line in found[:3]) or "ended without a word"


def programs_for(server: int, preferred: Path | None, dumped_by: int = 0) -> Programs:
    """Those that suit a server, and a dump of these: of its own version, or the next newer ones.

    MachineError when there are none.
    """
    folders = [each for each in (preferred, *sorted(_SYSTEM.glob("*/bin"))) if each is not None]
    found = {version: each for each in folders if (version := version_of(each))}
    least = max(server, dumped_by)
    suits = sorted(each for each in found if each >= least and (server >= _NEWER_FORM or each < _NEWER_FORM))
    if not suits:
        have = ", ".join(map(str, sorted(found))) or "none"
        raise MachineError(
            f"no pg_dump and pg_restore for PostgreSQL {server} on this machine (there are: {have}): install "
            f"postgresql-client-{least}, or say in which folder they are with VOLTROUTE_PG_BIN"
        )
    return Programs(found[suits[0]], suits[0])


def version_of(folder: Path) -> int:
    """The major version of the programs in a folder; 0: they are not all there."""
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
