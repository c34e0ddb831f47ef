"""Loading into a test cluster, and the files that are loaded."""

import csv
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from shards.bulk.checking import Checker
from shards.bulk.sources import File, Foreign, Naming, form_of
from shards.catalog import lifecycle
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.kinds import KINDS, METER, VEHICLE, Kind
from shards.operations import load as operation
from shards.operations.load import Result, Wanted
from shards.policy import Policy
from shards.tiers.watching import Watch, watch_nothing
from tests.support.servers import TestCluster
from tests.support.tenants import catalog_of

HOT = timedelta(days=7)


async def with_policies(cluster: TestCluster) -> None:
    async with catalog_of(cluster) as catalog, catalog.membership(deadline_in(10)) as connection:
        for kind in KINDS:
            await lifecycle.set_policy(connection, Policy(kind.name, HOT))


def of_kind(readings: Iterable[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    return [reading for reading in readings if kind.id_name in reading]


def write_csv(path: Path, kind: Kind, readings: Sequence[dict[str, Any]]) -> Path:
    names = [kind.id_name, "timestamp", *(field.name for field in kind.fields)]
    used = [name for name in names if any(name in reading for reading in readings)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, used, lineterminator="\n")
        writer.writeheader()
        writer.writerows(readings)
    return path


def write_ndjson(path: Path, readings: Sequence[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(reading) + b"\n" for reading in readings))
    return path


def checker_of(kind: Kind, **more: Any) -> Checker:
    now = datetime.now(UTC)
    return Checker(kind, now - timedelta(days=10_958), now + timedelta(seconds=300), **more)


async def load_files(
    cluster: TestCluster,
    kind: Kind,
    files: Sequence[Path],
    spool: Path,
    *,
    tenant: str = "default",
    verify: bool = True,
    watch: Watch = watch_nothing,
    checker: Checker | None = None,
    sources: Sequence[Foreign] = (),
) -> Result:
    """As the command does it."""
    catalog = Catalog(cluster.catalog_dsn)
    naming = Naming(kind)
    found = [File(file, form_of(file, None), naming) for file in files]
    wanted = Wanted(tenant, spool, 2, verify)
    return await operation.load(
        catalog, checker or checker_of(kind), [*found, *sources], wanted, lambda _what, _count: None, watch
    )


async def load_all(
    cluster: TestCluster, readings: Sequence[dict[str, Any]], folder: Path, **more: Any
) -> dict[str, Result]:
    """Meters as CSV, vehicles as lines of JSON; nothing may fail."""
    files = {
        METER: write_csv(folder / "meters.csv", METER, of_kind(readings, METER)),
        VEHICLE: write_ndjson(folder / "vehicles.ndjson", of_kind(readings, VEHICLE)),
    }
    found = {}
    for kind, file in files.items():
        found[kind.name] = await load_files(cluster, kind, [file], folder / f"spool-{kind}", **more)
        assert found[kind.name].failed == {}, found[kind.name].failed
    return found
