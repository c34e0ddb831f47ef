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
_CHECKPOINT: Final = re.compile(r"^Latest checkpoint location:\s+([0-9A-F]+)/([0-9A-F]+)$", re.MULTILINE)
_SLOT: Final = """
SELECT pg_create_physical_replication_slot($1, true)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)
"""


@dataclass(frozen=True)
class Control:
    """What a server that does not run has written of itself. `checkpoint`: where its last one begins in the WAL."""

    state: str
    checkpoint: int

    @property
    def was_primary(self) -> bool:
        return self.state in {"in production", "shut down", "shutting down", "in crash recovery"}

    @property
    def ended_well(self) -> bool:
        """Whether a primary wrote down all that it had, and nothing after its last checkpoint."""
        return self.state == "shut down"


def control(server: Server) -> Control:
    """Read the control file. MachineError when there is none that can be read."""
    done = subprocess.run(
        [server.binaries / "pg_controldata", server.data],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
    )
    state, checkpoint = _STATE.search(done.stdout), _CHECKPOINT.search(done.stdout)
    if done.returncode or state is None or checkpoint is None:
        message = f"pg_controldata of {server.name} failed: {done.stderr.strip() or done.stdout.strip()}"
        raise MachineError(message)
    return Control(state[1].strip(), (int(checkpoint[1], 16) << 32) + int(checkpoint[2], 16))


async def keep_wal_for(server: Server, primary: str) -> None:
    """Have a primary (its DSN, as superuser) keep what this replica has not received. ShardError when it cannot."""
    async with open_session(server.name, primary, BRIEF) as connection:
        await connection.execute(_SLOT, slot_of(server.name))


def make_copy(server: Server, password: str, account: pwd.struct_passwd | None) -> None:
    """A base backup of its primary, which has a slot for it; unless it is there already. MachineError if it fails."""
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


def become_replica(server: Server, account: pwd.struct_passwd | None) -> None:
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
