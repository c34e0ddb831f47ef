"""`mixed`: meters and vehicles post, dashboards read: 95 % writes, 5 % reads of status, history and analytics."""

import random
from typing import Final

from bench.context import Context
from bench.measure import Shape, saturate
from bench.results import NO_BASELINES, Collected, ScenarioResult, Target
from bench.systems import NULL, VOLTROUTE
from bench.workload import METER, VEHICLE, WRITE, Plan, Readings, even_plan, new_readings

CONNECTIONS: Final = 64
DEVICES: Final = 5_000  # of each kind
KNOWN_MINUTES: Final = 60  # of history that the reads find
EXPECTED_RATE: Final = 60_000
# Of a thousand requests so many are reads of that kind; the others are single readings.
READS: Final = {"status": 30, "history": 10, "performance": 8, "activity": 2}
TARGETS: Final = [Target("mixed: requests / null requests", 0.15, 0.25)]


def mixed_plan(url: str, known: Readings, requests: int) -> Plan:
    """Single readings of both kinds in turn, with reads of `known` devices strewn in; the same order in every run."""
    plan = Plan(url)
    meters, vehicles = new_readings(DEVICES, METER), new_readings(DEVICES, VEHICLE)
    chance = random.Random(1)
    topics = [topic for topic, share in READS.items() for _ in range(share)]
    for number in range(requests):
        drawn = chance.randrange(1_000)
        if drawn < len(topics):
            plan.read(path_of(topics[drawn], known.device(chance.randrange(known.devices))), topics[drawn])
        else:
            readings = meters if number % 2 else vehicles
            plan.write(readings, range(number // 2, number // 2 + 1))
    return plan


def path_of(topic: str, vehicle: str) -> str:
    """The path of a read."""
    return {
        "status": f"/v1/vehicles/{vehicle}/status",
        "history": f"/v1/vehicles/{vehicle}/history?limit=100",
        "performance": f"/v1/analytics/performance/{vehicle}",
        "activity": "/v1/analytics/activity?limit=100",
    }[topic]


async def run(context: Context) -> ScenarioResult:
    """A closed loop of all together, after one whose readings the reads then find."""
    found = Collected()
    context.begin("mixed", 1 if context.target else 2, extra=1)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        known = new_readings(DEVICES, days_back=1)
        stored = await saturate(ours, even_plan(ours.url, known, 1_000, KNOWN_MINUTES * DEVICES // 1_000), 8, None)
        found.proofs += stored.proof.acknowledged
        for _ in range(context.rounds):
            if NULL in systems:
                context.step(NULL)
                plan = Shape(1, CONNECTIONS).plan(systems[NULL].url, int(EXPECTED_RATE * context.seconds))
                floor = await saturate(systems[NULL], plan, CONNECTIONS, context.seconds)
                found.add("mixed: null requests", "requests/s", floor.requests_rate)
            context.step("95 % writes, 5 % reads")
            plan = mixed_plan(ours.url, known, int(EXPECTED_RATE * context.seconds))
            measured = await saturate(ours, plan, CONNECTIONS, context.seconds)
            found.add("mixed: requests", "requests/s", measured.requests_rate)
            found.add("mixed: readings", "readings/s", measured.rate)
            found.latencies("mixed", measured.outcome, {topic: topic for topic in (WRITE, *READS)})
            found.proofs += measured.proof.acknowledged
    ratio = found.ratio("mixed: requests / null requests", "mixed: requests", "mixed: null requests")
    notes = [NO_BASELINES] if context.target else []
    return ScenarioResult("mixed", found.figures(ratio), TARGETS, found.proofs, notes, found.curves)
