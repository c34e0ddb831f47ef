"""shard add, drain, remove: changing which shards a cluster has."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from router.cli.catalog import with_catalog
from router.cli.rebalance import Keep, Parallel, RateMb, pace_of, watch_to_the_end
from router.cli.replica import add_replica, list_replicas, promote, remove_replica
from router.cli.schema import read_cluster
from router.cli.show.output import print_json, print_table, say, say_check, tell
from router.cli.status import COLUMNS, row_of
from router.cli.target import (
    DataOption,
    JsonOption,
    SecretsOption,
    data_folder,
    dsn_of,
    find_catalog,
    load_settings,
)
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.embedded.databases import make_database
from shards.embedded.state import editing_state, save_state, with_server, without_server
from shards.errors import MachineError, Refused, ShardError
from shards.operations import drain as draining
from shards.operations import shards
from shards.operations.finding import Finding
from shards.operations.rebalance import KEEP_DEFAULT_S, PARALLEL_DEFAULT
from shards.operations.survey import survey
from shards.postgres.dsn import redact
from shards.shard import check_name

shard_app = typer.Typer(help="Shards.", no_args_is_help=True)
SERVER_TIMEOUT_S: Final = 60.0
TIMEOUT_S: Final = 10.0
NameArgument = Annotated[str, typer.Argument(help="Name of the shard.")]


def add(
    name: NameArgument,
    data: DataOption = None,
    dsn: Annotated[
        str | None,
        typer.Option(help="DSN of its database, as owner, or @FILE, env:NAME, -; none: another embedded server."),
    ] = None,
    weight: Annotated[float, typer.Option(min=0.001, max=1000, help="Its share beside the others'.")] = 1.0,
    json: JsonOption = False,
) -> None:
    """Add an empty shard. Moves nothing: a rebalance does."""
    check_name(name)
    find_catalog(data, load_settings())
    embedded = _embedded_folder(data) if dsn is None else None

    async def work(catalog: Catalog) -> list[Finding]:
        target = dsn_of(dsn) if dsn else await _start_server(_required(embedded), name)
        return await shards.add_shard(catalog, name, target, weight)

    try:
        found = with_catalog(data, work)
    except Refused:
        if embedded is not None:
            _stop_server_if_unknown(data, embedded, name)
        raise
    if json:
        print_json({"shard": name, "checks": [asdict(finding) for finding in found]})
        return
    for finding in found:
        say_check(finding.name, finding.found, ok=finding.ok)
    say(f"{name} is a shard now and owns nothing yet. Next:  voltroute rebalance plan")


def _required(folder: Path | None) -> Path:
    if folder is None:
        raise AssertionError
    return folder


def _embedded_folder(data: Path | None) -> Path:
    """The folder of the embedded cluster that the command is about; MachineError when the cluster is another kind."""
    settings = load_settings()
    if data is None and settings.catalog_dsn is not None:
        message = "this cluster's servers are your own: give the new shard's database with --dsn"
        raise MachineError(message)
    return data_folder(data, settings)


async def _start_server(folder: Path, name: str) -> str:
    """Ask the running `voltroute up` for another server, and wait until its database is there; the DSN."""
    with editing_state(folder) as state:
        wanted = with_server(state, name)
        save_state(folder, wanted)
    try:
        async with asyncio.timeout(SERVER_TIMEOUT_S):
            while True:
                try:
                    await make_database(wanted, name)
                except ShardError:
                    await asyncio.sleep(0.1)
                else:
                    return wanted.dsn(name)
    except TimeoutError:
        message = f"the server of {name} did not start within {SERVER_TIMEOUT_S:g} s: see {folder}/logs/{name}.log"
        raise MachineError(message) from None


def _stop_server_if_unknown(data: Path | None, folder: Path, name: str) -> None:
    """A server whose shard was refused is not kept."""
    known = with_catalog(data, lambda catalog: catalog.shards(deadline_in(TIMEOUT_S)))
    if name not in {record.name for record in known}:
        with editing_state(folder) as state:
            save_state(folder, without_server(state, name))


def drain(
    name: NameArgument,
    data: DataOption = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let it have buckets again.")] = False,
    parallel: Parallel = PARALLEL_DEFAULT,
    rate_mb: RateMb = None,
    keep: Keep = KEEP_DEFAULT_S,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it; Ctrl-C only stops watching.")] = False,
    json: JsonOption = False,
) -> None:
    """Move everything off a shard, and plan nothing onto it from now on."""
    if undo:
        with_catalog(data, lambda catalog: draining.undo(catalog, name))
        tell({"shard": name, "draining": False}, f"{name} may have buckets again", json=json)
        return
    number = with_catalog(data, lambda catalog: draining.drain(catalog, name, pace_of(parallel, rate_mb, keep)))
    document, then = {"shard": name, "draining": True, "rebalance": number}, f"voltroute shard remove {name}"
    if number is None:
        tell(document, f"{name} owns nothing. Take it out with:  {then}", json=json)
    elif watch:
        ended = watch_to_the_end(data, json=json)
        tell(document, f"{'Take it out' if ended else 'When it is empty, take it out'} with:  {then}", json=json)
    else:
        text = f"{name} is being emptied (rebalance {number}); watch it with:  voltroute rebalance watch"
        tell(document, text, json=json)


def weight(
    name: NameArgument,
    share: Annotated[float, typer.Argument(min=0.001, max=1000, help="Share beside the others'.")],
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """How much a shard should hold beside the others. Moves nothing: a rebalance does."""
    with_catalog(data, lambda catalog: shards.set_weight(catalog, name, share))
    text = f"weight of {name}: {share:g}. Next:  voltroute rebalance plan"
    tell({"shard": name, "weight": share}, text, json=json)


def remove(
    name: NameArgument,
    data: DataOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also when the shard does not answer, or says that it still has something.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Take an empty shard out; the shard itself is asked. An embedded server goes with its folder, unless forced."""
    with_catalog(data, lambda catalog: shards.remove_shard(catalog, name, force=force))
    settings = load_settings()
    if (data is not None or settings.catalog_dsn is None) and not force:
        folder = data_folder(data, settings)
        with editing_state(folder) as state:
            save_state(folder, without_server(state, name))
    tell({"shard": name, "removed": True}, f"{name} is not a shard any more", json=json)


