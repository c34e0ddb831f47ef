"""rebalance, runner, check: planning moves, starting and steering them, watching, and proving what must hold."""

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from router import log, rebalance
from router.cli import planning
from router.cli.moves_view import closing_line, print_status, watch_moves
from router.cli.output import errors, print_json, say, say_check
from router.cli.planning import (
    PARALLEL,
    TIMEOUT_S,
    By,
    PlanFile,
    Threshold,
    Weights,
    plan_now,
    weights_of,
    with_catalog,
)
from router.cli.target import DataOption, JsonOption, find_catalog, load_settings
from router.server import stop_on_signals
from shards import invariants, rebalances
from shards.catalog import Catalog, deadline_in
from shards.cleanup import compare_kept
from shards.errors import InvalidArgument, Refused
from shards.fingerprints import Different
from shards.loads import written_since
from shards.moves import Phase
from shards.placement import THRESHOLD_DEFAULT, PlannedMove

KEEP_S: Final = 60.0

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
    parallel: Parallel = PARALLEL,
    rate_mb: RateMb = None,
    keep: Keep = KEEP_S,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it; Ctrl-C only stops watching.")] = False,
    json: JsonOption = False,
) -> None:
    """Start moving buckets, in the routers' background."""

    async def work(catalog: Catalog) -> int | None:
        if plan_file is not None:
            try:
                read = msgspec.json.decode(plan_file.read_bytes(), type=PlanFile)
            except (OSError, msgspec.DecodeError) as error:
                message = f"{plan_file} is not a plan: {error}"
                raise InvalidArgument(message) from None
            moves, reason = read.moves, read.reason
        else:
            made = (await plan_now(catalog, by, threshold, weights_of(weight)))[0]
            moves, reason = list(made.moves), f"by {by}"
        return await begin(catalog, moves, reason, parallel=parallel, rate_mb=rate_mb, keep=keep)

    number = with_catalog(data, work)
    if json:
        print_json({"rebalance": number})
    elif number is None:
        say("nothing to move")
    elif watch:
        watch_to_the_end(data)
    else:
        say(f"rebalance {number} is started; watch it with:  voltroute rebalance watch")


async def begin(
    catalog: Catalog, moves: list[PlannedMove], reason: str, *, parallel: int, rate_mb: float | None, keep: float
) -> int | None:
    """Hand moves to the runner; None when there are none."""
    if not moves:
        return None
    return await rebalances.start(
        catalog,
        moves,
        reason,
        parallel_max=parallel,
        bytes_per_s_max=None if rate_mb is None else int(rate_mb * 2**20),
        keep_s=keep,
        deadline=deadline_in(TIMEOUT_S),
    )


def watch_to_the_end(data: Path | None) -> None:
    """Show the moves until they end; exit code 1 unless all were done. Ctrl-C only stops watching."""

    async def work(catalog: Catalog) -> str | None:
        with contextlib.suppress(asyncio.CancelledError):
            state = await watch_moves(catalog)
            await _close(catalog)
            return state
        return None

    try:
        state = with_catalog(data, work)
    except KeyboardInterrupt:
        state = None
    if state is None:
        errors.print("not watching any more; the moves go on (see `voltroute rebalance status`)")
    elif state != "done":
        raise typer.Exit(1)


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
def watch_command(data: DataOption = None) -> None:
    """Watch the moves until they end. Ctrl-C only stops watching."""
    watch_to_the_end(data)


@rebalance_app.command("status")
def status_command(data: DataOption = None, json: JsonOption = False) -> None:
    """The moves, who carries them out, and why nothing happens if nothing does."""
    answer = with_catalog(data, lambda catalog: rebalance.status(catalog, deadline_in(TIMEOUT_S)))
    if json:
        print_json(msgspec.to_builtins(answer))
    else:
        print_status(answer)


async def _open(catalog: Catalog) -> int:
    found = await rebalances.open_rebalance(catalog, deadline_in(TIMEOUT_S))
    if found is None:
        message = "no rebalance is open"
        raise Refused(message)
    return found.rebalance_id


