"""A cluster is backed up under load, and comes back elsewhere with everything that was acknowledged before."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shards.backup import manifest as manifest_file
from shards.backup.manifest import FILE, Manifest
from shards.backup.programs import Programs
from shards.catalog.database import Catalog
from shards.embedded.binaries import find_binaries
from shards.errors import ClusterError, InvalidArgument, Refused
from shards.moves.phases import Phase
from shards.moves.placement import PlannedMove
from shards.operations import backup as backing
from shards.operations import restore as restoring
from shards.policy import Policies
from shards.postgres.dsn import login_of
from shards.postgres.sessions import owner_session
from shards.storage.marks import low_water
from shards.tiers.runner import Tender
from tests.support.commands import run_command, up
from tests.support.ledger import execute, fetch, stored
from tests.support.load import Recorder
from tests.support.loaded import loaded
from tests.support.months import DEVICES, PERIOD, given, old_readings
from tests.support.moving import ended, reached, running, start
from tests.support.readings import ingest, meter, vehicle
from tests.support.routers import in_process, router_process
from tests.support.servers import TestCluster, drop_database, new_cluster, new_database, scratch_folder
from tests.support.tiering import HOT, age, answers, records_of

pytestmark = pytest.mark.timeout(300)
PROGRAMS = find_binaries(None)


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


async def back_up(
    cluster: TestCluster, folder: Path, told: Callable[[str], None] = lambda _name: None, **more: Any
) -> Manifest:
    catalog = Catalog(cluster.catalog_dsn)
    try:
        return await backing.backup(catalog, backing.Wanted(folder, binaries=PROGRAMS, **more), told)
    finally:
        await catalog.close()


@asynccontextmanager
async def places(servers: list[str], cluster: TestCluster) -> AsyncIterator[dict[str, str]]:
    """An empty database for the catalog and each shard, on other servers than theirs."""
    homes = dict(zip(["catalog", *cluster.shards], servers[::-1], strict=False))
    try:
        yield {name: await new_database(server, f"back_{name}") for name, server in homes.items()}
    finally:
        await asyncio.gather(*(drop_database(server, f"back_{name}") for name, server in homes.items()))


def wanted(folder: Path, dsns: dict[str, str]) -> restoring.Wanted:
    shards = {name: dsn for name, dsn in dsns.items() if name != "catalog"}
    return restoring.Wanted(folder, dsns["catalog"], shards, 2, PROGRAMS)


@asynccontextmanager
async def elsewhere(servers: list[str], cluster: TestCluster, folder: Path) -> AsyncIterator[TestCluster]:
    """What is in a backup."""
    async with places(servers, cluster) as dsns:
        await restoring.restore(wanted(folder, dsns))
        catalog = dsns.pop("catalog")
        yield TestCluster(catalog, dsns, cluster.buckets)


async def test_under_load_nothing_that_was_acknowledged_is_lost(
    servers: list[str], cluster: TestCluster, tmp_path: Path
) -> None:
    """While buckets move, from when the first database was dumped on: the others are as they were."""
    begun = asyncio.Event()

    async def move(under: Any) -> None:
        await begun.wait()
        async with running(under.catalog):
            await start(under.catalog, [await under.next_move(bucket) for bucket in range(3)])
            assert await ended(under.catalog) == "done"

    async with loaded(cluster) as under:
        await under.recorder.more(300)
        moving, acknowledged = asyncio.create_task(move(under)), set(under.recorder.acknowledged)
        made = await back_up(cluster, tmp_path / "backup", lambda _name: begun.set(), parallel=1)
        await moving
    async with elsewhere(servers, cluster, tmp_path / "backup") as restored:
        rows = [(device, moment) for _, device, moment in await stored(restored.shards)]
        assert len(rows) == len(set(rows))
        assert acknowledged <= set(rows)
        assert len(rows) < len(await stored(cluster.shards))
        assert {name: part.owned for name, part in made.shards.items()} == {
            name: [row["bucket"] for row in await fetch(dsn, "SELECT bucket FROM owned_bucket ORDER BY 1")]
            for name, dsn in restored.shards.items()
        }
        env = {"VOLTROUTE_CATALOG_DSN": restored.catalog_dsn}
        assert (await run_command("check", env=env)).code == 0
        rows_ = await fetch(restored.catalog_dsn, "SELECT to_jsonb(shard)::text AS row FROM shard")
        old = [dsn.rpartition("@")[2] for dsn in cluster.shards.values()]
        assert [place for place in old for row in rows_ if place in row["row"]] == []
        async with router_process(restored.catalog_dsn) as router:
            recorder, until = Recorder(), asyncio.Event()
            load = asyncio.create_task(recorder.run(router.url, until, workers=2))
            await recorder.more(100)
            until.set()
            await load


async def test_a_leaf_that_was_published_and_not_dropped_is_not_read_twice(
    servers: list[str], cluster: TestCluster, tmp_path: Path
) -> None:
    """A shard knows it by its identity, which is another one after a restore."""
    async with in_process(cluster, runner=False) as client:
        await given(client, cluster, sorted(old_readings(), key=lambda each: str(each["timestamp"])))
        for kind in ("vehicle", "meter"):
            await age(cluster, kind, "after publish")
        await ingest(client, [vehicle("V-0", 1.5), meter("M-0", 1.5)])  # late where it is frozen
        before = await answers(client, PERIOD, DEVICES)
    await back_up(cluster, tmp_path / "backup", jobs=2)
    async with elsewhere(servers, cluster, tmp_path / "backup") as restored, in_process(restored) as client:
        left = [len(await fetch(dsn, "SELECT FROM packed_leaf")) for dsn in restored.shards.values()]
        assert sum(left) > 0
        assert await answers(client, PERIOD, DEVICES) == before


async def test_nothing_is_dropped_or_held_up_while_others_are_dumped(
    servers: list[str], cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was published before stays until it is dumped; sums go on, and so do moves, however long it takes."""
    monkeypatch.setattr("shards.moves.preflight.OLD_TRANSACTION_S", 0.5)
    async with in_process(cluster, runner=False) as client:
        await given(client, cluster, sorted(old_readings(), key=lambda each: str(each["timestamp"])))
        for kind in ("vehicle", "meter"):
            await age(cluster, kind, "after publish")
        before = await answers(client, PERIOD, DEVICES)
    seen: list[Any] = []
    dump = Programs.dump

    async def slow(self: Programs, *arguments: Any, **more: Any) -> None:
        if not seen:
            seen.append(None)
            async with running(catalog):
                await start(catalog, [PlannedMove(1, "s2", "s3")])  # nothing of it is packed yet
                await reached(catalog, Phase.CLEANUP, Phase.DONE)
            dropping = [await Tender(record, Policies(HOT)).run() for record in await records_of(cluster)]
            seen.append(sum(result.waiting + len(result.failed) for result in dropping))
            marks = []
            for record in await records_of(cluster):
                async with owner_session(record) as connection:
                    now = await connection.fetchval("SELECT clock_timestamp()")
                    marks.append((now - (await low_water(connection, login_of(record.reader_dsn)))[0]).total_seconds())
            seen.append(marks)
        await dump(self, *arguments, **more)

    monkeypatch.setattr(Programs, "dump", slow)
    catalog = Catalog(cluster.catalog_dsn)
    await back_up(cluster, tmp_path / "backup", parallel=1)
    async with running(catalog):
        assert await ended(catalog) == "done"
    await catalog.close()
    assert seen[1] > 0
    assert max(seen[2]) < 2.5
    async with elsewhere(servers, cluster, tmp_path / "backup") as restored, in_process(restored) as client:
        assert await answers(client, PERIOD, DEVICES) == before


