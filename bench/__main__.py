"""`python -m bench`: list, run, all, compare, report. Exit code 1 when a target or the ledger fails."""

import asyncio
import gc
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from bench.capacity import HEADER, Kept, Measured, Prices
from bench.capacity import capacity as capacity_of
from bench.context import Context
from bench.http1 import ConnectionLost
from bench.ledger import LedgerError
from bench.machine import machine
from bench.measure import MeasurementError
from bench.progress import Bar
from bench.report import print_comparison, print_run, write_html
from bench.results import Run, ScenarioResult, decode, encode
from bench.scenarios import SCENARIOS
from bench.systems import VOLTROUTE, System

WIDE = 120  # columns where there is no terminal

app = typer.Typer(
    help="The bench suite: ratios against baselines measured in the same run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
errors = Console(stderr=True, highlight=False)

Rounds = Annotated[int, typer.Option(min=1, help="Rounds; figures are medians over them.")]
Seconds = Annotated[float, typer.Option(min=0.5, help="Length of one measurement.")]
Shards = Annotated[int, typer.Option(min=1, help="Shards of the suite's own cluster.")]
Url = Annotated[str | None, typer.Option(help="A router that runs already, instead of the suite's own cluster.")]
ShardDsns = Annotated[
    list[str] | None, typer.Option("--shard", help="NAME=DSN of that router's shards, for the ledger.")
]
Full = Annotated[bool, typer.Option("--full", help="Data of full size for backlog and analytics: many minutes.")]
P99 = Annotated[float, typer.Option(min=1, help="What `maximum` may not exceed, in milliseconds.")]
Minutes = Annotated[float, typer.Option(min=0.1, help="Of `chaos`, each round.")]
Seed = Annotated[int, typer.Option(help="Of `chaos`; each round has the next one.")]
Out = Annotated[Path | None, typer.Option(help="Where to write the run as JSON.")]
Slo = Annotated[bool, typer.Option("--slo", help="Exit with 1 when a target is missed.")]


@app.command("list")
def list_scenarios() -> None:
    """The scenarios."""
    for name, scenario in SCENARIOS.items():
        console.print(f"{name:11} {scenario.text}")


@app.command()
def run(
    names: Annotated[list[str], typer.Argument(help="Scenarios.")],
    rounds: Rounds = 3,
    seconds: Seconds = 5,
    shards: Shards = 4,
    url: Url = None,
    shard: ShardDsns = None,
    full: Full = False,  # noqa: FBT002 - a flag of the command line
    p99_ms: P99 = 50,
    minutes: Minutes = 2,
    seed: Seed = 1,
    out: Out = None,
    slo: Slo = False,  # noqa: FBT002
) -> None:
    """Run some scenarios."""
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        message = f"unknown: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}"
        raise typer.BadParameter(message)
    target = System(VOLTROUTE, url, dict(entry.split("=", 1) for entry in shard or ())) if url else None
    _settle_garbage_collector()
    with Bar(errors) as progress:
        context = Context(rounds, seconds, shards, progress, target, full, p99_ms, minutes, seed)
        found = uvloop.run(_run(context, names))
    options = {"rounds": rounds, "seconds": seconds, "shards": shards, "full": full, "url": url or "own cluster"}
    shown = {name: str(value) for name, value in options.items()}
    made = Run(datetime.now(UTC).isoformat(timespec="seconds"), machine(), shown, found)
    print_run(made, console)
    if out is not None:
        out.write_bytes(encode(made))
    if slo and any(scenario.failed() for scenario in found):
        raise typer.Exit(1)


async def _run(context: Context, names: list[str]) -> list[ScenarioResult]:
    return [await SCENARIOS[name].run(context) for name in names]


@app.command("all")
def run_all(
    rounds: Rounds = 3,
    seconds: Seconds = 5,
    shards: Shards = 4,
    full: Full = False,  # noqa: FBT002
    p99_ms: P99 = 50,
    out: Out = None,
    slo: Slo = False,  # noqa: FBT002
) -> None:
    """Run every scenario."""
    run(list(SCENARIOS), rounds, seconds, shards, None, None, full, p99_ms, out=out, slo=slo)


@app.command()
def peers(
    rounds: Rounds = 3,
    seconds: Seconds = 3,
    shards: Shards = 4,
    out: Out = None,
    slo: Slo = False,  # noqa: FBT002
) -> None:
    """Beside other systems that take readings over HTTP: those that this machine has."""
    run(["peers"], rounds, seconds, shards, None, None, False, 50, out=out, slo=slo)


@app.command("scale-model")
def scale_model(rounds: Rounds = 3, seconds: Seconds = 2, out: Out = None) -> None:
    """What 10 thousand, 1 million and 10 million devices need, by what small clusters cost here."""
    run(["scale-model"], rounds, seconds, 4, None, None, False, 50, out=out, slo=False)


@app.command()
def capacity(
    runs: Annotated[list[Path], typer.Argument(help="Runs of scale-model and storage, as JSON.")],
    devices: Annotated[list[int], typer.Option(min=1, help="How many; may be repeated.")],
    hot: Annotated[int, typer.Option(min=1, help="Days that readings stay hot.")] = Kept.hot,
    packed: Annotated[int, typer.Option(min=0, help="Days packed on a shard, after that.")] = Kept.packed,
    archived: Annotated[int, typer.Option(min=0, help="Days in the archive, after that.")] = Kept.archived,
    core: Annotated[float, typer.Option(min=0, help="Price of a core a month.")] = 0,
    disk_tb: Annotated[float, typer.Option(min=0, help="Price of a terabyte of the shards' disks a month.")] = 0,
    object_tb: Annotated[float, typer.Option(min=0, help="Price of a terabyte of the object store a month.")] = 0,
) -> None:
    """What fleets need, and cost by your prices, as measured in your runs: a table."""
    measured, prices = Measured.of([decode(run.read_bytes()) for run in runs]), Prices(core, disk_tb, object_tb)
    console.print(f"| {' | '.join(HEADER)} |", soft_wrap=True, markup=False)
    console.print("|---" * len(HEADER) + "|", soft_wrap=True, markup=False)
    for each in devices:
        found = capacity_of(measured, Kept(hot, packed, archived), each)
        console.print(f"| {' | '.join(found.row(prices))} |", soft_wrap=True, markup=False)


@app.command()
def compare(before: Path, after: Path) -> None:
    """Ratios of two runs of one machine."""
    print_comparison(decode(before.read_bytes()), decode(after.read_bytes()), console)


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="A run, as JSON.")],
    target: Annotated[Path, typer.Argument(help="The page to write.")],
) -> None:
    """A page with plots."""
    write_html(decode(source.read_bytes()), target)
    console.print(f"wrote {target}")


def _settle_garbage_collector() -> None:
    """No full collection of this process' start-up objects is to be counted as somebody's latency."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except (LedgerError, MeasurementError, ConnectionLost, OSError, msgspec.ValidationError) as error:
        errors.print("error:", str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except asyncio.CancelledError:
        sys.exit(130)


if __name__ == "__main__":
    main()
