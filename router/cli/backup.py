"""backup, restore: a whole cluster into a folder, and back into databases that hold nothing."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import errors, tell
from router.cli.target import DataOption, JsonOption, dsn_of, load_settings
from shards.backup import manifest as manifests
from shards.backup.manifest import CATALOG, Manifest
from shards.embedded.binaries import find_binaries
from shards.embedded.cluster import EmbeddedCluster, Options
from shards.errors import ClusterError, InvalidArgument, Refused
from shards.operations import backup as backing
from shards.operations import restore as restoring

_MIB: Final = 2**20
_Folder = Annotated[Path, typer.Argument(help="The backup's folder.", show_default=False)]
_Jobs = Annotated[int, typer.Option(min=1, max=64, help="Processes for one database.")]
_Parallel = Annotated[int, typer.Option(min=1, max=64, help="Databases at once.")]
_Catalog = Annotated[
    str | None,
    typer.Option("--catalog", help="An empty database, as its owner: @FILE, env:NAME or -.", show_default=False),
]
_Shards = Annotated[
    list[str] | None,
    typer.Option("--shard", help="NAME=DSN of an empty database; DSN as @FILE or env:NAME.", show_default=False),
]


def _programs(told: str | None) -> Path | None:
    """Where pg_dump may be, beside what the system has."""
    try:
        return find_binaries(told)
    except ClusterError:
        return Path(told) if told else None


def _dumped(name: str) -> None:
    errors.print(f"  {name} is dumped", markup=False)


def _restored(name: str) -> None:
    errors.print(f"  {name} is restored", markup=False)


def backup(
    folder: _Folder, jobs: _Jobs = 1, parallel: _Parallel = 2, data: DataOption = None, json: JsonOption = False
) -> None:
    """Dump every database of the cluster, all as they are at one point, while everything runs."""
    wanted = backing.Wanted(folder, jobs, parallel, _programs(load_settings().pg_bin))
    made = with_catalog(data, lambda catalog: backing.backup(catalog, wanted, _dumped))
    tell(
        _told(folder, made),
        f"{folder}: {_size(made):,.1f} MiB; everything acknowledged before {_point(made)}",
        json=json,
    )


def restore(
    folder: _Folder,
    catalog: _Catalog = None,
    shards: _Shards = None,
    jobs: _Jobs = 1,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Make the cluster of a backup: in a new --data folder, or in empty databases of your own servers.

    It takes the place of the one that was backed up, which must not run any more.
    """
    manifest = manifests.read(folder)
    binaries = _programs(load_settings().pg_bin)
    if data is not None:
        if catalog is not None or shards:
            raise InvalidArgument("--data is for embedded servers: leave --catalog and --shard out")
        if data.exists() and any(data.iterdir()):
            raise Refused(f"{data} holds a cluster, or something else: name a new folder")
        asyncio.run(_embedded(folder, manifest, data, jobs, binaries))
    else:
        if catalog is None:
            raise InvalidArgument("say where to: --data DIR, or --catalog and a --shard NAME=DSN for each shard")
        places = _places(shards or [])
        wanted = restoring.Wanted(folder, _dsn("--catalog", catalog), places, jobs, binaries)
        asyncio.run(restoring.restore(wanted, _restored))
    words = f"everything acknowledged before {_point(manifest)} is there. Next: start a router, then `voltroute check`"
    tell(_told(folder, manifest), words, json=json)


async def _embedded(folder: Path, manifest: Manifest, data: Path, jobs: int, binaries: Path | None) -> None:
    await asyncio.to_thread(manifests.verify, folder, manifest)
    options = Options(data, names=tuple(manifest.shards), buckets=manifest.bucket_count, blank=True)
    try:
        async with EmbeddedCluster(options) as cluster:
            wanted = restoring.Wanted(folder, cluster.catalog_dsn, cluster.state.shard_dsns(), jobs, binaries)
            await restoring.restore(wanted, _restored)
    except BaseException:  # half of a cluster is none: `up` would take it for a new one
        shutil.rmtree(data, ignore_errors=True)
        raise


def _places(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name, equals, dsn = each.partition("=")
        if not name or not equals or not dsn:
            raise InvalidArgument("--shard is NAME=DSN, with the DSN as @FILE or env:NAME")
        if name in found:
            raise InvalidArgument(f"--shard {name} is given twice")
        found[name] = _dsn(f"--shard {name}", dsn)
    return found


def _dsn(option: str, given: str) -> str:
    if given != "-" and not given.startswith(("@", "env:")):
        raise InvalidArgument(f"{option}: other users see what stands here; use @FILE, env:NAME or -")
    return dsn_of(given)


def _size(made: Manifest) -> float:
    return sum(size for size, _ in made.files.values()) / _MIB


def _point(made: Manifest) -> str:
    return f"{made.point:%Y-%m-%d %H:%M:%S.%f}Z"


def _told(folder: Path, made: Manifest) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "clusterId": made.cluster_id,
        "point": made.point.isoformat().replace("+00:00", "Z"),
        "databases": [*made.shards, CATALOG],
        "bytes": sum(size for size, _ in made.files.values()),
    }
