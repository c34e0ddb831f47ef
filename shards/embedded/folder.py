"""The folder of an embedded cluster: ours alone, or not used. As root this is what keeps other accounts out."""

import os
import pwd
import stat
from pathlib import Path
from typing import Final

from shards.embedded.binaries import enterable, server_account
from shards.errors import MachineError

LOGS: Final = "logs"
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def prepare(directory: Path) -> Path:
    """Make the folder, such that the servers' account can enter it. MachineError when it is not ours, or shut to it."""
    directory = directory.absolute()
    account = server_account()
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        check_ours(directory)
        logs = directory / LOGS
        logs.mkdir(mode=0o700, exist_ok=True)
        check_ours(logs)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise MachineError(f"{directory} cannot be written to: choose another --data")
    except FileExistsError:
        raise MachineError(f"{directory} is not a folder: choose another --data") from None
    except OSError as error:
        raise MachineError(f"{error.filename or directory}: {error.strerror}: choose another --data") from None
    if account is not None and not enterable(directory, account):
        raise MachineError(
            f"PostgreSQL does not run as root but as {account.pw_name!r}, and that account cannot enter {directory}: "
            "choose another --data, for example under /var/lib or /tmp"
        )
    return directory


def check_ours(path: Path) -> None:
    """MachineError unless it is a real folder or file of this user, and nobody else can write to it."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise MachineError(f"{path} is a symbolic link: choose another --data")
    if found.st_uid != os.geteuid():
        raise MachineError(
            f"{path} belongs to {_name(found.st_uid)}, not to {_name(os.geteuid())}: choose another --data"
        )
    if found.st_mode & _OTHERS_WRITE:
        raise MachineError(
            f"{path} can be written to by others (mode {stat.S_IMODE(found.st_mode):o}): chmod go-w {path}"
        )


def check_folder_of(path: Path, uid: int) -> None:
    """MachineError unless it is a real folder of ours, or of the account that the servers run as."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise MachineError(f"{path} is not a real folder: choose another --data")
    if found.st_uid not in {os.geteuid(), uid}:
        raise MachineError(f"{path} belongs to {_name(found.st_uid)}, not to {_name(uid)}: choose another --data")


def open_ours(path: Path, flags: int) -> int:
    """Open a file of the folder without following links, made with mode 0600; MachineError when it is not ours."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
        os.close(descriptor)
        raise MachineError(f"{path} is not a file that {_name(os.geteuid())} alone can write to")
    return descriptor


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
