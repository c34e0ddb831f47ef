"""`backlog`: devices come back after an outage with 10,000 readings each, late and partly sent before."""

import asyncio
from typing import Final

from bench.context import Context
from bench.ledger import prove
from bench.load import Outcome, closed_loop
from bench.measure import MeasurementError, Shape, offer
from bench.results import Collected, ScenarioResult, Target, throughput
from bench.systems import VOLTROUTE, System
from bench.workload import Plan, Readings, new_readings

DEVICES_FULL: Final = 1_000
DEVICES_QUICK: Final = 100
READINGS_EACH: Final = 10_000
CONNECTIONS: Final = 8
PASSES_MAX: Final = 20
AGAIN_EVERY: Final = 5  # every fifth device's answer got lost: it sends all of it twice
DAYS_BACK: Final = 40  # so that the backlog reaches into months before the newest
LIVE_CONNECTIONS: Final = 64
LIVE_RATE: Final = 100  # single readings a second of devices that were never away
TARGETS: Final = [
    Target("backlog: live readings while it lasts, p99", 250, 100, higher=False),
    Target("backlog: live readings, p99 while it lasts / before it", 3, 1.5, higher=False),
]


def backlog_plan(url: str, readings: Readings) -> Plan:
    """Each device's readings in one request, oldest first; some are sent twice."""
    plan = Plan(url)
    for device in range(readings.devices):
        numbers = range(device, readings.devices * READINGS_EACH, readings.devices)
        for _ in range(1 if device % AGAIN_EVERY else 2):
            plan.write(readings, numbers)
    return plan


async def run(context: Context) -> ScenarioResult:
    """The backlog as fast as it goes, and live readings in an open loop beside it."""
    found = Collected()
    devices = DEVICES_FULL if context.full else DEVICES_QUICK
    context.begin("backlog", 2, extra=1)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        for _ in range(context.rounds):
            context.step("live readings alone")
            alone, proof = await offer(ours, _live(ours, context.seconds), LIVE_CONNECTIONS, LIVE_RATE)
            found.proofs += proof.acknowledged
            found.add("backlog: live readings before it, p99", "ms", alone.percentile_ms(99))
            context.step(f"{devices:,} devices with {READINGS_EACH:,} readings each")
            readings = new_readings(devices, days_back=DAYS_BACK)
            plan = backlog_plan(ours.url, readings)
            live = asyncio.create_task(offer(ours, _live(ours, context.seconds), LIVE_CONNECTIONS, LIVE_RATE))
            passes = await _send_all(plan)
            outcome, proof = await live
            everything = set(range(devices * READINGS_EACH))
            if ours.shards:
                await prove(ours.shards, readings, everything, everything)
                found.proofs += len(everything) + proof.acknowledged
            seconds = sum(each.seconds for _, each in passes)
            sent = sum(len(request.numbers) for request in plan.requests)
            found.add("backlog: readings taken", "readings/s", sent / seconds)
            found.add("backlog: requests refused at first (429)", "requests", sum(o.count(429) for _, o in passes))
            found.add("backlog: request p99", "ms", passes[0][1].percentile_ms(99))
            found.add("backlog: live readings while it lasts, p99", "ms", outcome.percentile_ms(99))
            found.curve(throughput("backlog: readings taken", *passes[0]))
    notes = [f"{devices:,} devices" + ("" if context.full else f"; --full sends {DEVICES_FULL:,}")]
    ratio = found.ratio(
        "backlog: live readings, p99 while it lasts / before it",
        "backlog: live readings while it lasts, p99",
        "backlog: live readings before it, p99",
    )
    return ScenarioResult("backlog", found.figures(ratio), TARGETS, found.proofs, notes, found.curves)


def _live(system: System, seconds: float) -> Plan:
    return Shape(1, LIVE_CONNECTIONS).plan(system.url, int(LIVE_RATE * seconds))


async def _send_all(plan: Plan) -> list[tuple[Plan, Outcome]]:
    """Send a plan, and again what was refused, as a device does. MeasurementError when it does not end."""
    passes: list[tuple[Plan, Outcome]] = []
    while plan.requests:
        if len(passes) == PASSES_MAX:
            message = f"{len(plan.requests)} requests were refused {PASSES_MAX} times"
            raise MeasurementError(message)
        outcome = await closed_loop(plan, CONNECTIONS, None)
        if outcome.lost or not set(outcome.all_statuses()) <= {200, 429}:
            message = f"answers {outcome.all_statuses()}, {outcome.lost} connections lost"
            raise MeasurementError(message)
        passes.append((plan, outcome))
        done = set(outcome.acknowledged)
        plan = Plan(plan.url, [request for number, request in enumerate(plan.requests) if number not in done])
    return passes