async def test_what_is_refused(servers: list[str], cluster: TestCluster, tmp_path: Path) -> None:
    """Nothing is written anywhere then."""
    shard = next(iter(cluster.shards.values()))
    await execute(shard, "INSERT INTO bucket_move (move_id, runner, bucket, role) VALUES (1, 0, 0, 'source')")
    with pytest.raises(Refused, match="takes part in a move"):
        await back_up(cluster, tmp_path / "moving")
    await execute(shard, "DELETE FROM bucket_move")
    with pytest.raises(InvalidArgument, match=r"is no backup: there is no backup\.json"):
        manifest_file.read(tmp_path / "moving")
    backup = tmp_path / "backup"
    await back_up(cluster, backup)
    assert {oct(path.stat().st_mode & 0o777) for path in (backup, backup / FILE)} == {"0o700", "0o600"}
    with pytest.raises(InvalidArgument, match="is not empty: name a new folder"):
        await back_up(cluster, backup)
    async with places(servers, cluster) as dsns:
        with pytest.raises(InvalidArgument, match="the backup has the shards s1, s2, s3, and places were given for s1"):
            await restoring.restore(restoring.Wanted(backup, dsns["catalog"], {"s1": dsns["s1"]}))
        with pytest.raises(Refused, match="s1 and s2 are one database"):
            await restoring.restore(wanted(backup, {**dsns, "s2": dsns["s1"]}))
        with pytest.raises(Refused, match=r"that database is shard s1 of the cluster .*: name an empty one"):
            await restoring.restore(wanted(backup, {**dsns, "s1": cluster.shards["s1"]}))
        with pytest.raises(Refused, match="catalog: that database holds a cluster: name an empty one"):
            await restoring.restore(wanted(backup, {**dsns, "catalog": cluster.catalog_dsn}))
        await execute(dsns["s3"], "CREATE TABLE somebodys (n int)")
        with pytest.raises(Refused, match="s3: that database has tables, or functions"):
            await restoring.restore(wanted(backup, dsns))
        await execute(dsns["s3"], "DROP TABLE somebodys")
        manifest = json.loads((backup / FILE).read_text())
        (backup / FILE).write_text(json.dumps({**manifest, "format": 9}))
        with pytest.raises(InvalidArgument, match="has the format 9"):
            await restoring.restore(wanted(backup, dsns))
        (backup / FILE).write_text(json.dumps(manifest))
        damaged = max((backup / "s2").iterdir(), key=lambda path: path.stat().st_size)
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ClusterError, match=f"{damaged} is not what was backed up"):
            await restoring.restore(wanted(backup, dsns))
        damaged.unlink()
        with pytest.raises(ClusterError, match=f"{damaged} is missing"):
            await restoring.restore(wanted(backup, dsns))
        tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        assert [(await fetch(dsn, tables))[0][0] for dsn in dsns.values()] == [0, 0, 0, 0]


