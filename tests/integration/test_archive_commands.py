"""The archive as operators meet it: policies, what left, whether it is whole, bringing it back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import httpx2
import pyarrow.dataset
import pytest
import pytest_asyncio

from shards.policy import AFTER_MAX
from tests.support.commands import Finished, run_command
from tests.support.ledger import execute, fetch
from tests.support.months import LEFT, old_readings, packed, states, sums, total
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

pytestmark = pytest.mark.timeout(400)  # a command takes a second or two, and there are many


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=4) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def voltroute(cluster: TestCluster, *arguments: object) -> Finished:
    return await run_command(*arguments, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn})


def words(text: str) -> str:
    return " ".join(text.split())


def refusals(folder: str) -> list[tuple[tuple[str, ...], int, str]]:
    """Arguments of `lifecycle policy set`, the exit code, and what is said."""
    hot = ("--hot", "7d")
    return [
        (("--archive-after", "90d"), 3, "meter, vehicle has no policy yet: --hot is needed, too"),
        ((*hot, "--archive-after", "90d"), 3, "--archive-after of meter needs a place: --archive-to URL"),
        ((*hot, "--archive-after", "soon"), 2, "--archive-after soon: a number of hours, days or weeks"),
        ((*hot, "--archive-after", f"{AFTER_MAX.days + 1}d"), 2, "at most 36600d, or never"),
        (
            (*hot, "--archive-to", folder, "--archive-after", "7d"),
            2,
            "--archive-after 7d must be more than --hot 7d (meter)",
        ),
        (
            (*hot, "--archive-to", folder, "--archive-after", "90d", "--drop-after", "90d"),
            2,
            "--drop-after 90d must be more than --archive-after 90d (meter)",
        ),
        ((*hot, "--drop-after", "6d"), 2, "--drop-after 6d must be more than --hot 7d"),
        (
            (*hot, "--drop-after", "90d", "--rollups-for", "89d"),
            2,
            "--rollups-for 89d must be at least --drop-after 90d",
        ),
        ((*hot, "--rollups-for", "7d"), 2, "--rollups-for 7d must be more than --hot 7d (meter)"),
        (("--archive-to", "ftp://there"), 2, "--archive-to ftp://there: one of file://, s3://"),
        (("--archive-to", "file://there"), 2, "an absolute path is expected"),
        (("--archive-to", "s3://"), 2, "a bucket is expected, as in s3://bucket/prefix"),
        (
            ("--archive-to", "s3://me:secret@bucket"),
            2,
            "no user, password or options; access comes from the environment",
        ),
        (("--archive-to", "file:///proc/there"), 1, "file:///proc/there"),
    ]


async def test_policies_that_are_refused(cluster: TestCluster, servers: list[str], tmp_path: Path) -> None:
    folder = f"file://{tmp_path}/archive"
    hot = ("--hot", "7d")
    for arguments, code, said in refusals(folder):
        refused = await voltroute(cluster, "lifecycle", "policy", "set", *arguments)
        assert (refused.code, said in words(refused.err)) == (code, True), (arguments, refused)
        assert "secret" not in refused.err
    assert (await voltroute(cluster, "lifecycle", "policy", "show", "--json")).json["policies"] == []
    made = await voltroute(
        cluster, "lifecycle", "policy", "set", *hot, "--archive-to", folder, "--archive-after", "90d", "--json"
    )
    assert made.json["policies"][0] == {
        "kind": "meter",
        "tenant": None,
        "hot": "7d",
        "archiveAfter": "90d",
        "dropAfter": None,
        "rollupsFor": None,
        "tablespace": None,
    }
    changed = await voltroute(cluster, "lifecycle", "policy", "set", "vehicle", "--drop-after", "400d")
    assert "vehicle  7d   90d            400d        never" in changed.out
    assert f"the archive is in {folder}" in changed.out
    back = await voltroute(
        cluster, "lifecycle", "policy", "set", "--archive-after", "never", "--drop-after", "never", "--json"
    )
    assert all(each["archiveAfter"] is each["dropAfter"] is None for each in back.json["policies"])
    async with new_cluster(servers, shards=1, buckets=4) as other:
        foreign = await voltroute(other, "lifecycle", "policy", "set", *hot, "--archive-to", folder)
        assert (foreign.code, "is the archive of another cluster" in words(foreign.err)) == (3, True), foreign


async def test_out_looked_at_and_back(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    of_hours, _ = await packed(client, cluster)
    folder = tmp_path / "archive"
    for arguments, code, said in (
        (("list",), 0, "nothing left its shard"),
        (("verify",), 3, "there is no archive: `voltroute lifecycle policy set --archive-after 90d --archive-to URL`"),
        (("restore", "vehicle", "--from", "May", "--to", "2026-06-01"), 2, "--from May: a day is expected"),
        (("restore", "vehicle", "--from", "2026-06-01", "--to", "2026-06-01"), 2, "must be after --from"),
    ):
        told = await voltroute(cluster, "archive", *arguments)
        assert (told.code, said in words(told.out + told.err)) == (code, True), told
    policy = ("--hot", "1d", "--archive-after", "40d", "--archive-to", f"file://{folder}")
    assert (await voltroute(cluster, "lifecycle", "policy", "set", *policy)).code == 0
    nothing = await voltroute(cluster, "archive", "restore", "vehicle", "--from", "2026-05-01", "--to", "2026-06-01")
    assert (nothing.code, "the archive has nothing of that time" in words(nothing.err)) == (3, True)

    done = await voltroute(cluster, "lifecycle", "run", "--wait", "--json")
    assert done.code == 0, done
    taken = sum(shard["done"].get("archive", 0) for shard in done.json["shards"].values())
    readings = sum(1 for each in old_readings() if str(each["timestamp"]) < "2026-07-01")
    assert (taken, await states(cluster)) == (readings, {"dropped"})
    assert await sums(client) == of_hours
    shown = await voltroute(cluster, "archive", "list", "vehicle")
    assert [line.split()[:3] for line in shown.out.splitlines()[1:]] == [
        ["2026-05", "vehicle", "dropped"],
        ["2026-06", "vehicle", "dropped"],
    ]
    months = (await voltroute(cluster, "archive", "list", "--json")).json["months"]
    assert sum(each["readings"] for each in months) == readings
    assert (await voltroute(cluster, "archive", "verify", "--json")).json == {
        "months": len([each for each in months if each["object"]]),
        "readings": readings,
        "failed": {},
    }
    await read_without(folder)

    await damaged_and_brought_back(client, cluster, tmp_path)
    assert await sums(client) == of_hours


async def damaged_and_brought_back(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    broken = next(folder.rglob("kind=vehicle/month=2026-05/**/*.parquet"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-9] + b"x" + whole[-8:])
    verified = await voltroute(cluster, "archive", "verify", "vehicle", "--from", "2026-05-01", "--to", "2026-06-01")
    assert (verified.code, "is not what was put there" in verified.out) == (1, True), verified
    partly = await voltroute(cluster, "archive", "restore", "vehicle", "--from", "2026-05-09", "--to", "2026-05-10")
    assert (partly.code, "is not what was put there" in partly.out) == (1, True), partly
    broken.write_bytes(whole)
    back = await voltroute(
        cluster, "archive", "restore", "vehicle", "--from", "2026-05-09", "--to", "2026-05-10", "--for", "2d"
    )
    assert (back.code, "there until" in back.out) == (0, True), back
    day = {"from": "2026-05-09T00:00:00Z", "to": "2026-05-10T00:00:00Z"}
    assert (await client.get("/v1/vehicles/V-0/history", params=day)).status_code == 200
    again = await voltroute(
        cluster, "archive", "restore", "vehicle", "--from", "2026-05-09", "--to", "2026-05-10", "--json"
    )
    assert (again.code, again.json["failed"]) == (0, {})
    other = f"file://{tmp_path}/other"
    refused = await voltroute(cluster, "lifecycle", "policy", "set", "--archive-to", other)
    assert (refused.code, "has readings: it stays there" in words(refused.err)) == (3, True)
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET restored_until = now() WHERE state = 'restored'")
    assert (await voltroute(cluster, "lifecycle", "run", "--wait")).code == 0
    assert (await total(cluster, LEFT), await states(cluster)) == (0, {"dropped"})
    assert (await voltroute(cluster, "lifecycle", "policy", "set", "--drop-after", "41d")).code == 0
    dropped = await voltroute(cluster, "lifecycle", "run", "--wait")
    assert "readings dropped from the archive" in dropped.out
    assert list(folder.rglob("*.parquet")) == []


async def read_without(folder: Path) -> None:
    """By what knows nothing of voltroute."""
    wanted = [each for each in old_readings() if str(each["timestamp"]) < "2026-07-01" and "vehicleId" in each]
    energy = sum(each["kwhDeliveredDc"] for each in wanted)
    pattern = f"{folder}/v1/kind=vehicle/**/*.parquet"
    source = f"read_parquet('{pattern}', hive_partitioning = true)"
    query = f"SELECT count(*), sum(kwh_delivered_dc), count(DISTINCT month) FROM {source}"
    count, found, months = (await asyncio.to_thread(lambda: duckdb.connect().execute(query).fetchall()))[0]
    assert (count, round(found, 6), months) == (len(wanted), round(energy, 6), 2)
    dataset = pyarrow.dataset.dataset(f"{folder}/v1/kind=vehicle", partitioning="hive")
    device = dataset.to_table(filter=pyarrow.dataset.field("vehicle_id") == "V-0")
    assert device.num_rows == sum(1 for each in wanted if each["vehicleId"] == "V-0")


async def test_a_shard_whose_months_are_older_than_the_ledger(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    """As one that was restored from a backup: they leave once more, compared with their objects."""
    of_hours, _ = await packed(client, cluster)
    policy = ("--hot", "1d", "--archive-after", "40d", "--archive-to", f"file://{tmp_path}/archive")
    assert (await voltroute(cluster, "lifecycle", "policy", "set", *policy)).code == 0
    assert (await voltroute(cluster, "lifecycle", "run", "--wait")).code == 0
    assert (
        await voltroute(cluster, "archive", "restore", "vehicle", "--from", "2026-05-01", "--to", "2026-07-01")
    ).code == 0
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET state = 'dropped', restored_until = NULL")
    assert (await voltroute(cluster, "lifecycle", "run", "--wait")).code == 0
    assert (await total(cluster, LEFT), await states(cluster)) == (0, {"dropped"})
    assert await sums(client) == of_hours
    ledger = "SELECT count(*) FROM archived_month WHERE object IS NOT NULL"
    assert (await fetch(cluster.catalog_dsn, ledger))[0]["count"] == len(list(tmp_path.rglob("*.parquet")))


async def test_a_catalog_that_has_forgotten(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    """As one that was restored from an older backup: the shards and the store know."""
    of_hours, _ = await packed(client, cluster)
    policy = ("--hot", "1d", "--archive-after", "40d", "--archive-to", f"file://{tmp_path}/archive")
    assert (await voltroute(cluster, "lifecycle", "policy", "set", *policy)).code == 0
    assert (await voltroute(cluster, "lifecycle", "run", "--wait")).code == 0
    rule = "the catalog knows where every archived month is"
    findings = {each["name"]: each for each in (await voltroute(cluster, "check", "--json")).json}
    assert findings[rule]["ok"]
    count = (await fetch(cluster.catalog_dsn, "SELECT count(*) FROM archived_month"))[0]["count"]
    await execute(cluster.catalog_dsn, "DELETE FROM archived_month")
    checked = await voltroute(cluster, "check", "--json")
    findings = {each["name"]: each for each in checked.json}
    assert (checked.code, findings[rule]["ok"], findings[rule]["remedy"]) == (1, False, "voltroute archive recover")
    stray = next(tmp_path.rglob("*.parquet"))
    hidden = stray.rename(tmp_path / "hidden")
    partly = await voltroute(cluster, "archive", "recover")
    assert (partly.code, "has no object in the archive" in partly.out) == (1, True), partly
    hidden.rename(stray)
    recovered = await voltroute(cluster, "archive", "recover", "--json")
    assert (recovered.code, recovered.json["months"]) == (0, 1)
    assert (await fetch(cluster.catalog_dsn, "SELECT count(*) FROM archived_month"))[0]["count"] == count
    assert (await voltroute(cluster, "check")).code == 0
    for kind in ("vehicle", "meter"):
        back = await voltroute(cluster, "archive", "restore", kind, "--from", "2026-05-01", "--to", "2026-07-01")
        assert back.code == 0, back
    assert await sums(client) == of_hours
    assert await states(cluster) == {"restored"}
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET restored_until = now()")
    assert (await voltroute(cluster, "lifecycle", "run", "--wait")).code == 0
    assert (await total(cluster, LEFT), await states(cluster)) == (0, {"dropped"})
