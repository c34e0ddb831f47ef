"""One embedded PostgreSQL server: making its data directory, its command line, whether it is ready."""

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from shards.embedded.binaries import major_version
from shards.embedded.folder import LOGS, check_folder_of
from shards.errors import MachineError

PID_FILE: Final = "postmaster.pid"
_PID_LINE: Final = 0
_STATUS_LINE: Final = 7

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_locks_per_transaction": "256",
    "shared_buffers": "64MB",
    "huge_pages": "off",
    "jit": "off",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "max_slot_wal_keep_size": "1GB",
    "shared_preload_libraries": "pg_stat_statements",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_SETTINGS_18: Final = {"io_method": "sync"}
_REPLICA: Final = {"hot_standby": "on", "hot_standby_feedback": "on", "max_standby_streaming_delay": "10s"}
REPLICATION: Final = "voltroute_replication"
_THROW_AWAY: Final = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


@dataclass(frozen=True)
class Server:
    """Where a server lives and listens (127.0.0.1). `primary_port`: of the server that it follows, of a replica."""

    name: str
    directory: Path
    port: int
    binaries: Path
    primary_port: int | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """In a folder of ours, not of the servers' account: nobody can put a link in its place."""
        return self.directory.parent / LOGS / f"{self.name}.log"

    def command(self, *, durable: bool) -> list[str]:
        """Argument vector of the server. Not `durable`: for tests, data is lost if the machine fails."""
        settings = {**_SETTINGS, "port": str(self.port)}
        if int((self.data / "PG_VERSION").read_text()) >= 18:
            settings |= _SETTINGS_18
        if not durable:
            settings |= _THROW_AWAY
        if self.primary_port is not None:
            settings |= _REPLICA | {"primary_conninfo": self.conninfo, "primary_slot_name": slot_of(self.name)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    @property
    def password_file(self) -> Path:
        """Of the login with which it follows its primary."""
        return self.directory / "replication.pgpass"

    @property
    def conninfo(self) -> str:
        """How it reaches its primary; the password stays in its file."""
        login = f"host=127.0.0.1 port={self.primary_port} user={REPLICATION}"
        return f"{login} application_name={self.name} passfile='{self.password_file}'"


def slot_of(name: str) -> str:
    """The slot in which a primary keeps the WAL that a replica lacks."""
    return name.replace("-", "_")


def as_account(account: pwd.struct_passwd | None) -> dict[str, object]:
    """Keyword arguments that make subprocess run a program as `account`."""
    if account is None:
        return {"cwd": "/"}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}


def initialise(server: Server, password: str, account: pwd.struct_passwd | None) -> None:
    """Make the data directory, with superuser `postgres` and SCRAM everywhere, unless it is there already."""
    server.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder_of(server.directory, os.geteuid() if account is None else account.pw_uid)
    if (server.data / "PG_VERSION").exists():
        return
    # All of it is made in our own folder and handed over at the end: in a folder of the account's, a link could be put
    # where a file is about to be made or given away.
    partial = Path(tempfile.mkdtemp(dir=server.directory.parent, prefix=f"partial-{server.name}-"))
    secret = partial / "password"
    descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password)
    if account is not None:
        for path in (secret, partial, server.directory):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    try:
        _initdb(server, partial / "data", secret, account)
        (partial / "data").rename(server.data)
    finally:
        shutil.rmtree(partial)


def _initdb(server: Server, data: Path, secret: Path, account: pwd.struct_passwd | None) -> None:
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major_version(server.binaries) >= 17 else []
    command = [server.binaries / "initdb", "-N", "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C", *locale]
    command += ["-A", "scram-sha-256", f"--pwfile={secret}"]
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    done = subprocess.run(  # type: ignore[call-overload]
        command, capture_output=True, text=True, check=False, timeout=120, env=environment, **as_account(account)
    )
    if done.returncode:
        message = f"initdb for {server.name} failed: {done.stderr.strip() or done.stdout.strip()}"
        raise MachineError(message)


def _pid_lines(server: Server) -> list[str]:
    try:
        return (server.data / PID_FILE).read_text().splitlines()
    except (FileNotFoundError, PermissionError):
        return []


def is_ready(server: Server, pid: int) -> bool:
    """Whether the server process `pid` has written that it accepts connections."""
    lines = _pid_lines(server)
    return len(lines) > _STATUS_LINE and lines[_PID_LINE] == str(pid) and lines[_STATUS_LINE].strip() == "ready"


def running(server: Server) -> psutil.Process | None:
    """The process that really serves this data directory, whatever a stale pid file says."""
    lines = _pid_lines(server)
    if not lines or not lines[_PID_LINE].strip().isdigit():
        return None
    try:
        process = psutil.Process(int(lines[_PID_LINE]))
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if str(server.data) in command else None


def clear_stale_pid(server: Server) -> None:
    """Remove a pid file whose server is gone: its pid may belong to another program by now."""
    if _pid_lines(server) and running(server) is None:
        (server.data / PID_FILE).unlink(missing_ok=True)


def log_tail(server: Server, lines: int = 5) -> str:
    """The last lines of the server's log."""
    try:
        return "\n".join(server.log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
