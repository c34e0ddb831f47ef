"""`skew`: 1 % of the devices send half of the readings."""

import random
from typing import Final

from bench.context import Context
from bench.measure import Shape, flood, saturate
from bench.results import Collected, ScenarioResult, Target
from bench.systems import VOLTROUTE
from bench.workload import Plan, new_readings

CONNECTIONS: Final = 64
EXPECTED_RATE: Final = 60_000
DEVICES: Final = 10_000
HOT: Final = 100
TARGETS: Final = [Target("skew: skewed / even", 0.8, 0.95)]


def skewed_plan(url: str, requests: int) -> Plan:
    """Every second reading is of a hot device."""
    hot, others = new_readings(HOT), new_readings(DEVICES - HOT)
    plan = Plan(url)
    chance = random.Random(2)
    sent = {hot: 0, others: 0}
    for _ in range(requests):
        readings = hot if chance.random() < 0.5 else others
        plan.write(readings, range(sent[readings], sent[readings] + 1))
        sent[readings] += 1
    return plan


async def run(context: Context) -> ScenarioResult:
    """Even and skewed closed loops in turn."""
    found = Collected()
    context.begin("skew", 2, extra=1)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        await flood(ours, Shape(1, CONNECTIONS), 1, EXPECTED_RATE)
        for _ in range(context.rounds):
            context.step("even")
            even = await flood(ours, Shape(1, CONNECTIONS, DEVICES), context.seconds, EXPECTED_RATE)
            context.step("skewed")
            plan = skewed_plan(ours.url, int(EXPECTED_RATE * context.seconds))
            skewed = await saturate(ours, plan, CONNECTIONS, context.seconds)
            for name, measured in (("even", even), ("skewed", skewed)):
                found.add(f"skew: {name}", "readings/s", measured.rate)
                found.add(f"skew: {name}, p99", "ms", measured.outcome.percentile_ms(99))
                found.proofs += measured.proof.acknowledged
    ratio = found.ratio("skew: skewed / even", "skew: skewed", "skew: even")
    return ScenarioResult("skew", found.figures(ratio), TARGETS, found.proofs, [], found.curves)
