"""The keeper: a small process that starts PostgreSQL servers and ends them when its parent is gone.

It reads one JSON object from standard input and then watches it: end of file means that the parent stopped or was
killed. Servers also carry PR_SET_PDEATHSIG, so that they end when the keeper itself is killed. One thread, no asyncio.
"""

import ctypes
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from shards.embedded.folder import open_ours
from shards.embedded.server import Server, as_account, clear_stale_pid, is_ready, log_tail, running
from shards.errors import MachineError

POLL_S: Final = 0.05
STOP_TIMEOUT_S: Final = 20.0
READY_TIMEOUT_S: Final = 60.0
RETRY_PAUSE_S: Final = 5.0
RESTART_PAUSE_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


@dataclass
class _Child:
    server: Server
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = 0.0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _say(**message: object) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except OSError:  # the parent is gone; standard input says so too
        pass


class Keeper:
    """Starts, watches, restarts and stops the servers of one cluster."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._durable = bool(spec["durable"])
        self._account = pwd.getpwuid(spec["uid"]) if spec["uid"] is not None else None
        self._remove = spec["remove"]
        self._binaries = Path(spec["binaries"])
        self._children = [_Child(self._server(each)) for each in spec["servers"]]
        self._inbox = _Inbox()

    def _server(self, described: dict[str, Any]) -> Server:
        directory, follows = Path(described["directory"]), described["primary_port"]
        return Server(described["name"], directory, described["port"], self._binaries, follows)

    def run(self) -> int:
        """Until the parent is gone. Returns an exit code."""
        try:
            problem = self._start_all() or self._wait_ready()
            if problem:
                _say(event="failed", detail=problem)
                return 1
            _say(event="ready")
            self._watch()
            return 0
        finally:
            self._stop_all()
            if self._remove:
                shutil.rmtree(self._remove, ignore_errors=True)

    def _start_all(self) -> str | None:
        """None when all were started, else why one could not be."""
        try:
            for child in self._children:
                self._end_leftover(child.server)
                self._start(child)
        except (MachineError, OSError, ValueError) as error:
            return str(error)
        return None

    def _start(self, child: _Child) -> None:
        clear_stale_pid(child.server)
        linux = sys.platform == "linux"
        # Opened by us and inherited: the servers' account needs no right on the file, and could not redirect it.
        with os.fdopen(open_ours(child.server.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as log:
            child.process = subprocess.Popen(  # type: ignore[call-overload]
                child.server.command(durable=self._durable),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                preexec_fn=_die_with_parent if linux else None,  # noqa: PLW1509 - this process has one thread
                **as_account(self._account),
            )

    def _try_start(self, child: _Child) -> None:
        """Start one server; when it cannot be started, the others run on, and it is tried again."""
        try:
            self._start(child)
        except (MachineError, OSError, ValueError) as error:
            _say(event="not_started", server=child.server.name, detail=str(error))
            child.restart_at = time.monotonic() + RETRY_PAUSE_S

    def _end_leftover(self, server: Server) -> None:
        """A server that outlived its keeper still has the data directory: ask it to stop, and wait."""
        for stop_signal in (signal.SIGINT, signal.SIGQUIT):
            process = running(server)
            if process is None:
                return
            process.send_signal(stop_signal)
            _wait_until(lambda: running(server) is None, STOP_TIMEOUT_S / 2)

    def _wait_ready(self) -> str | None:
        """None when all are ready, else what is wrong."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = list(self._children)
        while waiting:
            for child in list(waiting):
                process = child.process
                if process is None or process.poll() is not None:
                    return f"{child.server.name} did not start:\n{log_tail(child.server)}"
                if is_ready(child.server, process.pid):
                    waiting.remove(child)
            if time.monotonic() > deadline:
                return (
                    f"{waiting[0].server.name} was not ready in {READY_TIMEOUT_S:g} s:\n{log_tail(waiting[0].server)}"
                )
            self._inbox.wait(POLL_S)
            if self._inbox.ended:
                return "the parent is gone"
        return None

    def _watch(self) -> None:
        while not self._inbox.ended:
            for message in self._inbox.wait(POLL_S * 4):
                self._obey(message)
            now = time.monotonic()
            for child in self._children:
                process = child.process
                if process is not None and process.poll() is not None:
                    _say(event="exited", server=child.server.name, code=process.returncode)
                    child.process, child.restart_at = None, now + RESTART_PAUSE_S
                elif process is None and now >= child.restart_at:
                    self._try_start(child)

    def _obey(self, message: dict[str, Any]) -> None:
        """A server more; or one less, whose folder goes with it unless it is only to be stopped."""
        if "add" in message:
            child = _Child(self._server(message["add"]))
            self._end_leftover(child.server)
            self._children.append(child)
            self._try_start(child)
        leaving = message.get("remove", message.get("stop"))
        for child in [child for child in self._children if child.server.name == leaving]:
            self._children.remove(child)
            _stop([child])
            if "remove" in message:
                shutil.rmtree(child.server.directory, ignore_errors=True)
        if "stop" in message:
            _say(event="stopped", server=leaving)

    def _stop_all(self) -> None:
        _stop(self._children, at_once=bool(self._remove))


def _stop(children: list[_Child], *, at_once: bool = False) -> None:
    """Fast shutdown, then immediate; a server that was stopped with SIGSTOP is woken first.

    `at_once`: immediate from the beginning, for data that nobody keeps: there is no checkpoint to wait for.
    """
    for stop_signal in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)[at_once:]:
        alive = [c.process for c in children if c.process is not None and c.process.poll() is None]
        for process in alive:
            process.send_signal(stop_signal)
            process.send_signal(signal.SIGCONT)
        if alive:
            _wait_until(partial(_all_ended, alive), STOP_TIMEOUT_S)


def _all_ended(processes: list[subprocess.Popen[bytes]]) -> bool:
    return all(process.poll() is not None for process in processes)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_S)


class _Inbox:
    """Lines of JSON from standard input; its end means that the parent is gone."""

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""

    def wait(self, timeout_s: float) -> list[dict[str, Any]]:
        """The messages that came, after at most `timeout_s`."""
        readable, _, _ = select.select([sys.stdin], [], [], timeout_s)
        if readable:
            piece = os.read(sys.stdin.fileno(), 4096)
            self.ended = not piece
            *lines, self._rest = (self._rest + piece).split(b"\n")
            return [json.loads(line) for line in lines]
        return []


def main() -> int:
    """Entry point of `python -m shards.embedded.keeper`."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # only the parent ends us: by closing the pipe
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            return 1
        line += byte
    return Keeper(json.loads(line)).run()


if __name__ == "__main__":
    sys.exit(main())
