"""up, down, init, serve: the commands that make a cluster and run a router."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from pydantic import SecretStr

from router.cli.opening import check_open, write_first_key
from router.cli.show.output import errors, print_json, print_line
from router.cli.target import (
    DataOption,
    JsonOption,
    configure_log,
    data_folder,
    dsn_of,
    find_catalog,
    load_settings,
    with_redis,
)
from router.server import Say, listen, serve, stop_on_signals
from router.settings import Settings
from router.siblings import Siblings
from router.supervisor import Supervisor, reserve, share
from shards.buckets import BUCKETS_DEFAULT, check_bucket_count
from shards.embedded.cluster import EmbeddedCluster, Options
from shards.embedded.lock import check_free, stop_running
from shards.errors import ClusterError, MachineError
from shards.operations.init import init_cluster
from shards.postgres.dsn import check_dsn

HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on [127.0.0.1].")]
InsecureOption = Annotated[
    bool | None, typer.Option("--insecure", help="Serve a cluster without keys on more than loopback.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, max=64, help="Router processes that share the port [1].")
]
PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on [8080, or a free one].")
]


def _opened(settings: Settings, port: int | None) -> socket.socket:
    """The settings' address; another free port when the default one is taken and nobody insisted on it."""
    share(settings)  # before anything is started
    opened = listen if settings.workers == 1 else reserve
    try:
        return opened(settings.host, settings.port)
    except ClusterError:
        if port is not None or "port" in settings.model_fields_set:
            raise
        listener = opened(settings.host, 0)
        errors.print(f"port {settings.port} is taken; using {listener.getsockname()[1]}")
        return listener


async def _run(settings: Settings, opened: socket.socket, stopping: asyncio.Event, say: Say) -> None:
    """One router, or a supervisor of several."""
    if settings.workers == 1:
        await serve(settings, opened, stopping, say)
    else:
        await Supervisor(settings, opened).run(stopping, say)


def up(
    data: DataOption = None,
    shards: Annotated[int | None, typer.Option(min=1, max=64, help="Shards of a new cluster [3].")] = None,
    buckets: Annotated[int | None, typer.Option(help=f"Buckets of a new cluster [{BUCKETS_DEFAULT}].")] = None,
    replicas: Annotated[
        int, typer.Option(min=0, max=4, help="Replicas of each shard, at least; what there is stays.")
    ] = 0,
    host: HostOption = None,
    port: PortOption = None,
    insecure: InsecureOption = None,
    workers: WorkersOption = None,
    json: JsonOption = False,
    temporary: Annotated[bool, typer.Option(help="Delete the folder at the end.", hidden=True)] = False,
    until_eof: Annotated[bool, typer.Option(help="Stop at the end of standard input.", hidden=True)] = False,
) -> None:
    """Start PostgreSQL servers (one a shard, one for the catalog) and a router; data is kept in --data."""
    if buckets is not None:
        check_bucket_count(buckets)
    settings = with_redis(load_settings(host=host, port=port, insecure=insecure, workers=workers))
    folder = data_folder(data, settings)
    options = Options(
        folder,
        shards,
        buckets,
        settings.pg_bin,
        temporary=temporary,
        replicas=replicas,
        progress=_progress,
        happened=_warn,
    )
    configure_log(settings)
    check_free(folder)
    uvloop.run(_up(options, settings, port, json=json, until_eof=until_eof))


async def _up(options: Options, settings: Settings, port: int | None, *, json: bool, until_eof: bool) -> None:
    listener = _opened(settings, port)
    async with EmbeddedCluster(options) as cluster:
        await check_open(settings, cluster.catalog_dsn)
        ready: dict[str, Any] = {
            "catalog_dsn": cluster.catalog_dsn,
            "shards": [{"name": name, "dsn": dsn} for name, dsn in cluster.state.shard_dsns().items()],
        }
        settings = settings.model_copy(update={"catalog_dsn": SecretStr(cluster.catalog_dsn)})

        async def say(url: str, mapped: bool) -> None:
            cluster.tell_url(url)
            _say_ready(url, ready, mapped=mapped, json=json)

        stopping = stop_on_signals()
        watching = asyncio.create_task(_stop_when_gone(cluster, stopping))
        if until_eof:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_at_eof, stopping)
        await _run(settings, listener, stopping, say)
        watching.cancel()
        _progress("stopping ...")
        if cluster.gone.is_set():
            raise MachineError(
                "the process that keeps the servers ended, and they with it; start again with `voltroute up`"
            )