def shard_list(data: DataOption = None, json: JsonOption = False, show_secrets: SecretsOption = False) -> None:
    """Shards as the catalog knows them, and what each says of itself. Its DSN is in --json."""
    records, shard_map = asyncio.run(read_cluster(find_catalog(data, load_settings())))
    seen = asyncio.run(survey(records, shard_map))
    if not json:
        print_table(COLUMNS, map(row_of, seen))
        for each in seen:
            if each.detail:
                say(f"{each.name}: {each.detail}")
        return
    dsns = {record.name: record.owner_dsn for record in records}
    print_json(
        [
            {
                "name": each.name,
                "dsn": dsns[each.name] if show_secrets else redact(dsns[each.name]),
                "state": each.state,
                "buckets": list(each.mapped),
                "reachable": each.answers,
                "latency_ms": each.latency_ms,
                "version": each.version,
                "size_bytes": each.size_bytes,
                "readings_estimate": each.readings,
                "detail": each.detail,
            }
            for each in seen
        ]
    )


def accept(name: NameArgument, data: DataOption = None, json: JsonOption = False) -> None:
    """Believe a shard's server again: after it was restored, or upgraded in place. Routers refuse it until then."""
    found = with_catalog(data, lambda catalog: shards.accept(catalog, name))
    document = {"shard": name, "system": str(found.system), "timeline": found.timeline}
    tell(document, f"{name} is the server with system {found.system}, timeline {found.timeline}", json=json)


shard_app.command("list")(shard_list)
shard_app.command("add")(add)
shard_app.command("drain")(drain)
shard_app.command("remove")(remove)
shard_app.command("weight")(weight)
shard_app.command("accept")(accept)
shard_app.command("replicas")(list_replicas)
shard_app.command("add-replica")(add_replica)
shard_app.command("remove-replica")(remove_replica)
shard_app.command("promote")(promote)
