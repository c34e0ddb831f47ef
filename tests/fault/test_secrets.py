"""Keys and passwords: not in logs, errors, metrics, settings or process lists, and in no file that others can read."""

import asyncio
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx2
import psutil

from shards.embedded.state import DATABASE, State, load_state
from tests.support.commands import run_command
from tests.support.ledger import execute, fetch
from tests.support.readings import meter
from tests.support.routers import read_json, start_command
from tests.support.servers import scratch_folder

PATHS = ("/metrics", "/v1/meters", "/v1/shards", "/v1/shards/shard-1/statements", "/readyz")


def command_lines(root: int) -> str:
    """The arguments of a process and of all below it, as everybody on the machine sees them."""
    process = psutil.Process(root)
    return "\n".join(" ".join(each.cmdline()) for each in [process, *process.children(recursive=True)])


def open_files(folder: Path) -> list[Path]:
    """Files that somebody else than their owner may read, in folders that somebody else may enter."""
    return [
        file
        for file in folder.rglob("*")
        if file.is_file() and file.stat().st_mode & 0o044 and all(p.stat().st_mode & 0o011 for p in file.parents)
    ]


async def requests(url: str, key: str) -> list[str]:
    """Answers to a good key and to two wrong ones."""
    seen = []
    async with httpx2.AsyncClient(base_url=url) as client:
        for given in (key, key + "x", key[:-1] + "-"):
            headers = {"Authorization": f"Bearer {given}"}
            answers = [await client.get(path, headers=headers) for path in PATHS]
            answers.append(await client.post("/v1/ingest", json=meter("M"), headers=headers))
            seen += [answer.text for answer in answers]
    return seen


async def failures(url: str, key: str, state: State, writer_dsns: list[str]) -> list[str]:
    """Answers and metrics while databases fail: the words of drivers and servers are in them, and in the log."""
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
    for number, dsn in enumerate(writer_dsns, 1):
        login, superuser = urlsplit(dsn).username, state.superuser_dsn(f"shard-{number}", DATABASE)
        await execute(superuser, f'ALTER ROLE "{login}" NOLOGIN')
        await fetch(superuser, end, login)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
        answer = await client.post("/v1/ingest", json=meter("M", 1))
        assert answer.status_code == 503
        return [answer.text, (await client.get("/metrics")).text]


async def test_secrets_stay_where_they_belong(tmp_path: Path) -> None:
    data, log = scratch_folder() / "cluster", tmp_path / "log"
    with log.open("wb") as writing:
        environment = {"VOLTROUTE_POOL_MIN": "1", "VOLTROUTE_LOG_LEVEL": "debug", "VOLTROUTE_LOG_FORMAT": "json"}
        words = ("up", "--data", str(data), "--shards", "2", "--buckets", "8", "--port", "0", "--json")
        process = await start_command(*words, env=environment, stderr=writing)
    seen: list[str] = []
    try:
        ready = await read_json(process)
        made = (
            await run_command("key", "create", "--scope", "ingest", "--scope", "admin", "--data", data, "--json")
        ).json
        rows = await fetch(ready["catalog_dsn"], "SELECT owner_dsn, writer_dsn, query_dsn, monitor_dsn FROM shard")
        secrets = {unquote(urlsplit(dsn).password or "") for row in rows for dsn in row} | {made["key"][12:]}
        state = load_state(data)
        assert state is not None
        secrets |= {state.superuser_password, state.owner_password}
        assert len(secrets) >= 5
        env = {"VOLTROUTE_KEY": made["key"], "VOLTROUTE_CATALOG_DSN": ready["catalog_dsn"]}
        seen += await requests(ready["url"], made["key"])
        seen.append(command_lines(process.pid))
        simulating = await start_command("simulate", "--url", ready["url"], "--seconds", "2", env=env)
        seen.append(command_lines(simulating.pid))
        await simulating.wait()
        seen += await failures(ready["url"], made["key"], state, [row["writer_dsn"] for row in rows])
        for told in (("doctor",), ("status",), ("config", "show"), ("key", "list"), ("shard", "list", "--json")):
            done = await run_command(*told, env=env)
            seen += [done.out, done.err]
    finally:
        process.terminate()
        async with asyncio.timeout(60):
            await process.wait()
    seen.append(log.read_text())
    assert "shard_unavailable" in seen[-1]
    found = [(text.find(secret), text[:200]) for text in seen for secret in secrets if secret in text]
    assert found == []
    exposed = [file for file in open_files(data) if any(secret.encode() in file.read_bytes() for secret in secrets)]
    assert exposed == []
    shutil.rmtree(data.parent)