def _say_ready(url: str, more: dict[str, Any], *, mapped: bool, json: bool) -> None:
    """Listening is not ready: without a map of the catalog every request but the probes is refused."""
    if json:
        print_json({"url": url, "ready": mapped, **more})
    else:
        print_line(f"ready {url}" if mapped else f"listening {url}, waiting for the catalog's map (the log says why)")


async def _stop_when_gone(cluster: EmbeddedCluster, stopping: asyncio.Event) -> None:
    await cluster.gone.wait()
    stopping.set()


def _warn(text: str) -> None:
    errors.print(text, markup=False, soft_wrap=True)


def _progress(text: str) -> None:
    """How far a long command is, for people only."""
    if errors.is_terminal:
        errors.print(text, markup=False)


def _stop_at_eof(stopping: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stopping.set()


def down(data: DataOption = None, json: JsonOption = False) -> None:
    """Stop the embedded cluster in --data, and wait until its servers are down."""
    folder = data_folder(data, load_settings())
    _progress("stopping ...")
    stopped = stop_running(folder)
    text = f"stopped the cluster in {folder}" if stopped else f"no cluster is running in {folder}"
    if json:
        print_json({"data": str(folder), "stopped": stopped})
    else:
        errors.print(text, markup=False, soft_wrap=True)


def init(
    shard: Annotated[
        list[str],
        typer.Option(
            help="NAME=DSN of a shard's database, as its owner; or NAME=@FILE, NAME=env:VARIABLE. Repeatable."
        ),
    ],
    catalog: Annotated[
        str | None,
        typer.Option(
            help="DSN of the catalog's database, as its owner; or @FILE, env:NAME, -.  [VOLTROUTE_CATALOG_DSN]"
        ),
    ] = None,
    buckets: Annotated[int, typer.Option(help="A power of two up to 1024; fixed for good.")] = BUCKETS_DEFAULT,
    first_key: Annotated[
        Path | None, typer.Option(help="Write a key that may do everything to this new file, if there is none yet.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a cluster on PostgreSQL servers (15 or newer) that exist. Repeating it finishes what was interrupted."""
    settings = load_settings()
    if catalog is None and settings.catalog_dsn is None:
        raise typer.BadParameter("give the catalog's DSN with --catalog, or as VOLTROUTE_CATALOG_DSN")
    catalog_dsn = dsn_of(catalog or settings.catalog_dsn.get_secret_value())  # type: ignore[union-attr]
    shards: dict[str, str] = {}
    for entry in shard:
        name, equals, dsn = entry.partition("=")
        if not equals or not dsn:
            message = f"--shard {name}: NAME=DSN is expected"
            raise typer.BadParameter(message)
        if name in shards:
            message = f"--shard {name} is given twice"
            raise typer.BadParameter(message)
        shards[name] = dsn_of(dsn)
    info = asyncio.run(init_cluster(catalog_dsn, shards, buckets, _progress))
    if first_key is not None:
        write_first_key(catalog_dsn, first_key)
    if json:
        print_json({"cluster_id": info.cluster_id, "buckets": info.bucket_count, "epoch": info.epoch})
        return
    errors.print(f"cluster {info.cluster_id}: {info.bucket_count} buckets on {len(shards)} shards", soft_wrap=True)
    errors.print("start a router with:  VOLTROUTE_CATALOG_DSN=... voltroute serve", soft_wrap=True)


def serve_command(
    data: DataOption = None,
    host: HostOption = None,
    port: PortOption = None,
    insecure: InsecureOption = None,
    workers: WorkersOption = None,
    json: JsonOption = False,
    sibling: Annotated[str | None, typer.Option(help="Which worker of which router this is.", hidden=True)] = None,
    until_eof: Annotated[bool, typer.Option(help="Stop at the end of standard input.", hidden=True)] = False,
) -> None:
    """Run a router against a cluster that exists; any number of them may run side by side."""
    settings = with_redis(load_settings(host=host, port=port, insecure=insecure, workers=workers))
    dsn = find_catalog(data, settings)
    check_dsn(dsn)
    settings = settings.model_copy(update={"catalog_dsn": SecretStr(dsn)})
    configure_log(settings)

    async def run() -> None:
        await check_open(settings, dsn)

        async def say(url: str, mapped: bool) -> None:
            _say_ready(url, {}, mapped=mapped, json=json)

        stopping = stop_on_signals()
        if until_eof:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_at_eof, stopping)
        if sibling is None:
            await _run(settings, _opened(settings, port), stopping, say)
        else:
            shared = listen(settings.host, settings.port, shared=True)
            await serve(settings, shared, stopping, say, Siblings.of(sibling))

    uvloop.run(run())