async def test_the_commands(tmp_path: Path) -> None:
    """From one embedded cluster into another, which goes on."""
    base = scratch_folder()  # where servers' account may enter
    one, two, folder = base / "one", base / "two", tmp_path / "backup"
    try:
        async with up(one, "--shards", "2") as first, httpx2.AsyncClient(base_url=first.url) as client:
            await ingest(client, [vehicle("V-1"), meter("M-1")])
            done = await run_command("backup", folder, "--data", one, "--json")
            assert done.code == 0, done.err
            assert done.json["databases"] == ["shard-1", "shard-2", "catalog"]
        done = await run_command("restore", folder, "--data", two)
        assert done.code == 0, done.err
        assert "everything acknowledged before 20" in done.out + done.err
        again = await run_command("restore", folder, "--data", two)
        words = "holds a cluster, or something else: name a new folder"
        assert (again.code, words in " ".join(again.err.split())) == (3, True)
        async with up(two) as second, httpx2.AsyncClient(base_url=second.url) as client:
            assert (await client.get("/v1/vehicles/V-1/status")).json()["vehicleId"] == "V-1"
            assert (await ingest(client, [vehicle("V-1"), vehicle("V-1", 1)]))["duplicates"] == 1
            assert (await run_command("check", "--data", two)).code == 0
    finally:
        shutil.rmtree(base)


REFUSED = [
    ((), "say where to: --data DIR, or --catalog and a --shard NAME=DSN"),
    (("--data", "x", "--catalog", "env:C"), "--data is for embedded servers"),
    (("--catalog", "postgresql://x/y"), "--catalog: other users see what stands here"),
    (("--catalog", "env:C", "--shard", "s1"), "--shard is NAME=DSN"),
    (("--catalog", "env:C", "--shard", "s1=env:C", "--shard", "s1=env:C"), "--shard s1 is given twice"),
    (("--catalog", "env:C", "--shard", "s1=postgresql://x/y"), "--shard s1: other users see"),
    (("--catalog", "env:C", "--shard", "s1=env:C"), "places were given for s1"),
]


async def test_what_the_command_refuses(cluster: TestCluster, tmp_path: Path) -> None:
    await back_up(cluster, tmp_path / "backup")
    for arguments, text in REFUSED:
        done = await run_command("restore", tmp_path / "backup", *arguments, env={"C": "postgresql://x/y"})
        assert (done.code, text in " ".join(done.err.split())) == (2, True), (arguments, done.err)
