"""The commands of ops: shards added, weighed, drained and removed; rebalances planned, started, steered and watched."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest_asyncio

from shards.catalog.database import Catalog
from shards.moves.phases import Phase
from tests.support.commands import Finished, no_settings, run_command
from tests.support.ledger import execute
from tests.support.moving import reached
from tests.support.readings import ingest, meter
from tests.support.routers import in_process, start_command
from tests.support.servers import TestCluster, drop_database, new_cluster, new_database


class Ops:
    """Somebody at a shell whose environment names the catalog."""

    def __init__(self, cluster: TestCluster, spare: str) -> None:
        self.cluster = cluster
        self.spare = spare  # DSN of an empty database
        self.env = {**no_settings(), "VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}

    async def run(self, *arguments: object, code: int = 0) -> Finished:
        done = await run_command(*arguments, env=self.env)
        assert done.code == code, (arguments, done.out, done.err)
        return done

    async def json(self, *arguments: object) -> Any:
        return (await self.run(*arguments, "--json")).json

    @asynccontextmanager
    async def runner(self) -> AsyncIterator[None]:
        """`voltroute runner` for as long as the block lasts."""
        process = await start_command("runner", env=self.env)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(30):
                assert await process.wait() == 0


@pytest_asyncio.fixture
async def ops(servers: list[str]) -> AsyncIterator[Ops]:
    async with new_cluster(servers, shards=3, buckets=16) as cluster:
        spare = await new_database(servers[-1], "spare_shard")
        async with in_process(cluster, runner=False) as client:
            await ingest(client, [meter(f"D-{n}", minute) for n in range(200) for minute in range(3)])
        yield Ops(cluster, spare)
        await drop_database(servers[-1], "spare_shard")


async def test_a_shard_is_added_filled_drained_and_removed(ops: Ops, tmp_path: Path) -> None:
    assert (await ops.json("rebalance", "plan"))["moves"] == []
    assert "nothing to move: imbalance" in (await ops.run("rebalance", "plan")).out
    added = await ops.run("shard", "add", "s4", "--dsn", ops.spare)
    assert "[OK]  empty: owns nothing" in added.out
    assert "voltroute rebalance plan" in added.out
    plan = tmp_path / "plan.json"
    shown = (await ops.run("rebalance", "plan", "--out", plan)).out
    assert "4 moves, " in shown
    assert f"voltroute rebalance start {plan} --watch" in shown
    assert (await ops.json("rebalance", "plan"))["shards"][3]["after"]["buckets"] == 4
    assert "no rebalance was ever started" in (await ops.run("rebalance", "status")).out
    await ops.run("rebalance", "start", plan, "--keep", 0)
    assert (await ops.json("rebalance", "status"))["idle"].startswith("no runner is alive")
    again = await ops.run("rebalance", "start", plan, code=3)
    assert "a rebalance is open already" in again.err
    async with ops.runner():
        watched = await ops.run("rebalance", "watch")
        assert "done: 4 moves handed over in" in watched.out
        assert "0 acknowledged readings missing (verified:" in " ".join(watched.out.split())
        assert watched.err.count("s1 -> s4") >= 1
        await ops.run("check")
        stale = await ops.run("rebalance", "start", plan, code=3)
        assert "does not fit the shard map" in stale.err
        assert "owns 4 buckets" in (await ops.run("shard", "remove", "s4", code=3)).err
        drained = await ops.run("shard", "drain", "s4", "--watch", "--keep", "0")
        assert "done: 4 moves" in drained.out
        assert "voltroute shard remove s4" in drained.out
    await ops.run("shard", "remove", "s4")
    assert [shard["name"] for shard in await ops.json("shard", "list")] == ["s1", "s2", "s3"]
    assert all(rule["ok"] for rule in await ops.json("check"))


async def test_what_cannot_become_a_shard_says_why(ops: Ops) -> None:
    assert "use 1-31 of a-z" in (await ops.run("shard", "add", "Bad Name", "--dsn", ops.spare, code=2)).err
    assert "s1 is a shard already" in (await ops.run("shard", "add", "s1", "--dsn", ops.spare, code=3)).err
    taken = await ops.run("shard", "add", "s9", "--dsn", ops.cluster.shards["s2"], code=3)
    assert "that database is shard s2 of this cluster already" in taken.err
    assert "--dsn" in (await ops.run("shard", "add", "s9", code=1)).err
    away = ops.spare.rpartition("@")[0] + "@127.0.0.1:1/nowhere"
    refused = await ops.run("shard", "add", "s9", "--dsn", away, code=1)
    assert "Connect call failed" in refused.err
    assert ops.spare.split(":")[2].split("@")[0] not in refused.err
    await execute(ops.spare, "CREATE TABLE owned_bucket (bucket int)")
    await execute(ops.spare, "CREATE TABLE bucket_move (bucket int)")
    await execute(ops.spare, "INSERT INTO owned_bucket VALUES (1)")
    full = await ops.run("shard", "add", "s9", "--dsn", ops.spare, code=3)
    assert "s9 cannot become a shard: empty: 1 buckets or moves" in full.err


async def test_a_rebalance_is_steered(ops: Ops) -> None:
    for command in ("pause", "resume", "cancel"):
        assert "no rebalance is open" in (await ops.run("rebalance", command, code=3)).err
    assert "nothing to roll back to" in (await ops.run("rebalance", "rollback", code=3)).err
    await ops.run("shard", "weight", "s1", "2")
    assert "there is no shard s7" in (await ops.run("shard", "weight", "s7", "2", code=3)).err
    assert "there is no shard s7" in (await ops.run("rebalance", "plan", "--weight", "s7=1", code=2)).err
    assert "NAME=NUMBER" in (await ops.run("rebalance", "plan", "--weight", "s1=much", code=2)).err
    assert "bytes or rate" in (await ops.run("rebalance", "plan", "--by", "colour", code=2)).err
    plan = await ops.json("rebalance", "plan")
    assert {move["target"] for move in plan["moves"]} == {"s1"}
    await ops.run("rebalance", "start", "--keep", "3600")
    await ops.run("rebalance", "pause")
    async with ops.runner():
        async with asyncio.timeout(30):
            while (await ops.json("rebalance", "status"))[
                "idle"
            ] != "paused: continue with `voltroute rebalance resume`":
                await asyncio.sleep(0.1)
        await ops.run("rebalance", "resume")
        async with asyncio.timeout(60):
            while "kept for a rollback" not in str((await ops.json("rebalance", "status"))["idle"]):
                await asyncio.sleep(0.1)
        assert "the new owner has everything" in (await ops.run("rebalance", "verify")).out
        assert (await ops.json("rebalance", "verify"))[0]["ok"] is True
        await ops.run("rebalance", "rollback")
        await execute(ops.cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        done = await ops.run("rebalance", "watch", code=1)
        assert "moves not done" in done.out
        await ops.run("check")
        assert (await ops.json("rebalance", "plan"))["moves"] == plan["moves"]
        assert "no old copy is kept" in (await ops.run("rebalance", "verify")).out


async def test_cancel_before_anything_ran(ops: Ops) -> None:
    await ops.run("shard", "weight", "s1", "3")
    await ops.run("rebalance", "start")
    assert "moves are being ended" in (await ops.run("rebalance", "cancel")).out
    async with ops.runner():
        await ops.run("rebalance", "watch", code=1)
    moves = (await ops.json("rebalance", "status"))["moves"]
    assert {move["phase"] for move in moves} == {"aborted"}
    await ops.run("check")


async def test_ctrl_c_only_stops_watching(ops: Ops) -> None:
    await ops.run("shard", "weight", "s1", "3")
    await ops.run("rebalance", "start")
    watching = await start_command("rebalance", "watch", env=ops.env, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        assert b"planned" in await watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        _, shown = await watching.communicate()
    assert watching.returncode == 0
    assert b"the moves go on" in shown
    assert (await ops.json("rebalance", "status"))["rebalance"]["state"] == "running"


async def test_draining(ops: Ops) -> None:
    await ops.run("shard", "drain", "s1")
    assert {move["source"] for move in (await ops.json("rebalance", "status"))["moves"]} == {"s1"}
    assert "a rebalance is open" in (await ops.run("shard", "drain", "s2", code=3)).err
    await ops.run("rebalance", "cancel")
    assert [shard["state"] for shard in await ops.json("shard", "list")] == ["draining", "active", "active"]
    async with ops.runner():
        await ops.run("rebalance", "watch", code=1)
        await ops.run("shard", "drain", "s2", "--keep", "0")
        await ops.run("rebalance", "cancel")
        await ops.run("rebalance", "watch", code=1)
    refused = await ops.run("shard", "drain", "s3", code=3)
    assert "every shard is draining" in refused.err
    assert [shard["state"] for shard in await ops.json("shard", "list")] == ["draining", "draining", "active"]
    for name in ("s1", "s2"):
        await ops.run("shard", "drain", name, "--undo")
    assert "there is no shard s9" in (await ops.run("shard", "drain", "s9", code=3)).err
    assert [shard["state"] for shard in await ops.json("shard", "list")] == ["active"] * 3


async def test_a_drain_that_cannot_be_planned_changes_nothing(ops: Ops) -> None:
    away = "UPDATE shard SET owner_dsn = 'postgresql://nobody@127.0.0.1:1/gone' WHERE name = 's3'"
    await execute(ops.cluster.catalog_dsn, away)
    assert "s3" in (await ops.run("shard", "drain", "s2", code=1)).err
    assert [shard["state"] for shard in await ops.json("shard", "list")] == ["active"] * 3


async def test_what_cannot_be_moved_is_said_at_once(ops: Ops) -> None:
    await ops.run("shard", "weight", "s1", "3")
    by_hand = "CREATE TABLE by_hand PARTITION OF meter_telemetry_history DEFAULT"
    await execute(ops.cluster.shards["s1"], by_hand)
    for arguments in (("rebalance", "start"), ("shard", "drain", "s2")):
        refused = await ops.run(*arguments, code=3)
        assert "nothing was started" in refused.err
        assert "by_hand is attached to meter_telemetry_history DEFAULT" in refused.err
    assert (await ops.json("rebalance", "status"))["rebalance"] is None
    assert [shard["state"] for shard in await ops.json("shard", "list")] == ["active"] * 3


async def test_a_kept_copy_is_no_fault_and_what_failed_is_not_for_everybody(ops: Ops) -> None:
    await ops.run("shard", "weight", "s1", "3")
    await ops.run("rebalance", "start", "--keep", "3600")
    catalog = Catalog(ops.cluster.catalog_dsn)
    async with ops.runner():
        await reached(catalog, Phase.CLEANUP)
    await catalog.close()
    found = {each["name"]: each for each in (await ops.run("doctor", "--json", code=1)).json}
    wrong = {name for name, each in found.items() if not each["ok"]}
    assert wrong == {f"{name} durability" for name in ops.cluster.shards}  # the tests' servers throw data away
    assert "in moves" in found["s1 buckets"]["found"]
    secret = "s2: Connect call failed ('10.0.3.7', 5432)"
    await execute(ops.cluster.catalog_dsn, "UPDATE move SET last_error = $1, held = $1", secret)
    async with in_process(ops.cluster, runner=False) as client:
        text = (await client.get("/v1/rebalance")).text
    assert "10.0.3.7" not in text
    assert "see `voltroute rebalance status`" in text
    assert secret in (await ops.json("rebalance", "status"))["moves"][0]["lastError"]


async def test_the_router_shows_rebalances(ops: Ops) -> None:
    async with in_process(ops.cluster, runner=True) as client:
        assert (await client.get("/v1/rebalance")).json()["rebalance"] is None
        await ops.run("shard", "weight", "s1", "3")
        await ops.run("rebalance", "start", "--keep", "0")
        await ops.run("rebalance", "watch")
        body = (await client.get("/v1/rebalance")).json()
        assert (body["rebalance"]["state"], body["moves"][0]["phase"]) == ("done", "done")
        text = (await client.get("/metrics")).text
        assert "voltroute_runner_leads 1.0" in text
        assert 'voltroute_move_phases_total{phase="done"}' in text
        assert "voltroute_move_write_pause_seconds_count " in text
        copied = next(line for line in text.splitlines() if line.startswith("voltroute_move_readings_copied_total"))
        assert float(copied.rpartition(" ")[2]) > 0
