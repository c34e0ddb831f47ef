"""rebalance, runner, check: planning moves, starting and steering them, watching, and proving what must hold."""

import asyncio
import contextlib
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from router.background import leader_of
from router.cli import plan as planning
from router.cli.catalog import with_catalog
from router.cli.plan import By, PlanFile, Threshold, Weights, weights_of
from router.cli.show.moves import closing_line, print_status, watch_moves
from router.cli.show.output import errors, exit_unless_ok, print_json, say, show_findings, tell
from router.cli.target import DataOption, JsonOption, configure_log, find_catalog, load_settings
from router.reads.rebalance import status as rebalance_status
from router.server import stop_on_signals
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import InvalidArgument
from shards.moves import rebalances
from shards.moves.loads import written_since
from shards.moves.phases import RebalanceState, Role
from shards.moves.placement import THRESHOLD_DEFAULT, PlannedMove
from shards.operations import check as invariants
from shards.operations import rebalance as operation
from shards.operations import recover as recovery
from shards.operations import resolve as resolution
from shards.operations import verify as verification
from shards.operations.plan import plan_now
from shards.operations.rebalance import KEEP_DEFAULT_S, PARALLEL_DEFAULT, Pace

TIMEOUT_S: Final = 10.0

rebalance_app = typer.Typer(help="Moving buckets between shards, while traffic runs.", no_args_is_help=True)
rebalance_app.command("plan")(planning.plan)
Parallel = Annotated[int, typer.Option(min=1, max=64, help="Moves at a time, of different shards.")]
RateMb = Annotated[float | None, typer.Option(min=0.1, help="Copy at most so many MiB a second, each move.")]
Keep = Annotated[
    float,
    typer.Option(min=0, max=604800, help="Seconds for which the old copy is kept after a cutover, for a rollback."),
]


@rebalance_app.command("start")
def start(
    plan_file: Annotated[Path | None, typer.Argument(help="A plan of `plan --out`; none: plan now.")] = None,
    data: DataOption = None,
    by: By = "bytes",
    threshold: Threshold = THRESHOLD_DEFAULT,
    weight: Weights = None,
    parallel: Parallel = PARALLEL_DEFAULT,
    rate_mb: RateMb = None,
    keep: Keep = KEEP_DEFAULT_S,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it; Ctrl-C only stops watching.")] = False,
    json: JsonOption = False,
) -> None:
    """Start moving buckets, in the routers' background."""

    async def work(catalog: Catalog) -> int | None:
        moves, reason = _read(plan_file) if plan_file is not None else await _planned(catalog)
        return await operation.start(catalog, moves, reason, pace_of(parallel, rate_mb, keep))

    async def _planned(catalog: Catalog) -> tuple[list[PlannedMove], str]:
        planned = await plan_now(catalog, by, threshold, weights_of(weight))
        return list(planned.plan.moves), f"by {by}"

    number = with_catalog(data, work)
    if json:
        print_json({"rebalance": number})
    elif number is None:
        say("nothing to move")
    elif watch:
        watch_to_the_end(data)
    else:
        say(f"rebalance {number} is started; watch it with:  voltroute rebalance watch")


def _read(plan_file: Path) -> tuple[list[PlannedMove], str]:
    try:
        read = msgspec.json.decode(plan_file.read_bytes(), type=PlanFile)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"{plan_file} is not a plan: {error}") from None
    return read.moves, read.reason


def pace_of(parallel: int, rate_mb: float | None, keep: float) -> Pace:
    """The options of a rebalance, as operations take them."""
    return Pace(parallel, None if rate_mb is None else int(rate_mb * 2**20), keep)


def watch_to_the_end(data: Path | None, *, json: bool = False) -> bool:
    """Show the moves until they end; exit code 1 unless all were done. False when Ctrl-C stopped only the watching."""

    async def work(catalog: Catalog) -> str | None:
        with contextlib.suppress(asyncio.CancelledError):
            state = await watch_moves(catalog, json=json)
            if not json:
                await _close(catalog)
            return state
        return None

    try:
        state = with_catalog(data, work)
    except KeyboardInterrupt:
        state = None
    if state is None:
        errors.print("not watching any more; the moves go on (see `voltroute rebalance status`)")
    elif state != RebalanceState.DONE:
        raise typer.Exit(1)
    return state is not None


async def _close(catalog: Catalog) -> None:
    """The last word on a rebalance: what was moved, what was written meanwhile, what was verified."""
    deadline = deadline_in(TIMEOUT_S)
    found = await rebalances.latest(catalog, deadline)
    shard_map = await catalog.shard_map(deadline)
    if found is None or shard_map is None:
        return
    records = {record.name: record for record in await catalog.shards(deadline)}
    written = await written_since(records, shard_map, found[0].created_at)
    say(closing_line(*found, written))


@rebalance_app.command("watch")
def watch_command(data: DataOption = None, json: JsonOption = False) -> None:
    """Watch the moves until they end. Ctrl-C only stops watching. --json: a document for each change."""
    watch_to_the_end(data, json=json)


