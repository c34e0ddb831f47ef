"""`analytics`: reads over many devices' last 24 hours of minutes: one vehicle, the fleet, recent activity."""

import random
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from bench.context import Context
from bench.filling import KWH, fill
from bench.http1 import connect, get
from bench.load import closed_loop
from bench.measure import MeasurementError
from bench.results import Collected, ScenarioResult, Target
from bench.systems import VOLTROUTE, System
from bench.workload import METER, VEHICLE, Plan, Readings

DEVICES_FULL: Final = 10_000  # half of them meters
DEVICES_QUICK: Final = 500
HOURS: Final = 24
VEHICLES_READ: Final = 100
TARGETS: Final = [
    Target("analytics: 24 h of one vehicle p50", 5, 3, higher=False),
    Target("analytics: activity p50", 20, 10, higher=False),
]


async def run(context: Context) -> ScenarioResult:
    """Data, then each read alone in a closed loop of one connection: its latency with a warm cache."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("analytics", [], TARGETS, 0, ["needs an empty cluster of its own: not run against --url"])
    devices = (DEVICES_FULL if context.full else DEVICES_QUICK) // 2
    context.begin("analytics", 3, extra=2)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        context.step(f"{2 * devices * HOURS * 60:,} readings are made")
        end = datetime.now(UTC).replace(second=0, microsecond=0)
        made = [
            Readings(kind, f"A{kind.name[0].upper()}", devices, end - timedelta(hours=HOURS))
            for kind in (VEHICLE, METER)
        ]
        for readings in made:
            await fill(ours, readings, HOURS * 60)
        await _check_sum(ours, made, end)
        paths = _paths(made[0], end)
        for _ in range(context.rounds):
            for topic, each in paths.items():
                context.step(topic)
                plan = Plan(ours.url)
                for _ in range(20 if topic == "fleet" else int(1_000 * context.seconds)):
                    plan.read(random.choice(each), topic)
                await closed_loop(Plan(ours.url, plan.requests[:VEHICLES_READ]), 1, context.seconds)
                outcome = await closed_loop(plan, 1, context.seconds)
                if set(outcome.all_statuses()) != {200}:
                    message = f"{topic}: answers {outcome.all_statuses()}"
                    raise MeasurementError(message)
                found.latencies("analytics", outcome, {topic: topic})
    notes = [f"{devices:,} meters and {devices:,} vehicles, {HOURS} h of minutes"]
    notes += [] if context.full else [f"--full has {DEVICES_FULL // 2:,} of each"]
    proofs = 2 * devices * HOURS * 60
    return ScenarioResult("analytics", found.figures(), TARGETS, proofs, notes, found.curves)


def _paths(vehicles: Readings, end: datetime) -> dict[str, list[str]]:
    since = (end - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    some = [vehicles.device(n * vehicles.devices // VEHICLES_READ) for n in range(VEHICLES_READ)]
    return {
        "24 h of one vehicle": [f"/v1/analytics/performance/{vehicle}" for vehicle in some],
        "activity": [f"/v1/analytics/activity?since={since}&limit=100"],
        "fleet": ["/v1/analytics/fleet"],
    }


async def _check_sum(system: System, made: list[Readings], end: datetime) -> None:
    """The fleet's sum must be that of what was made, to the last reading."""
    connection = await connect(system.url)
    moment = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    start = made[0].start.strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = await connection.request(get(system.url, f"/v1/analytics/fleet?from={start}&to={moment}"))
    connection.close()
    body = orjson.loads(answer.body)
    wanted = made[0].devices * HOURS * 60 * KWH
    sums = (body.get("totalEnergyConsumedAc"), body.get("totalEnergyDeliveredDc"))
    if answer.status != 200 or sums != (wanted, wanted):
        message = f"the fleet's sums are {sums}, not {wanted} each (status {answer.status})"
        raise MeasurementError(message)
