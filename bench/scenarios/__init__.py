"""The scenarios: each measures one use of the router, against baselines in the same run, interleaved."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.context import Context
from bench.results import ScenarioResult
from bench.scenarios import (
    analytics,
    backlog,
    batch,
    bulk,
    chaos,
    fields,
    hostile,
    keys,
    lifecycle,
    maximum,
    mixed,
    overload,
    peers,
    reads,
    rebalance,
    replicas,
    rollups,
    scale,
    scale_model,
    shard_down,
    single,
    skew,
    statuses,
    storage,
)


@dataclass(frozen=True)
class Scenario:
    """A scenario and what it is for."""

    text: str
    run: Callable[[Context], Awaitable[ScenarioResult]]


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "single": Scenario("one reading a POST over 64 and 256 connections, against null and seed-design", single.run),
    "batch": Scenario("NDJSON of 100, 1,000 and 10,000 readings, against seed-design and copy-ceiling", batch.run),
    "mixed": Scenario("meters and vehicles, 95 % single readings, 5 % reads", mixed.run),
    "fields": Scenario("what a field more costs, of kinds that were declared", fields.run),
    "backlog": Scenario("devices come back with 10,000 late readings each, a fifth of them sent twice", backlog.run),
    "skew": Scenario("1 % of the devices send half", skew.run),
    "maximum": Scenario("the greatest rate at which p99 stays below --p99-ms", maximum.run),
    "overload": Scenario("four times the capacity: what is shed, how, and the router's memory", overload.run),
    "hostile": Scenario("slow headers, silent and unread connections: what the others' devices notice", hostile.run),
    "keys": Scenario("what keys and tenants cost ingestion, against the same cluster without", keys.run),
    "shard-down": Scenario("one shard stands still: what the others' devices notice", shard_down.run),
    "analytics": Scenario("24 h of one vehicle, recent activity, the fleet, on a day of minutes", analytics.run),
    "reads": Scenario("status, history and activity beside their bare statements", reads.run),
    "statuses": Scenario("statuses kept in Redis or Valkey: what readers gain and writers pay", statuses.run),
    "replicas": Scenario("analytics beside ingestion with 0, 1 and 2 replicas of each shard", replicas.run),
    "chaos": Scenario("servers, routers and Redis fail at once while buckets move: the ledger, recovery", chaos.run),
    "storage": Scenario(
        "bytes of a reading hot and packed, beside the seed's; what packing and reading cost", storage.run
    ),
    "lifecycle": Scenario("old history is packed beside 5,000 readings/s: what devices notice", lifecycle.run),
    "rollups": Scenario("the fleet's day from readings, and from rollups: the same answers, CPU, bytes", rollups.run),
    "load": Scenario("weeks of readings by `voltroute load`, beside batches over HTTP", bulk.run),
    "rebalance": Scenario("moving buckets: copy speed, write pauses, what devices notice", rebalance.run),
    "peers": Scenario("the same readings beside InfluxDB, VictoriaMetrics and QuestDB, where they are here", peers.run),
    "scale": Scenario("cost of a reading in batches of 1,000 on 1, 2 and 4 shards", scale.run),
    "scale-model": Scenario("what 10 thousand, 1 million, 10 million devices need, by measured costs", scale_model.run),
}
