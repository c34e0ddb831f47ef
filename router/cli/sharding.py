"""shard add, drain, remove: changing which shards a cluster has."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from router.cli.output import print_json, say, say_check
from router.cli.planning import PARALLEL, plan_now, with_catalog
from router.cli.rebalancing import KEEP_S, Keep, Parallel, RateMb, begin, watch_to_the_end
from router.cli.target import DataOption, JsonOption, data_folder, find_catalog, load_settings
from shards import membership, rebalances
from shards.catalog import Catalog, check_names, deadline_in
from shards.embedded.cluster import make_database
from shards.embedded.state import editing_state, save_state, with_server, without_server
from shards.errors import ClusterError, Refused, ShardError
from shards.placement import THRESHOLD_DEFAULT

SERVER_TIMEOUT_S: Final = 60.0
TIMEOUT_S: Final = 10.0
NameArgument = Annotated[str, typer.Argument(help="Name of the shard.")]


def add(
    name: NameArgument,
    data: DataOption = None,
    dsn: Annotated[
        str | None, typer.Option(help="DSN of its database, as owner; none: another embedded server.")
    ] = None,
    weight: Annotated[float, typer.Option(min=0.001, max=1000, help="Its share beside the others'.")] = 1.0,
    json: JsonOption = False,
) -> None:
    """Add an empty shard. Moves nothing: a rebalance does."""
    check_names({name: ""})
    find_catalog(data, load_settings())
    embedded = _embedded_folder(data) if dsn is None else None

    async def work(catalog: Catalog) -> list[membership.Finding]:
        target = dsn or await _start_server(_required(embedded), name)
        return await membership.add_shard(catalog, name, target, weight)

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
    """The folder of the embedded cluster that the command is about; ClusterError when the cluster is another kind."""
    settings = load_settings()
    if data is None and settings.catalog_dsn is not None:
        message = "this cluster's servers are your own: give the new shard's database with --dsn"
        raise ClusterError(message)
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
        message = (
            f"the server of {name} did not start within {SERVER_TIMEOUT_S:g} s: see {folder / name}/postgresql.log"
        )
        raise ClusterError(message) from None


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
    parallel: Parallel = PARALLEL,
    rate_mb: RateMb = None,
    keep: Keep = KEEP_S,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it; Ctrl-C only stops watching.")] = False,
) -> None:
    """Move everything off a shard, and plan nothing onto it from now on."""

    async def work(catalog: Catalog) -> int | None:
        if not await catalog.set_shard_state(name, "active" if undo else "draining", deadline_in(TIMEOUT_S)):
            message = f"there is no shard {name}"
            raise Refused(message)
        if undo:
            return None
        if await rebalances.open_rebalance(catalog, deadline_in(TIMEOUT_S)) is not None:
            message = (
                f"{name} is marked as draining, but a rebalance is open: when it has ended, give this command again"
            )
            raise Refused(message)
        try:
            made = (await plan_now(catalog, "bytes", THRESHOLD_DEFAULT, {}))[0]
        except Refused:
            await catalog.set_shard_state(name, "active", deadline_in(TIMEOUT_S))
            raise
        reason = f"drain of {name}"
        return await begin(catalog, list(made.moves), reason, parallel=parallel, rate_mb=rate_mb, keep=keep)

    number = with_catalog(data, work)
    if undo:
        say(f"{name} may have buckets again")
    elif number is None:
        say(f"{name} owns nothing. Take it out with:  voltroute shard remove {name}")
    elif watch:
        watch_to_the_end(data)
        say(f"Take it out with:  voltroute shard remove {name}")
    else:
        say(f"{name} is being emptied (rebalance {number}); watch it with:  voltroute rebalance watch")


def weight(
    name: NameArgument,
    share: Annotated[float, typer.Argument(min=0.001, max=1000, help="Share beside the others'.")],
    data: DataOption = None,
) -> None:
    """How much a shard should hold beside the others. Moves nothing: a rebalance does."""
    if not with_catalog(data, lambda catalog: catalog.set_shard_weight(name, share, deadline_in(TIMEOUT_S))):
        message = f"there is no shard {name}"
        raise Refused(message)
    say(f"weight of {name}: {share:g}. Next:  voltroute rebalance plan")


def remove(name: NameArgument, data: DataOption = None) -> None:
    """Take an empty shard out; refused while it owns buckets. An embedded server goes with its folder."""
    with_catalog(data, lambda catalog: membership.remove_shard(catalog, name))
    settings = load_settings()
    if data is not None or settings.catalog_dsn is None:
        folder = data_folder(data, settings)
        with editing_state(folder) as state:
            save_state(folder, without_server(state, name))
    say(f"{name} is not a shard any more")
