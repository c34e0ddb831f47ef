"""`voltroute up`, `down` and `demo`: data survives everything, and nothing is left running."""

import asyncio
import contextlib
import os
import pty
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import psutil
import pytest
import pytest_asyncio

from shards.embedded.server import PID_FILE
from tests.support.commands import Up, run_command, up
from tests.support.processes import eventually, servers_in
from tests.support.readings import ingest, meter
from tests.support.routers import read_json, start_command
from tests.support.servers import scratch_folder

SMALL = ("--shards", "2", "--buckets", "4")


@pytest_asyncio.fixture
async def folder() -> AsyncIterator[Path]:
    made = scratch_folder()
    yield made / "data"
    await eventually(lambda: not servers_in(made))
    import shutil  # noqa: PLC0415

    shutil.rmtree(made, ignore_errors=True)


async def count(running: Up, device: str = "KEPT") -> int:
    async with httpx2.AsyncClient(base_url=running.url) as client:
        answer = await client.get(f"/v1/meters/{device}/history?from=2026-01-01T00:00:00Z&limit=1000")
        assert answer.status_code == 200, answer.text
        return len(answer.json()["items"])


async def add(running: Up, minute: int) -> None:
    async with httpx2.AsyncClient(base_url=running.url, timeout=20) as client:
        await ingest(client, meter("KEPT", minute))


async def test_data_survives_stops_and_kills_of_everything(folder: Path) -> None:
    async with up(folder, *SMALL) as first:
        await add(first, 1)
        assert [shard["name"] for shard in first.ready["shards"]] == ["shard-1", "shard-2"]
    assert first.process.returncode == 0
    assert not servers_in(folder)
    async with up(folder) as second:
        assert await count(second) == 1
        await add(second, 2)
        second.process.kill()
        await second.process.wait()
        await eventually(lambda: not servers_in(folder))
    async with up(folder) as third:
        assert await count(third) == 2
        await add(third, 3)
        (keeper,) = psutil.Process(third.process.pid).children()
        keeper.suspend()  # or it would stop its servers in good order when the first process is gone
        for process in [*keeper.children(recursive=True), keeper]:
            with contextlib.suppress(psutil.NoSuchProcess):  # those that end with the first need no second blow
                process.kill()
        third.process.kill()
        await third.process.wait()
    for server in ("catalog", "shard-1", "shard-2"):
        assert (folder / server / "data" / PID_FILE).exists()
        # As after a reboot: the pid in the file belongs to somebody else now.
        path = folder / server / "data" / PID_FILE
        path.write_text(path.read_text().replace(path.read_text().splitlines()[0], str(os.getpid()), 1))
    async with up(folder) as fourth:
        assert await count(fourth) == 3
    assert not servers_in(folder)


async def test_a_server_that_cannot_be_started_again_leaves_the_others_alone(folder: Path) -> None:
    async with up(folder, *SMALL) as running_up:
        await add(running_up, 1)
        log = folder / "logs" / "shard-1.log"
        log.chmod(0o664)  # as a tool that rotates logs may leave it
        (killed,) = [p for p in servers_in(folder) if str(folder / "shard-1" / "data") in p.cmdline()]
        killed.kill()
        await eventually(lambda: not psutil.pid_exists(killed.pid))
        async with httpx2.AsyncClient(base_url=running_up.url, timeout=20) as client:
            readings = [meter(f"D-{n}", 2) for n in range(20)]
            assert {(await client.post("/v1/ingest", json=each)).status_code for each in readings} == {200, 503}
            log.chmod(0o600)
            async with asyncio.timeout(60):
                while {(await client.post("/v1/ingest", json=each)).status_code for each in readings} != {200}:
                    await asyncio.sleep(0.1)


async def test_up_ends_when_its_servers_are_gone(folder: Path) -> None:
    process = await start_command(
        "up", "--data", str(folder), "--port", "0", "--json", *SMALL, stderr=asyncio.subprocess.PIPE
    )
    await read_json(process)
    (keeper,) = psutil.Process(process.pid).children()
    keeper.kill()
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert b"the process that keeps the servers ended" in said
    assert b"Traceback" not in said
    await eventually(lambda: not servers_in(folder))


async def test_a_second_up_and_another_size_are_refused(folder: Path) -> None:
    async with up(folder, *SMALL):
        again = await run_command("up", "--data", folder, "--port", 0)
        assert (again.code, "already running" in again.err) == (3, True)
    other = await run_command("up", "--data", folder, "--shards", 3, "--port", 0)
    assert other.code == 3
    assert "has 2 shards, not 3" in other.err
    assert (await run_command("up", "--data", folder, "--buckets", 5)).code == 2


async def test_down(folder: Path) -> None:
    async with up(folder, *SMALL) as running:
        done = await run_command("down", "--data", folder)
        assert (done.code, "stopped" in done.err) == (0, True)
        assert not servers_in(folder)
        await running.process.wait()
    again = await run_command("down", "--data", folder)
    assert (again.code, "no cluster is running" in again.err) == (0, True)


async def test_a_taken_port(folder: Path) -> None:
    async with up(folder, *SMALL) as running:
        port = running.url.rpartition(":")[2]
        insisting = await run_command("serve", "--data", folder, "--port", port)
        assert (insisting.code, "cannot listen" in insisting.err) == (1, True)


async def test_a_dead_server_is_started_again(folder: Path) -> None:
    async with up(folder, *SMALL) as running:
        await add(running, 1)
        for server in servers_in(folder / "shard-1") + servers_in(folder / "shard-2"):
            if server.name() == "postgres":
                server.kill()
        async with asyncio.timeout(60), httpx2.AsyncClient(base_url=running.url, timeout=20) as client:
            while (await client.post("/v1/ingest", json=meter("KEPT", 2))).status_code != 200:
                await asyncio.sleep(0.1)
        assert await count(running) == 2


@pytest.mark.parametrize("ending", ["ctrl-c", "kill"])
async def test_a_demo_leaves_nothing_behind(ending: str) -> None:
    before = set(Path("/tmp").glob("voltroute-demo-*"))
    terminal, inside = pty.openpty()
    process = await start_command("demo", "--devices", "20", "--rate", "50", "--port", "0", stderr=inside)
    os.close(inside)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while b"readings/s" not in (line := await process.stdout.readline()):
                assert line, "the demo ended"
        (folder,) = set(Path("/tmp").glob("voltroute-demo-*")) - before
        assert len([p for p in servers_in(folder) if p.name() == "postgres"]) >= 4
        process.send_signal(signal.SIGINT if ending == "ctrl-c" else signal.SIGKILL)
        async with asyncio.timeout(60):
            await process.wait()
        await eventually(lambda: not servers_in(folder) and not folder.exists())
        assert process.returncode == (0 if ending == "ctrl-c" else -signal.SIGKILL)
    finally:
        os.close(terminal)
