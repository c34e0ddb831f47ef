"""The lock of an embedded cluster's folder: one process runs it, and its keeper holds on until the servers are down."""

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Final

import psutil

from shards.embedded.folder import open_ours
from shards.errors import MachineError, Refused

LOCK_FILE: Final = "lock"
LOCK_TIMEOUT_S: Final = 45.0


def take(directory: Path) -> int:
    """Take the directory's lock and write our pid into it. Refused when a live process has it."""
    descriptor = open_ours(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if read_holder(directory) is not None or time.monotonic() > deadline:
                os.close(descriptor)
                raise _running(directory) from None
            time.sleep(0.05)  # its keeper is still stopping the servers
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _running(directory: Path) -> Refused:
    if read_holder(directory) is None:
        return Refused(f"servers of the cluster in {directory} are still being stopped: try again in a moment")
    words = (directory / LOCK_FILE).read_text().split()
    pid, url = (words[0] if words else "unknown"), (f" at {words[1]}" if len(words) > 1 else "")
    return Refused(
        f"the cluster in {directory} is already running{url} (pid {pid}): "
        f"stop it with `voltroute down --data {directory}`"
    )


def check_free(directory: Path) -> None:
    """Refused when a live process runs the cluster in `directory`, with the URL of its router."""
    if read_holder(directory) is not None:
        raise _running(directory)


def tell_url(descriptor: int, url: str) -> None:
    """Write down where the router of the one who holds the lock listens, for whoever comes second."""
    os.pwrite(descriptor, f"{os.getpid()} {url}".encode(), 0)


def read_holder(directory: Path) -> int | None:
    """Pid of the live process that runs the cluster in `directory`; None when there is none."""
    try:
        words = (directory / LOCK_FILE).read_text().split()
        pid = int(words[0]) if words else 0
    except (OSError, ValueError):
        return None
    return pid if pid and psutil.pid_exists(pid) and _is_locked(directory) else None


def _is_locked(directory: Path) -> bool:
    with (directory / LOCK_FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop_running(directory: Path, timeout_s: float = 60.0) -> bool:
    """Ask the process that runs the cluster to end; wait until it and its servers are gone. False if none runs."""
    holder = read_holder(directory)
    if holder is None and not ((directory / LOCK_FILE).exists() and _is_locked(directory)):
        return False
    if holder is not None:
        os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while _is_locked(directory) or (holder is not None and _is_alive(holder)):
        if time.monotonic() > deadline:
            message = f"the cluster in {directory} did not stop within {timeout_s:g} s"
            raise MachineError(message)
        time.sleep(0.05)
    return True
