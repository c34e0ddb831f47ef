"""Replicas of embedded servers: made by a base backup, and an old primary that becomes one."""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.embedded.folder import check_folder_of
from shards.embedded.server import REPLICATION, Server, as_account, slot_of
from shards.errors import MachineError
from shards.postgres.sessions import BRIEF, open_session

SIGNAL: Final = "standby.signal"
_COPY_S: Final = 600
_STATE: Final = re.compile(r"^Database cluster state:\s+(.+)$", re.MULTILINE)
_TIMELINE: Final = re.compile(r"^Latest checkpoint's TimeLineID:\s+(\d+)$", re.MULTILINE)
_CHECKPOINT: Final = re.compile(r"^Latest checkpoint location:\s+([0-9A-F]+)/([0-9A-F]+)$", re.MULTILINE)
# One whose WAL was given up is of no use to anybody.
_DROP_LOST: Final = """
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND wal_status = 'lost'
"""
_SLOT: Final = """
SELECT pg_create_physical_replication_slot($1, true)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)
"""


@dataclass(frozen=True)
class Control:
    """What a server that does not run has written of itself. `checkpoint`: where its last one begins in the WAL."""

    state: str
    checkpoint: int
    timeline: int

    @property
    def ended_well(self) -> bool:
        """Whether a primary wrote down all that it had, and nothing after its last checkpoint."""
        return self.state == "shut down"


def control(server: Server) -> Control:
    """Read what a server has written. MachineError when it has not, or it cannot be read."""
    try:
        done = subprocess.run(
            [server.binaries / "pg_controldata", server.data],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        )
        # A promotion writes its history file first, and its checkpoint some time after it.
        begun = [int(each.stem, 16) for each in (server.data / "pg_wal").glob("????????.history")]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        message = f"pg_controldata of {server.name} failed: {error}"
        raise MachineError(message) from error
    found = [pattern.search(done.stdout) for pattern in (_STATE, _CHECKPOINT, _TIMELINE)]
    if done.returncode or not all(found):
        message = f"pg_controldata of {server.name} failed: {done.stderr.strip() or done.stdout.strip()}"
        raise MachineError(message)
    state, checkpoint, timeline = (each.groups() for each in found if each is not None)
    position = (int(checkpoint[0], 16) << 32) + int(checkpoint[1], 16)
    return Control(state[0].strip(), position, max([int(timeline[0]), *begun]))


def is_replica(server: Server) -> bool:
    """Whether a server that does not run would follow another one; PostgreSQL removes the sign when it is promoted."""
    return (server.data / SIGNAL).exists()


async def keep_wal_for(server: Server, primary: str) -> None:
    """Have a primary (its DSN, as superuser) keep what this replica has not received. ShardError when it cannot."""
    async with open_session(server.name, primary, BRIEF) as connection:
        await connection.execute(_DROP_LOST, slot_of(server.name))
        await connection.execute(_SLOT, slot_of(server.name))


def follow(server: Server, password: str, account: pwd.struct_passwd | None) -> None:
    """Make a replica of a server that runs and has a slot for it; or have an old primary, which does not run, be one.

    MachineError when that fails.
    """
    try:
        _make_copy(server, password, account)
        _become_replica(server, account)
    except (OSError, subprocess.SubprocessError) as error:
        message = f"{server.name} cannot be made a replica: {error}"
        raise MachineError(message) from error


def _make_copy(server: Server, password: str, account: pwd.struct_passwd | None) -> None:
    """A base backup, unless there is one."""
    server.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder_of(server.directory, os.geteuid() if account is None else account.pw_uid)
    partial = _login_in_partial(server, password, account)
    try:
        if not (server.data / "PG_VERSION").exists():
            _base_backup(server, partial, account)
            (partial / "data").rename(server.data)
        (partial / server.password_file.name).replace(server.password_file)
    finally:
        shutil.rmtree(partial)


def _login_in_partial(server: Server, password: str, account: pwd.struct_passwd | None) -> Path:
    """A folder beside the server's, handed over to its account, with the file of the login."""
    partial = Path(tempfile.mkdtemp(dir=server.directory.parent, prefix=f"partial-{server.name}-"))
    secret = partial / server.password_file.name
    descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"127.0.0.1:*:*:{REPLICATION}:{password}\n")
    if account is not None:
        for path in (secret, partial, server.directory):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return partial


def _base_backup(server: Server, partial: Path, account: pwd.struct_passwd | None) -> None:
    source = server.conninfo.replace(str(server.password_file), str(partial / server.password_file.name))
    command = [server.binaries / "pg_basebackup", "-D", partial / "data", "-d", source, "-c", "fast"]
    command += ["-X", "stream", "-S", slot_of(server.name), "-R"]
    done = subprocess.run(  # type: ignore[call-overload]
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=_COPY_S,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        **as_account(account),
    )
    if done.returncode:
        message = f"the base backup for {server.name} failed: {done.stderr.strip()}"
        raise MachineError(message)


def _become_replica(server: Server, account: pwd.struct_passwd | None) -> None:
    """An old primary that does not run, and has nothing that its successor lacks, follows it when it is started."""
    # From folder to folder without following links: what is in there is the account's.
    directory = os.open(server.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        data = os.open(server.data.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            signal = os.open(SIGNAL, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=data)
            if account is not None:
                os.fchown(signal, account.pw_uid, account.pw_gid)
            os.close(signal)
        finally:
            os.close(data)
    finally:
        os.close(directory)
