"""simulate: readings of a fleet that does not exist, into a router."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx2
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from router.cli.sending import URL_DEFAULT, KeyOption, UrlOption, key_of, report
from router.cli.show.output import errors
from router.fleet import sender
from router.fleet.client import RouterClient, RouterRefused
from router.fleet.devices import REPORT_INTERVAL, new_fleet
from router.fleet.stream import Rates
from shards.errors import ClusterError


def simulate(
    url: UrlOption = URL_DEFAULT,
    key: KeyOption = None,
    devices: Annotated[int, typer.Option(min=2, max=1_000_000, help="Half meters, half vehicles.")] = 1_000,
    rate: Annotated[float, typer.Option(min=0.01, max=100_000, help="Readings a second.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same fleet.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=20_000, help="Readings in a request.")] = 1,
    faulty: Annotated[float, typer.Option(min=0, max=1, help="Share of chargers that waste energy.")] = 0.05,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of readings sent twice.")] = 0.01,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share of readings held back for 5 to 60 s.")] = 0.01,
    out_of_order: Annotated[
        float, typer.Option(min=0, max=1, help="Share of readings sent after a younger one.")
    ] = 0.02,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Simulate a fleet: charging curves, times of day, faults, and a network that delays and repeats."""
    progress = sender.Progress()
    rates = Rates(duplicates, late, out_of_order)
    try:
        asyncio.run(_simulate((url, key_of(key)), devices, rate, seconds, seed, batch, faulty, rates, progress))
    except RouterRefused as error:
        raise ClusterError(str(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        message = f"{url}: {error or type(error).__name__}"
        raise ClusterError(message) from error
    extra: dict[str, Any] = {"sent": progress.sent, "skipped": progress.skipped}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        value = progress.percentile(share)
        extra[name] = None if value is None else round(value * 1000, 2)
    report(progress.tally, extra, json=json)
    if progress.tally.failed or progress.skipped:
        raise typer.Exit(1)


async def _simulate(
    router: tuple[str, str | None],
    devices: int,
    rate: float,
    seconds: float,
    seed: int,
    batch: int,
    faulty: float,
    rates: Rates,
    progress: sender.Progress,
) -> None:
    start = datetime.now(UTC) - REPORT_INTERVAL  # the first readings tell of the minute before
    fleet = new_fleet(devices, seed, faulty, start)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[seen]}"))
    async with RouterClient(*router) as client:
        await sender.pair_all(client, fleet, start)
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
            task = bar.add_task("simulating", total=seconds, seen="")
            watching = asyncio.create_task(_watch(bar, task, progress))
            await sender.simulate(client, fleet, rate, seconds, batch, rates, progress)
            watching.cancel()


async def _watch(bar: Progress, task: Any, progress: sender.Progress) -> None:
    while True:
        await asyncio.sleep(0.5)
        bar.update(task, advance=0.5, seen=f"{progress.tally.accepted:,} stored")
