"""`voltroute export`: readings into a file of any form, on from where it was interrupted."""

import csv
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest
import pytest_asyncio

from router.cli import export as command
from router.files.written import Form, check_form
from router.fleet.client import RouterClient
from router.fleet.parts import Fetched, parts
from shards.errors import InvalidArgument, MachineError
from tests.support.commands import run_command
from tests.support.readings import at, meter, register, vehicle
from tests.support.routers import RouterProcess, router_process
from tests.support.servers import TestCluster, new_cluster

READINGS = [vehicle(f"V-{n}", minute, kwh=minute / 8) for n in range(4) for minute in range(500)]
METERS = [meter("M-0", 1, voltage=230.5), register("R-0", 2, 1000.25)]


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def router(cluster: TestCluster) -> AsyncIterator[RouterProcess]:
    async with router_process(cluster.catalog_dsn, VOLTROUTE_LOG_LEVEL="error") as made:
        async with RouterClient(made.url) as client:
            for path, readings in (("vehicle", READINGS), ("meter", METERS)):
                tally = await client.post(f"/v1/ingest/{path}", readings)
                assert tally.accepted == len(readings)
        yield made


def moment(text: Any) -> datetime:
    return datetime.fromisoformat(text)


async def test_into_every_form(router: RouterProcess, tmp_path: Path) -> None:
    files = [tmp_path / f"vehicles.{form}" for form in ("ndjson", "csv", "parquet")]
    for file in files:
        done = await run_command("export", "vehicles", file, "--url", router.url, "--json")
        assert (done.code, done.json["readings"]) == (0, len(READINGS)), done.err
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(each.name for each in files)
    wanted = [(each["vehicleId"], moment(each["timestamp"]), each["kwhDeliveredDc"]) for each in READINGS]
    lines = [orjson.loads(line) for line in files[0].read_bytes().splitlines()]
    with files[1].open(newline="") as text:
        rows = [{**row, "kwhDeliveredDc": float(row["kwhDeliveredDc"])} for row in csv.DictReader(text)]
    for found in (lines, rows):
        told: list[Any] = [(each["vehicleId"], moment(each["timestamp"]), each["kwhDeliveredDc"]) for each in found]
        assert told == wanted
    table = pyarrow.parquet.read_table(files[2], page_checksum_verification=True)
    assert [str(each.type) for each in table.schema][:2] == ["string", "timestamp[us, tz=UTC]"]
    columns = (table.column(name).to_pylist() for name in ("vehicleId", "timestamp", "kwhDeliveredDc"))
    assert list(zip(*columns, strict=True)) == wanted


async def test_fields_that_readings_lack(router: RouterProcess, tmp_path: Path) -> None:
    file = tmp_path / "meters.csv"
    done = await run_command("export", "meters", file, "--url", router.url, "--from", at(0), "--to", at(2))
    assert (done.code, done.out.strip()) == (0, f"{file}: 2 readings")
    assert file.read_text().splitlines() == [
        "meterId,timestamp,kwhConsumedAc,voltage,registerKwh",
        "M-0,2026-05-01T00:01:00Z,0.5,230.5,",
        "R-0,2026-05-01T00:02:00Z,,,1000.25",
    ]
    again = await run_command("post", file, "--kind", "meter", "--url", router.url, "--json")
    assert (again.json["duplicates"], again.json["conflicts"]) == (2, 0)


async def test_it_goes_on_where_it_was_interrupted(
    router: RouterProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when lines were written that the state does not know of."""
    file = tmp_path / "vehicles.csv"

    async def some(client: RouterClient, path: str) -> AsyncIterator[Fetched]:
        fetched = 0
        async for part in parts(client, path):
            if fetched == 3:
                raise ConnectionError("the router is gone")
            fetched += 1
            yield part

    path = "/v1/export/vehicles?limit=97"
    made = command._begin(file, path, resume=False)
    with monkeypatch.context() as patched:
        patched.setattr(command, "parts", some)
        with pytest.raises(ConnectionError):
            await command._fetch(made, router.url, None)
    assert made.state.readings == 3 * 97
    with made.part.open("ab") as part:
        part.write(b'{"vehicleId": "V-half')
    with pytest.raises(InvalidArgument, match="--resume goes on"):
        command._begin(file, path, resume=False)
    with pytest.raises(InvalidArgument, match="other options"):
        command._begin(file, "/v1/export/vehicles?limit=98", resume=True)
    resumed = command._begin(file, path, resume=True)
    await command._fetch(resumed, router.url, None)
    resumed.finish(Form.CSV)
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    with file.open(newline="") as rows:
        told = [(row["vehicleId"], moment(row["timestamp"])) for row in csv.DictReader(rows)]
    assert told == [(each["vehicleId"], moment(each["timestamp"])) for each in READINGS]


async def test_what_cannot_be_exported_is_refused(
    router: RouterProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.csv"
    there.write_text("x")
    for arguments, code, text in (
        (("vehicles", there), 2, "is there already"),
        (("vehicles", tmp_path / "new", "--resume"), 2, "no export into"),
        (("pumps", tmp_path / "pumps"), 1, "HTTP 404"),
        (("vehicles", tmp_path / "bad", "--from", "yesterday"), 1, "HTTP 422"),
    ):
        done = await run_command("export", *arguments, "--url", router.url)
        assert done.code == code, done.err
        assert text in done.err
    nobody = await run_command("export", "vehicles", tmp_path / "away", "--url", "http://127.0.0.1:9")
    assert (nobody.code, "--resume" in nobody.err) == (1, False)
    assert [each.name for each in tmp_path.iterdir()] == [there.name]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match=r"voltroute\[parquet\]"):
        check_form(Form.PARQUET)
