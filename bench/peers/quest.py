"""QuestDB from Maven Central, in both of its commit modes: left to the kernel (its default), and synced."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

from bench.peers.peer import Peer, Promises, ask_json, folder_of, free_port, running
from bench.systems import System
from bench.workload import Readings

VERSION: Final = "9.1.0"
_JAR: Final = f"questdb-{VERSION}.jar"
_FETCH_S: Final = 180


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "voltroute-bench"


@cache
def _missing() -> str | None:
    """Maven keeps what it fetched once; it also checks it."""
    maven = shutil.which("mvn")
    if maven is None or shutil.which("java") is None:
        return f"{'java' if maven else 'mvn'} is not installed"
    folder = _cache()
    if not (folder / _JAR).exists():
        goal = ["dependency:copy", f"-Dartifact=org.questdb:questdb:{VERSION}", f"-DoutputDirectory={folder}"]
        try:
            done = subprocess.run([maven, "-q", *goal], check=False, capture_output=True, timeout=_FETCH_S)
        except subprocess.TimeoutExpired:
            return "Maven did not answer"
        if done.returncode:
            return f"Maven has no questdb {VERSION}"
    return None


@asynccontextmanager
async def _start(name: str, mode: str) -> AsyncIterator[System]:
    async with folder_of("questdb") as folder:
        port = free_port()
        env = {
            **os.environ,
            "QDB_HTTP_BIND_TO": f"127.0.0.1:{port}",
            "QDB_HTTP_MIN_ENABLED": "false",
            "QDB_PG_ENABLED": "false",
            "QDB_LINE_TCP_ENABLED": "false",
            "QDB_TELEMETRY_ENABLED": "false",
            "QDB_CAIRO_COMMIT_MODE": mode,
            "QDB_LOG_W_STDOUT_LEVEL": "ERROR",
        }
        command = ["java", "-p", str(_cache() / _JAR), "-m", "io.questdb/io.questdb.ServerMain", "-d", str(folder)]
        async with running(name, command, port, "/exec?query=select%201", env) as system:
            yield system


async def _count(system: System, readings: Readings) -> int:
    query = f"SELECT count() FROM vehicle WHERE id LIKE '{readings.prefix}-%'"
    found = await ask_json(system, f"/exec?query={quote(query)}")
    return int(found["dataset"][0][0])


def _peer(name: str, mode: str, durable: str) -> Peer:
    promises = Promises(durable, "both kept", "by query", "yes")
    return Peer(name, promises, _missing, partial(_start, name, mode), "/write", _count)


QUEST: Final = _peer("QuestDB", "nosync", "no: left to the kernel")
QUEST_SYNC: Final = _peer("QuestDB sync", "sync", "yes")