def _steer(data: Path | None, state: str, note: str) -> None:
    async def work(catalog: Catalog) -> None:
        await rebalances.set_state(catalog, await _open(catalog), state, note, deadline_in(TIMEOUT_S))

    with_catalog(data, work)
    say(note)


@rebalance_app.command("pause")
def pause(data: DataOption = None) -> None:
    """Begin no further move; those under way are finished."""
    _steer(data, "paused", "paused: no further move begins")


@rebalance_app.command("resume")
def resume(data: DataOption = None) -> None:
    """Go on after a pause."""
    _steer(data, "running", "running")


@rebalance_app.command("cancel")
def cancel(data: DataOption = None) -> None:
    """End all moves that are not past their fence; what they copied is dropped. Cutovers that were made stay."""

    async def work(catalog: Catalog) -> int:
        number, deadline = await _open(catalog), deadline_in(TIMEOUT_S)
        asked = await rebalances.abort(catalog, number, "cancelled", deadline)
        await rebalances.set_state(catalog, number, "cancelled", None, deadline)
        return asked

    say(f"{with_catalog(data, work)} moves are being ended; those past their fence are finished")


@rebalance_app.command("rollback")
def rollback(
    move: Annotated[
        int | None, typer.Argument(help="Number of a move; none: all whose old copy is still kept.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Give buckets back to where they came from, with what was written since, while the old copy is kept (--keep)."""
    asked = with_catalog(data, lambda catalog: rebalances.roll_back(catalog, move, deadline_in(TIMEOUT_S)))
    if not asked:
        message = "no such move is between its cutover and its cleanup: there is nothing to roll back to"
        raise Refused(message)
    say(f"{asked} moves are being rolled back; see `voltroute rebalance watch`")


@rebalance_app.command("verify")
def verify(data: DataOption = None, json: JsonOption = False) -> None:
    """Compare every old copy that is still kept with its new owner, row by row."""

    async def work(catalog: Catalog) -> list[dict[str, Any]]:
        deadline = deadline_in(TIMEOUT_S)
        records = {record.name: record for record in await catalog.shards(deadline)}
        moves = [m for m in await rebalances.open_moves(catalog, deadline) if m.phase is Phase.CLEANUP]
        found = []
        for each in moves:
            try:
                rows = await compare_kept(records[each.source], records[each.target], each)
            except Different as error:
                found.append({"bucket": each.bucket, "ok": False, "found": str(error)})
            else:
                found.append({"bucket": each.bucket, "ok": True, "found": f"{rows:,} readings are the same"})
        return found

    found = with_catalog(data, work)
    if json:
        print_json(found)
    else:
        for each in found:
            say_check(f"bucket {each['bucket']}", each["found"], ok=each["ok"])
        if not found:
            say("no old copy is kept: each was compared before it was removed")
    if not all(each["ok"] for each in found):
        raise typer.Exit(1)


def check(data: DataOption = None, json: JsonOption = False) -> None:
    """Every invariant of the cluster: owners, fences, leftovers, schema."""
    found = with_catalog(data, invariants.check)
    if json:
        print_json([{"name": each.name, "ok": each.ok, "found": each.found} for each in found])
    else:
        for each in found:
            say_check(each.name, each.found, ok=each.ok)
    if not all(each.ok for each in found):
        raise typer.Exit(1)


def runner_command(data: DataOption = None) -> None:
    """Carry moves out without serving requests; stands by while a router does it."""
    settings = load_settings()
    log.configure(settings)
    dsn = find_catalog(data, settings)

    async def run() -> None:
        catalog = Catalog(dsn)
        working = asyncio.create_task(rebalance.new_runner(catalog).run())
        stopping = asyncio.create_task(stop_on_signals().wait())
        errors.print("standing by for moves; Ctrl-C ends this")
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        stopping.cancel()
        ended = (await asyncio.gather(working, return_exceptions=True))[0]
        await catalog.close()
        if isinstance(ended, Exception):
            raise ended

    asyncio.run(run())