@rebalance_app.command("status")
def status_command(data: DataOption = None, json: JsonOption = False) -> None:
    """The moves, who carries them out, and why nothing happens if nothing does."""
    answer = with_catalog(data, lambda catalog: rebalance_status(catalog, deadline_in(TIMEOUT_S), reasons=True))
    if json:
        print_json(msgspec.to_builtins(answer))
    else:
        print_status(answer)


@rebalance_app.command("pause")
def pause(data: DataOption = None, json: JsonOption = False) -> None:
    """Begin no further move; those under way are finished."""
    with_catalog(data, operation.pause)
    tell({"paused": True}, "paused: no further move begins", json=json)


@rebalance_app.command("resume")
def resume(data: DataOption = None, json: JsonOption = False) -> None:
    """Continue after a pause."""
    with_catalog(data, operation.resume)
    tell({"paused": False}, "running", json=json)


@rebalance_app.command("cancel")
def cancel(data: DataOption = None, json: JsonOption = False) -> None:
    """End all moves that are not past their fence; what they copied is dropped. Cutovers that were made stay."""
    count = with_catalog(data, operation.cancel)
    tell({"ending": count}, f"{count} moves are being ended; those past their fence are finished", json=json)


@rebalance_app.command("rollback")
def rollback(
    move: Annotated[
        int | None, typer.Argument(help="Number of a move; none: all whose old copy is still kept.")
    ] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Give buckets back to where they came from, with what was written since, while the old copy is kept (--keep)."""
    asked = with_catalog(data, lambda catalog: operation.roll_back(catalog, move))
    tell(
        {"rolling_back": asked},
        f"{asked} moves are being rolled back; see `voltroute rebalance watch`",
        json=json,
    )


@rebalance_app.command("verify")
def verify(data: DataOption = None, json: JsonOption = False) -> None:
    """Compare every old copy that is still kept, and every held move's two sides, row by row."""
    found = with_catalog(data, verification.verify)
    show_findings(found, json=json)
    if not found and not json:
        say("no old copy is kept: each was compared before it was removed")
    exit_unless_ok(found)


@rebalance_app.command("resolve")
def resolve(
    move: Annotated[int, typer.Argument(help="Number of a held move.")],
    data: DataOption = None,
    keep: Annotated[Role | None, typer.Option(help="Who keeps the bucket, with every reading of both.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again: the reason was removed.")] = False,
    accept_differences: Annotated[
        bool,
        typer.Option("--accept-differences", help="Where both have one key with other values, the keeper's stays."),
    ] = False,
    other_is_gone: Annotated[
        bool, typer.Option("--other-is-gone", help="The other shard is lost for good, with what only it had.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Decide about a move that waits for you. Look first with `voltroute rebalance verify`."""
    if retry == (keep is not None):
        raise typer.BadParameter("give --retry, or --keep source, or --keep target")
    if keep is None:
        with_catalog(data, lambda catalog: resolution.retry(catalog, move))
        text = f"move {move} is tried again; see `voltroute rebalance status`"
        tell({"move": move, "retry": True}, text, json=json)
        return
    with_catalog(
        data,
        lambda catalog: resolution.keep(catalog, move, keep, forced=accept_differences, alone=other_is_gone),
    )
    text = f"the {keep} keeps the bucket of move {move}; see `voltroute rebalance watch`"
    tell({"move": move, "keep": keep}, text, json=json)


@rebalance_app.command("recover")
def recover(data: DataOption = None, json: JsonOption = False) -> None:
    """What a restored catalog has forgotten and shards remember: moves become held ones, the map follows the shards."""
    found = with_catalog(data, recovery.recover)
    if json:
        print_json(asdict(found))
        return
    for each in found.moves:
        say(f"move {each.move_id} of bucket {each.bucket}, {each.source} -> {each.target}: {each.told}")
    for bucket, name in sorted(found.buckets.items()):
        say(f"bucket {bucket} is on {name} alone: the map says so again")
    if found.moves:
        say("look with `voltroute rebalance verify`, then decide with `resolve`")
    elif not found.buckets:
        say("no shard remembers anything that the catalog has forgotten")


def check(data: DataOption = None, json: JsonOption = False) -> None:
    """Every invariant of the cluster: identities, owners, fences, tables, schema, held moves."""
    found = with_catalog(data, invariants.check)
    show_findings(found, json=json)
    exit_unless_ok(found)


def runner_command(data: DataOption = None, json: JsonOption = False) -> None:
    """Stand for election as leader (moves, partitions, lifecycle) without serving requests."""
    settings = load_settings()
    configure_log(settings)
    dsn = find_catalog(data, settings)

    async def run() -> None:
        catalog = Catalog(dsn)
        every_s = settings.partitions_s, settings.lifecycle_s, settings.rollups_s
        leader, _ = leader_of(catalog, f"{socket.gethostname()}:runner-{os.getpid()}", every_s)
        working = asyncio.create_task(leader.run())
        stopping = asyncio.create_task(stop_on_signals().wait())
        if json:
            print_json({"standing_by": True})
        errors.print("standing by for moves; Ctrl-C ends this")
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        stopping.cancel()
        ended = (await asyncio.gather(working, return_exceptions=True))[0]
        await catalog.close()
        if isinstance(ended, Exception):
            raise ended

    asyncio.run(run())
