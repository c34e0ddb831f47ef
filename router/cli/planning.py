"""What a rebalance would do: planning from the cluster as it is, showing a plan, carrying one to `start`."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from router.cli.output import print_json, print_table, say
from router.cli.target import DataOption, JsonOption, find_catalog, load_settings
from shards import rebalances
from shards.catalog import Catalog, ShardRecord, deadline_in
from shards.errors import ClusterError, InvalidArgument
from shards.loads import bucket_loads
from shards.placement import THRESHOLD_DEFAULT, Load, Place, Plan, PlannedMove, costs_of, make_plan, totals

TIMEOUT_S: Final = 10.0
SAMPLE_S: Final = 5.0
COPY_RATE_ASSUMED: Final = 20 * 2**20  # bytes a second, before any move was measured
PARALLEL: Final = 2

By = Annotated[
    str, typer.Option(help="What to even out: bytes, or rate (readings written a second, measured for 5 s).")
]
Threshold = Annotated[
    float, typer.Option(min=0, help="Nothing moves while the fullest shard is at most this above its share.")
]
Weights = Annotated[list[str] | None, typer.Option("--weight", help="NAME=WEIGHT, for this plan only. Repeatable.")]

Result = TypeVar("Result")


class PlanFile(msgspec.Struct, frozen=True):
    """A plan on its way from `plan --out` to `start`."""

    epoch: int
    reason: str
    moves: list[PlannedMove]


def with_catalog(data: Path | None, work: Callable[[Catalog], Awaitable[Result]]) -> Result:
    """Run `work` with the catalog that a command is about."""
    dsn = find_catalog(data, load_settings())

    async def run() -> Result:
        catalog = Catalog(dsn)
        try:
            return await work(catalog)
        finally:
            await catalog.close()

    return asyncio.run(run())


async def plan_now(
    catalog: Catalog, by: str, threshold: float, weights: dict[str, float]
) -> tuple[Plan, list[Load], int, list[ShardRecord]]:
    """A plan for the cluster as it is, the loads behind it, the epoch it holds for, and the shards."""
    if by not in {"bytes", "rate"}:
        message = f"--by {by}: bytes or rate"
        raise InvalidArgument(message)
    deadline = deadline_in(TIMEOUT_S)
    records = await catalog.shards(deadline)
    shard_map = await catalog.shard_map(deadline)
    if shard_map is None:
        message = "the catalog has no shard map: `voltroute init` was not finished"
        raise ClusterError(message)
    unknown = weights.keys() - {record.name for record in records}
    if unknown:
        message = f"--weight: there is no shard {', '.join(sorted(unknown))}"
        raise InvalidArgument(message)
    loads = await bucket_loads({r.name: r for r in records}, shard_map, SAMPLE_S if by == "rate" else 0.0)
    places = [Place(r.name, weights.get(r.name, r.weight), r.state == "draining") for r in records]
    made = make_plan(shard_map.owners, costs_of(loads, by), places, threshold)
    return made, loads, shard_map.epoch, records


def weights_of(entries: list[str] | None) -> dict[str, float]:
    """NAME=WEIGHT entries; InvalidArgument for one that is none."""
    found = {}
    for entry in entries or ():
        name, _, text = entry.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            message = f"--weight {entry}: NAME=NUMBER is expected"
            raise InvalidArgument(message) from None
        if not 0 < found[name] <= 1000:
            message = f"--weight {entry}: more than 0, at most 1000"
            raise InvalidArgument(message)
    return found


def _percent(imbalance: float) -> str:
    return "a shard that should be empty is not" if math.isinf(imbalance) else f"{imbalance:.0%}"


def plan(
    data: DataOption = None,
    by: By = "bytes",
    threshold: Threshold = THRESHOLD_DEFAULT,
    weight: Weights = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan to a file, for `start`.")] = None,
    json: JsonOption = False,
) -> None:
    """What a rebalance would do. Changes nothing."""

    async def work(catalog: Catalog) -> tuple[Plan, list[Load], int, list[ShardRecord], float | None]:
        made = await plan_now(catalog, by, threshold, weights_of(weight))
        return *made, await rebalances.copy_rate(catalog, deadline_in(TIMEOUT_S))

    made, loads, epoch, records, rate = with_catalog(data, work)
    size = sum(loads[move.bucket].size_bytes for move in made.moves)
    seconds = size / (rate or COPY_RATE_ASSUMED) + len(made.moves)
    if out is not None:
        out.write_bytes(msgspec.json.encode(PlanFile(epoch, f"by {by}", list(made.moves))))
    if json:
        print_json(_plan_json(made, loads, records, seconds))
        return
    _print_plan(made, loads, records)
    if not made.moves:
        say(f"nothing to move: imbalance {_percent(made.imbalance_before)}, threshold {threshold:.0%}")
        return
    measured = "measured" if rate else "assumed"
    say(
        f"{len(made.moves)} moves, {size / 2**20:,.1f} MiB; imbalance {_percent(made.imbalance_before)} -> "
        f"{_percent(made.imbalance_after)}; about {seconds:,.0f} s ({measured} copy rate, {PARALLEL} at a time less)"
    )
    say(f"start it with:  voltroute rebalance start{f' {out}' if out else ''} --watch")


def _print_plan(made: Plan, loads: list[Load], records: list[ShardRecord]) -> None:
    before, after = totals(made.before, loads), totals(made.after, loads)
    rows = []
    for record in records:
        (b0, r0, s0), (b1, r1, s1) = before.get(record.name, (0, 0, 0)), after.get(record.name, (0, 0, 0))
        rows.append(
            (
                record.name,
                record.state,
                f"{b0} -> {b1}",
                f"{r0:,} -> {r1:,}",
                f"{s0 / 2**20:,.1f} -> {s1 / 2**20:,.1f} MiB",
            )
        )
    print_table(("shard", "state", "buckets", "readings", "size"), rows)


def _plan_json(made: Plan, loads: list[Load], records: list[ShardRecord], seconds: float) -> dict[str, Any]:
    before, after = totals(made.before, loads), totals(made.after, loads)

    def held(found: Any, name: str) -> dict[str, int]:
        return dict(zip(("buckets", "rows", "bytes"), found.get(name, (0, 0, 0)), strict=True))

    finite = {name: None if math.isinf(v) else v for name, v in _imbalances(made).items()}
    return {
        "moves": [{"bucket": m.bucket, "source": m.source, "target": m.target} for m in made.moves],
        "shards": [
            {"name": r.name, "state": r.state, "before": held(before, r.name), "after": held(after, r.name)}
            for r in records
        ],
        **finite,
        "bytes": sum(loads[move.bucket].size_bytes for move in made.moves),
        "estimated_s": round(seconds, 1),
    }


def _imbalances(made: Plan) -> dict[str, float]:
    return {"imbalance_before": made.imbalance_before, "imbalance_after": made.imbalance_after}
