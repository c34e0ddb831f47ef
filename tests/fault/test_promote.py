"""`voltroute up --replicas`, and `shard promote` under load: nothing is lost, and no device hears of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shards.embedded.state import load_state, new_state, with_replicas
from tests.support.commands import Up, run_command, up
from tests.support.ledger import execute, stored
from tests.support.posting import Devices
from tests.support.processes import eventually, servers_in
from tests.support.servers import scratch_folder

SMALL = ("--shards", "2", "--buckets", "4", "--replicas", "1")
LIMIT_S = 90


@pytest_asyncio.fixture
async def folder() -> AsyncIterator[Path]:
    made = scratch_folder()
    yield made / "data"
    await eventually(lambda: not servers_in(made))
    import shutil  # noqa: PLC0415

    shutil.rmtree(made, ignore_errors=True)


async def until_read(running: Up, shard: str, replica: str) -> None:
    async with httpx2.AsyncClient(base_url=running.url, timeout=20) as client, asyncio.timeout(LIMIT_S):
        while True:
            items: list[dict[str, Any]] = (await client.get("/v1/shards")).json()["items"]
            found = {each["name"]: each["replicas"] for each in items}
            if any(each["name"] == replica and each["isRead"] for each in found[shard]):
                return
            await asyncio.sleep(0.1)


@pytest.mark.timeout(300)
async def test_a_replica_is_promoted_under_load_and_back(folder: Path) -> None:
    async with up(folder, *SMALL) as running, httpx2.AsyncClient(base_url=running.url, timeout=60) as client:
        await until_read(running, "shard-1", "shard-1-r1")
        devices = Devices(client)
        async with devices.posting():
            await devices.more()
            for old, new in (("shard-1", "shard-1-r1"), ("shard-1-r1", "shard-1")):
                done = await run_command("shard", "promote", "shard-1", new, "--data", str(folder), "--json")
                assert done.json == {"shard": "shard-1", "primary": new, "aside": None}
                await devices.more()
                await until_read(running, "shard-1", old)
        assert set(devices.statuses) == {200}
        state = load_state(folder)
        assert state is not None
        shards = {name: state.superuser_dsn(state.primary(name), "voltroute") for name in state.shard_names}
        assert devices.acknowledged - {(device, at) for _, device, at in await stored(shards)} == set()
    async with up(folder) as again:
        await until_read(again, "shard-1", "shard-1-r1")
        await until_read(again, "shard-2", "shard-2-r1")


@pytest.mark.timeout(300)
async def test_what_a_replica_lacks_is_given_up_by_force_alone(folder: Path) -> None:
    async with up(folder, *SMALL) as running, httpx2.AsyncClient(base_url=running.url, timeout=60) as client:
        await until_read(running, "shard-1", "shard-1-r1")
        state = load_state(folder)
        assert state is not None
        await execute(state.superuser_dsn("shard-1-r1", "postgres"), "SELECT pg_wal_replay_pause()")
        devices = Devices(client)
        async with devices.posting():
            await devices.more()
            ask = ("shard", "promote", "shard-1", "shard-1-r1", "--data", str(folder))
            done = await run_command(*ask)
            assert done.code == 3
            assert "did not get all that shard-1 wrote" in done.err
            await devices.more()
            done = await run_command("shard", "promote", "shard-1", "nobody", "--data", str(folder))
            assert done.code == 3
            assert "nobody is no replica of shard-1; it has shard-1-r1" in done.err
            done = await run_command(*ask, "--force", "--json")
            assert done.json == {"shard": "shard-1", "primary": "shard-1-r1", "aside": "shard-1"}
            await devices.more()
    assert {each.name for each in servers_of(folder)} >= {"shard-1"}  # what it has is an operator's to look at
    async with up(folder) as again, httpx2.AsyncClient(base_url=again.url, timeout=60) as client:
        devices = Devices(client)
        async with devices.posting():
            await devices.more()


def servers_of(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_dir()]


@pytest.mark.timeout(300)
async def test_two_are_promoted_at_once_and_what_was_promoted_is_found_out(folder: Path) -> None:
    """What the servers have written says who the primary is, when nobody else can: the old one is not started."""
    async with up(folder, *SMALL) as running, httpx2.AsyncClient(base_url=running.url, timeout=60) as client:
        for shard in ("shard-1", "shard-2"):
            await until_read(running, shard, f"{shard}-r1")
        asked = [("shard", "promote", shard, f"{shard}-r1", "--data", str(folder)) for shard in ("shard-1", "shard-2")]
        done = await asyncio.gather(*(run_command(*each) for each in asked))
        assert [each.code for each in done] == [0, 0], [each.err for each in done]
        for shard in ("shard-1", "shard-2"):
            await until_read(running, shard, shard)
        state = load_state(folder)
        assert state is not None
        # Whoever did this had no time to write it down.
        await execute(state.superuser_dsn("shard-1", "postgres"), "SELECT pg_promote(true, 30)")
        devices = Devices(client)
        async with devices.posting():
            await devices.more()
        running.process.kill()
        await running.process.wait()
        await eventually(lambda: not servers_in(folder))
    async with up(folder):
        state = load_state(folder)
        assert state is not None
        assert (state.primary("shard-1"), state.aside) == ("shard-1", ("shard-1-r1",))
        shards = {name: state.superuser_dsn(state.primary(name), "voltroute") for name in state.shard_names}
        assert devices.acknowledged - {(device, at) for _, device, at in await stored(shards)} == set()


def test_there_may_be_more_replicas_than_are_asked_for() -> None:
    state = with_replicas(new_state(["a"], 4), 2)
    assert with_replicas(state, 1) == state
    assert state.replicas("a") == ["a-r1", "a-r2"]
