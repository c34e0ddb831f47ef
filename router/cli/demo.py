"""demo: `up` in a temporary folder, a simulated fleet, and a live view. One Ctrl-C ends everything."""

import asyncio
import contextlib
import json as jsonlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.live import Live

from router.cli.show.live import Snapshot, curl_lines, plain_line, snapshot_of, view
from router.cli.show.output import Redraw, console, errors, print_json
from router.cli.target import JsonOption
from router.fleet import sender
from router.fleet.client import RouterClient
from router.fleet.devices import REPORT_INTERVAL, Fleet, charging_power_kw, new_fleet
from router.fleet.stream import Rates
from router.settings import Settings
from shards.errors import ClusterError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
FOREVER_S = 10 * 365 * 86_400.0


def demo(
    devices: Annotated[int, typer.Option(min=2, help="Half meters, half vehicles.")] = 1_000,
    rate: Annotated[float, typer.Option(min=0.1, help="Readings a second.")] = 300,
    shards: Annotated[int, typer.Option(min=1, max=16, help="Shards.")] = 3,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the router [8080, or a free one].")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Stop after this long [until Ctrl-C].")] = None,
    json: JsonOption = False,
) -> None:
    """Start a cluster that is thrown away at the end, a router and a fleet, and watch them."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_demo(devices, rate, shards, port, seconds or FOREVER_S, json=json))
    errors.print("stopped; nothing is left running")


async def _demo(devices: int, rate: float, shards: int, port: int | None, seconds: float, *, json: bool) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    started = time.monotonic()
    errors.print(f"starting a catalog and {shards} shards (PostgreSQL) and a router ...")
    async with _cluster(shards, port) as url, RouterClient(url) as client:
        start = datetime.now(UTC) - REPORT_INTERVAL  # the first readings tell of the minute before
        fleet = new_fleet(devices, seed=1, faulty=0.05, start=start)
        progress = sender.Progress()
        work = asyncio.create_task(_drive(client, fleet, start, rate, seconds, progress))
        wanted = Settings.model_fields["port"].default
        if port is None and not url.endswith(f":{wanted}"):
            errors.print(f"port {wanted} is taken; using {url.rpartition(':')[2]}")
        # Not in the live view: wrapped there, the lines could not be pasted.
        if json:
            print_json({"url": url, "vehicle": _charging(fleet, start)})
        else:
            console.print(curl_lines(url, _charging(fleet, start)), soft_wrap=True, markup=False, style="cyan")
        watch = asyncio.create_task(_tell(client, progress) if json else _watch(client, url, started, progress))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({work, watch, stop}, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in (work, watch) if task.done()]
        for task in (work, watch, stop):
            task.cancel()
        await asyncio.gather(work, watch, stop, return_exceptions=True)
        for task in ended:
            task.result()


def _charging(fleet: Fleet, moment: datetime) -> str:
    """A vehicle that charges now, so that there is something to see."""
    busy = [bay for bay in fleet.bays if charging_power_kw(bay, moment) > 0]
    return (busy or fleet.bays)[0].vehicle_id


async def _drive(
    client: RouterClient, fleet: Fleet, start: datetime, rate: float, seconds: float, progress: sender.Progress
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sender.pair_all(client, fleet, start))
        await sender.simulate(client, fleet, rate, seconds, 1, Rates(), progress)


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="voltroute-demo-"))
    folder.chmod(0o711)  # PostgreSQL's account must be able to enter when we are root
    return folder


@asynccontextmanager
async def _cluster(shards: int, port: int | None) -> AsyncIterator[str]:
    """`voltroute up` as a child that ends with us, however we end; gives its URL."""
    folder = _temporary_folder()
    log_path = folder / "router.log"
    command = [sys.executable, "-P", "-m", "router.cli.main", "up", "--json", "--temporary", "--until-eof"]
    command += ["--data", str(folder), "--shards", str(shards)]
    command += [] if port is None else ["--port", str(port)]
    with await asyncio.to_thread(log_path.open, "wb") as log_file:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env={**os.environ, "VOLTROUTE_LOG_FORMAT": "json"},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
    try:
        yield (await _ready(child, log_path))["url"]
    finally:
        errors.print("stopping ...")
        if child.stdin is not None:
            child.stdin.close()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await child.wait()
        shutil.rmtree(folder, ignore_errors=True)  # the child removes it, unless it never came so far


async def _ready(child: asyncio.subprocess.Process, log_path: Path) -> dict[str, Any]:
    if child.stdout is None:
        raise AssertionError
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            if line := await child.stdout.readline():
                return dict(jsonlib.loads(line))
    tail = await asyncio.to_thread(_tail, log_path)
    message = "the cluster did not start:\n" + "\n".join(tail)
    raise ClusterError(message)


def _tail(log_path: Path) -> list[str]:
    return log_path.read_text(errors="replace").splitlines()[-5:] if log_path.exists() else []


async def _watch(client: RouterClient, url: str, started: float, progress: sender.Progress) -> None:
    """Redraw once a second; a line instead when not on a terminal."""
    first: float | None = None
    previous: Snapshot | None = None
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        draw = Redraw(live) if live is not None else None
        async for current in _snapshots(client):
            if first is None and current.accepted:
                first = time.monotonic() - started
            if draw is not None:
                draw(view(url, current, previous, progress, first, console.width))
            else:
                console.print(plain_line(current, previous, progress), soft_wrap=True)
            previous = current


async def _tell(client: RouterClient, progress: sender.Progress) -> None:
    """The same for scripts: a document a second."""
    async for current in _snapshots(client):
        print_json(
            {
                "stored": current.accepted,
                "duplicates": current.outcomes["duplicate"],
                "errors": current.failed + progress.tally.failed,
                "skipped": progress.skipped,
                "p99_s": progress.percentile(0.99),
            }
        )


async def _snapshots(client: RouterClient) -> AsyncIterator[Snapshot]:
    """The router's metrics, once a second; while it does not answer, nothing."""
    while True:
        await asyncio.sleep(1)
        with contextlib.suppress(httpx2.HTTPError):
            yield snapshot_of((await client.get("/metrics")).text)
