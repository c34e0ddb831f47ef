"""post and simulate: readings from a file, or from a fleet that does not exist, into a router."""

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from router.cli.show.output import errors, print_json
from router.fleet import sender
from router.fleet.client import RouterClient, RouterRefused, Tally
from router.fleet.devices import REPORT_INTERVAL, new_fleet
from router.fleet.files import STDIN, FileError, batched, read_readings
from router.fleet.stream import Rates
from router.settings import PREFIX
from shards.errors import ClusterError, InvalidArgument

URL_DEFAULT = "http://127.0.0.1:8080"
UrlOption = Annotated[str, typer.Option("--url", help="Router.", envvar=f"{PREFIX}URL")]


class KindName(StrEnum):
    """The kinds of device."""

    METER = "meter"
    VEHICLE = "vehicle"


def _summary(tally: Tally) -> dict[str, Any]:
    return {
        "accepted": tally.accepted,
        "duplicates": tally.duplicates,
        "conflicts": tally.conflicts,
        "rejected": tally.rejected,
        "failed": tally.failed,
        "retries": tally.retries,
        "errors": tally.errors,
    }


def _report(tally: Tally, extra: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json({**_summary(tally), **extra})
        return
    words = [f"{value:,} {name}" for name, value in _summary(tally).items() if name != "errors"]
    errors.print(", ".join(words + [f"{name} {value}" for name, value in extra.items()]), soft_wrap=True)
    for error in tally.errors[:5]:
        where = f"item {error['index']}{error.get('pointer', '')}: " if "index" in error else ""
        errors.print(f"  {where}{error.get('detail')}", markup=False, soft_wrap=True)


def post(
    file: Annotated[Path, typer.Argument(help="CSV with a header line, or NDJSON; - is standard input.")],
    kind: Annotated[KindName, typer.Option(help="Kind of the device.")],
    device: Annotated[str | None, typer.Option(help="Device of the lines that name none.")] = None,
    url: UrlOption = URL_DEFAULT,
    batch: Annotated[int, typer.Option(min=1, max=20_000, help="Readings in a request.")] = 1_000,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Post a file of readings, up to the first request that keeps failing.

    Repeating it is safe: what is stored already counts as duplicates, or as conflicts where its values were others.
    """
    if str(file) != STDIN and (not file.exists() or file.is_dir()):
        raise InvalidArgument(f"{file} is {'a folder' if file.is_dir() else 'not there'}: a file, or -, is expected")
    tally = Tally()
    try:
        asyncio.run(_post(tally, file, kind, device, url, batch))
    except FileError as error:
        before = f"; of the readings before it, {tally.accepted:,} were stored" if tally.accepted else ""
        raise InvalidArgument(f"{error}{before}") from None
    except RouterRefused as error:
        raise ClusterError(str(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        message = f"{url}: {error or type(error).__name__}"
        raise ClusterError(message) from error
    if tally.total == 0:
        raise ClusterError(f"{file}: there is no reading in it")
    _report(tally, {}, json=json)
    if tally.failed or tally.rejected or tally.conflicts:
        raise typer.Exit(1)


async def _post(tally: Tally, file: Path, kind: KindName, device: str | None, url: str, batch: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(file.name, total=None)  # a pipe can be read only once, so nobody knows how much is to come
        async with RouterClient(url) as client:
            await client.get("/livez")  # a wrong URL fails here, at once
            start = 0
            for readings in batched(read_readings(file, kind, device), batch):
                answer = await client.post(f"/v1/ingest/{kind}", readings)
                answer.errors = [_shifted(error, start) for error in answer.errors]
                tally.add(answer)
                start += len(readings)
                bar.update(task, advance=len(readings))
                if answer.failed:
                    break


def _shifted(error: dict[str, Any], start: int) -> dict[str, Any]:
    """The error of an item, counted in the file instead of in the request."""
    return {**error, "index": error["index"] + start} if "index" in error else error


def simulate(
    url: UrlOption = URL_DEFAULT,
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
        asyncio.run(_simulate(url, devices, rate, seconds, seed, batch, faulty, rates, progress))
    except RouterRefused as error:
        raise ClusterError(str(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        message = f"{url}: {error or type(error).__name__}"
        raise ClusterError(message) from error
    extra: dict[str, Any] = {"sent": progress.sent, "skipped": progress.skipped}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        value = progress.percentile(share)
        extra[name] = None if value is None else round(value * 1000, 2)
    _report(progress.tally, extra, json=json)
    if progress.tally.failed or progress.skipped:
        raise typer.Exit(1)


async def _simulate(
    url: str,
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
    async with RouterClient(url) as client:
        await sender.pair_all(client, fleet, start)
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task("simulating", total=seconds, seen="")
            watching = asyncio.create_task(_watch(bar, task, progress))
            await sender.simulate(client, fleet, rate, seconds, batch, rates, progress)
            watching.cancel()


async def _watch(bar: Progress, task: Any, progress: sender.Progress) -> None:
    while True:
        await asyncio.sleep(0.5)
        bar.update(task, advance=0.5, seen=f"{progress.tally.accepted:,} stored")
