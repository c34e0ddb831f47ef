"""What devices notice while something else is done: about 5,000 readings a second, before it and beside it."""

import asyncio
from collections.abc import Mapping
from typing import Final

from bench.load import Outcome, open_loop
from bench.measure import prove_plan
from bench.results import Collected, throughput
from bench.systems import VOLTROUTE, System
from bench.workload import METER, Plan, new_readings

RATE: Final = 500  # requests a second
BATCH: Final = 100
BATCH_EVERY: Final = 11  # of these requests one is a batch: about 5,000 readings a second
CONNECTIONS: Final = 128
SEGMENT_S: Final = 3.0


def plan_beside(url: str) -> Plan:
    """Single readings of vehicles, and batches of meters between them."""
    plan, sent = Plan(url), 0
    vehicles, meters = new_readings(5_000), new_readings(5_000, METER)
    for number in range(int(RATE * SEGMENT_S)):
        if number % BATCH_EVERY:
            plan.write(vehicles, range(number, number + 1), "single")
        else:
            plan.write(meters, range(sent, sent + BATCH), "batch")
            sent += BATCH
    return plan


async def segment(name: str, system: System, shards: Mapping[str, str], found: Collected) -> Outcome:
    """The load for a few seconds, by itself; proved stored once."""
    plan = plan_beside(system.url)
    outcome = await open_loop(plan, CONNECTIONS, RATE)
    found.curve(throughput(f"{name}: stored before", plan, outcome))
    proof = await prove_plan(System(VOLTROUTE, system.url, shards), plan, outcome)
    found.proofs += proof.acknowledged
    return outcome


async def segments(
    name: str, system: System, shards: Mapping[str, str], found: Collected, until: "asyncio.Task[object]"
) -> list[Outcome]:
    """The load until something has ended; it is proved at the end, so that the proof disturbs nothing."""
    sent: list[tuple[Plan, Outcome]] = []
    while not until.done():
        plan = plan_beside(system.url)
        outcome = await open_loop(plan, CONNECTIONS, RATE)
        sent.append((plan, outcome))
        found.curve(throughput(f"{name}: stored during, part {len(sent)}", plan, outcome))
    for plan, outcome in sent:
        proof = await prove_plan(System(VOLTROUTE, system.url, shards), plan, outcome)
        found.proofs += proof.acknowledged
    return [outcome for _, outcome in sent]


def report(name: str, found: Collected, before: Outcome, during: list[Outcome]) -> None:
    """Latencies before and during, their ratio, and what was refused."""
    refused = sum(n for outcome in (before, *during) for status, n in outcome.all_statuses().items() if status != 200)
    for outcome in during[1:]:
        for topic, histogram in outcome.latencies.items():
            during[0].latencies[topic].add(histogram)
    beside = during[0]
    for when, outcome in (("before", before), ("during", beside)):
        for topic in ("single", "batch"):
            found.add(f"{name}: {topic} p50 {when}", "ms", outcome.percentile_ms(50, topic))
            found.add(f"{name}: {topic} p99 {when}", "ms", outcome.percentile_ms(99, topic))
    slower = beside.percentile_ms(99, "single") / before.percentile_ms(99, "single")
    found.add(f"{name}: single p99, during / before", "x", slower)
    found.add(f"{name}: slowest answer during", "ms", beside.percentile_ms(100))
    found.add(f"{name}: refused requests", "requests", refused)
