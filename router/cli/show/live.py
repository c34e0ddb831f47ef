"""The live view of a router, drawn from what its /metrics say."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from router.fleet.sender import IN_FLIGHT_MAX, Progress

WIDE = 100  # columns of a terminal from which on all of a shard is shown
NARROW_COLUMNS = 6


@dataclass
class ShardSnapshot:
    """One shard at one moment. `readings` and `batches` count from the router's start."""

    buckets: int = 0
    readings: int = 0
    batches: int = 0
    queued: int = 0
    connections: int = 0
    up: bool = True


@dataclass
class Snapshot:
    """A router at one moment (monotonic seconds)."""

    at: float = 0.0
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    shards: dict[str, ShardSnapshot] = field(default_factory=lambda: defaultdict(ShardSnapshot))
    epoch: int = 0

    @property
    def accepted(self) -> int:
        return self.outcomes["accepted"]

    @property
    def failed(self) -> int:
        return self.outcomes["unavailable"] + self.outcomes["overloaded"]


_SUMS = {
    "voltroute_batch_readings_sum": "readings",
    "voltroute_batch_readings_count": "batches",
    "voltroute_queue_readings": "queued",
    "voltroute_pool_connections": "connections",
    "voltroute_shard_buckets": "buckets",
}


def snapshot_of(text: str) -> Snapshot:
    """What Prometheus' text format says about a router, now."""
    snapshot = Snapshot(at=time.monotonic())
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    for sample in samples:
        labels, value = sample.labels, int(sample.value)
        if name := _SUMS.get(sample.name):
            shard = snapshot.shards[labels["shard"]]
            setattr(shard, name, getattr(shard, name) + value)
        elif sample.name == "voltroute_ingest_readings_total":
            snapshot.outcomes[labels["outcome"]] += value
        elif sample.name == "voltroute_shard_up" and labels["login"] == "writer":
            snapshot.shards[labels["shard"]].up = bool(value)
        elif sample.name == "voltroute_map_epoch":
            snapshot.epoch = value
    return snapshot


def curl_lines(url: str, vehicle_id: str) -> str:
    """A line to paste for each main call."""
    post = f"curl -s {url}/v1/ingest/vehicle -H 'Content-Type: application/json' -d"
    body = (
        '{"vehicleId":"MY-EV","soc":64,"kwhDeliveredDc":0.12,"batteryTemp":24.5,"timestamp":"\'$(date -u +%FT%TZ)\'"}'
    )
    return "\n".join(
        (
            f"{post} '{body}'",
            f"curl -s {url}/v1/vehicles/MY-EV/status",
            f"curl -s '{url}/v1/vehicles/{vehicle_id}/history?limit=3'",
            f"curl -s {url}/v1/analytics/performance/{vehicle_id}",
            f"curl -s '{url}/v1/analytics/fleet?interval=1h'",
            f"curl -s '{url}/v1/analytics/activity?limit=5'",
            f"curl -s {url}/v1/shards",
            f"curl -s {url}/metrics",
        )
    )


def _rate(now: int, before: int, seconds: float) -> float:
    return (now - before) / seconds if seconds > 0 else 0.0


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _per_second(current: Snapshot, previous: Snapshot | None) -> float:
    return _rate(current.accepted, previous.accepted, current.at - previous.at) if previous else 0.0


def plain_line(current: Snapshot, previous: Snapshot | None, progress: Progress) -> str:
    """The view in one line."""
    return (
        f"{_per_second(current, previous):,.0f} readings/s, p50 {_milliseconds(progress.percentile(0.5))}, "
        f"p99 {_milliseconds(progress.percentile(0.99))}, {current.accepted:,} stored, "
        f"{current.outcomes['duplicate']:,} duplicates, {current.failed + progress.tally.failed:,} errors"
        f"{_skipped(progress)}"
    )


def _skipped(progress: Progress) -> str:
    """What the generator left out to stay bounded, which no router refused."""
    return f", {progress.skipped:,} not sent: the generator had {IN_FLIGHT_MAX} under way" if progress.skipped else ""


def view(
    url: str, current: Snapshot, previous: Snapshot | None, progress: Progress, first_s: float | None, width: int
) -> RenderableType:
    """The whole live view, for a terminal of `width` columns."""
    totals = Table.grid(padding=(0, 3))
    totals.add_row(
        Text(f"{_per_second(current, previous):,.0f} of {progress.asked:,.0f}/s", style="bold green"),
        f"p50 {_milliseconds(progress.percentile(0.5))}",
        f"p99 {_milliseconds(progress.percentile(0.99))}",
    )
    totals.add_row(
        f"{current.accepted:,} stored",
        f"{current.outcomes['duplicate']:,} duplicates",
        Text(f"{current.failed + progress.tally.failed:,} errors", style="red" if current.failed else ""),
    )
    footer = Text(f"docs {url}/docs   Ctrl-C stops everything", style="dim")
    if first_s is not None:
        footer.append(f"\nfirst readings stored {first_s:.1f} s after the start{_skipped(progress)}")
    title = f"voltroute  {url}  map epoch {current.epoch}"
    return Group(Panel(Group(totals, Text(), _shard_table(current, previous, width)), title=title), footer)


def _shard_table(current: Snapshot, previous: Snapshot | None, width: int) -> Table:
    table = Table(box=None, header_style="bold", expand=True)
    columns = ["shard", "state", "buckets", "readings", "per s", "per batch", "queued", "connections"]
    shown = len(columns) if width >= WIDE else NARROW_COLUMNS
    for column in columns[:shown]:
        table.add_column(column, justify="left" if column in {"shard", "state"} else "right", no_wrap=True)
    for name, shard in sorted(current.shards.items()):
        before = previous.shards[name] if previous else shard
        seconds = current.at - previous.at if previous else 0.0
        batches = shard.batches - before.batches
        cells: list[RenderableType] = [
            name,
            Text("up", style="green") if shard.up else Text("away", style="bold red"),
            f"{shard.buckets}",
            f"{shard.readings:,}",
            f"{_rate(shard.readings, before.readings, seconds):,.0f}",
            f"{(shard.readings - before.readings) / batches:.1f}" if batches else "-",
            f"{shard.queued:,}",
            f"{shard.connections}",
        ]
        table.add_row(*cells[:shown])
    return table
