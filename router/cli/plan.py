"""What a rebalance would do: planning from the cluster as it is, showing a plan, carrying one to `start`."""

import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import print_json, print_table, say
from router.cli.target import DataOption, JsonOption
from shards.errors import InvalidArgument
from shards.moves.placement import THRESHOLD_DEFAULT, Plan, PlannedMove, totals
from shards.operations.plan import Planned, plan_now
from shards.operations.rebalance import PARALLEL_DEFAULT

By = Annotated[
    str, typer.Option(help="What to even out: bytes, or rate (readings written a second, measured for 5 s).")
]
Threshold = Annotated[
    float, typer.Option(min=0, help="Nothing moves while the fullest shard is at most this above its share.")
]
Weights = Annotated[list[str] | None, typer.Option("--weight", help="NAME=WEIGHT, for this plan only. Repeatable.")]


class PlanFile(msgspec.Struct, frozen=True):
    """A plan on its way from `plan --out` to `start`."""

    epoch: int
    reason: str
    moves: list[PlannedMove]


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
    planned = with_catalog(data, lambda catalog: plan_now(catalog, by, threshold, weights_of(weight)))
    made = planned.plan
    if out is not None:
        out.write_bytes(msgspec.json.encode(PlanFile(planned.epoch, f"by {by}", list(made.moves))))
    if json:
        print_json(_plan_json(planned))
        return
    _print_plan(planned)
    if not made.moves:
        say(f"nothing to move: imbalance {_percent(made.imbalance_before)}, threshold {threshold:.0%}")
        return
    before, after = _percent(made.imbalance_before), _percent(made.imbalance_after)
    measured = "measured" if planned.copy_rate else "assumed"
    say(
        f"{len(made.moves)} moves, {planned.size_bytes / 2**20:,.1f} MiB; imbalance {before} -> {after}; "
        f"about {planned.estimated_s:,.0f} s ({measured} copy rate, "
        f"{PARALLEL_DEFAULT} at a time less)"
    )
    say(f"start it with:  voltroute rebalance start{f' {out}' if out else ''} --watch")


def _print_plan(planned: Planned) -> None:
    made, loads, records = planned.plan, planned.loads, planned.shards
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


def _plan_json(planned: Planned) -> dict[str, Any]:
    made, loads, records = planned.plan, planned.loads, planned.shards
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
        "bytes": planned.size_bytes,
        "estimated_s": round(planned.estimated_s, 1),
    }


def _imbalances(made: Plan) -> dict[str, float]:
    return {"imbalance_before": made.imbalance_before, "imbalance_after": made.imbalance_after}
