"""`peers`: the same readings over the same connections, beside other systems that take them over HTTP."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from bench.context import Context
from bench.ledger import LedgerError, prove
from bench.load import closed_loop
from bench.measure import MeasurementError
from bench.peers.known import NEVER, PEERS, PROMISES
from bench.peers.peer import VISIBLE_S, Peer, Promises
from bench.results import Collected, ScenarioResult, Target
from bench.systems import NULL, SEED, VOLTROUTE, System, with_baselines
from bench.workload import Plan, Readings, new_readings

DEVICES: Final = 10_000
SETTLE_S: Final = 20.0
QUIET_S: Final = 0.4
QUIET_SHARE: Final = 0.15  # of a core
ROOM: Final = 2.0  # as many readings are encoded as a system would take at so many times its last rate


@dataclass(frozen=True)
class Load:
    """Readings in a request, connections, and readings a second to begin with."""

    name: str
    size: int
    connections: int
    first_rate: int


LOADS: Final = (
    Load("single, 64", 1, 64, 10_000),
    Load("single, 256", 1, 256, 10_000),
    Load("batches of 500, 8", 500, 8, 100_000),
)
TARGETS: Final = [
    Target("single, 64: voltroute / null", 0.65, 0.75),
    Target("single, 256: voltroute / null", 1.05, 1.2),
    Target("single, 256: voltroute / InfluxDB 1", 0.9, 1.1),
    Target("batches of 500, 8: voltroute / InfluxDB 1", 0.6, 0.8),
]


@dataclass
class Contender:
    """A system that takes part, and what it was sent: devices stay the same, so that none is new after the first."""

    system: System
    peer: Peer | None
    readings: Readings = field(default_factory=lambda: new_readings(DEVICES))
    sent: int = 0
    stored: set[int] = field(default_factory=set)
    rates: dict[Load, float] = field(default_factory=dict)

    def plan(self, load: Load, seconds: float, rate: float) -> Plan:
        """The next readings, encoded, for so many a second."""
        plan = Plan(self.system.url, lines_to=self.peer.path if self.peer else None)
        requests = int(rate * seconds / load.size) + load.connections
        for first in range(self.sent, self.sent + requests * load.size, load.size):
            plan.write(self.readings, range(first, first + load.size))
        return plan

    async def flood(self, load: Load, seconds: float) -> float:
        """Readings a second that were acknowledged; again with more, if all that were encoded were sent too early."""
        rate = ROOM * self.rates.get(load, load.first_rate)
        while True:
            outcome = await closed_loop(self.plan(load, seconds, rate), load.connections, seconds)
            if outcome.lost or len(outcome.acknowledged) != outcome.sent:
                raise MeasurementError(
                    f"{self.system.name}: {outcome.sent} requests sent, answers {outcome.all_statuses()}, "
                    f"{outcome.lost} connections lost"
                )
            count = len(outcome.acknowledged) * load.size
            self.stored.update(range(self.sent, self.sent + count))
            self.sent += count
            self.rates[load] = count / outcome.seconds
            if not outcome.exhausted:
                return self.rates[load]
            rate = ROOM * max(rate, self.rates[load])

    async def settle(self) -> None:
        """Wait until it has done what it puts off, for its own account: some write for seconds after they answered."""
        end = time.monotonic() + SETTLE_S
        before = self.system.cpu()
        while time.monotonic() < end:
            await asyncio.sleep(QUIET_S)
            now = self.system.cpu()
            used, before = now.since(before), now
            if used.server + used.postgres < QUIET_S * QUIET_SHARE:
                return

    async def prove(self) -> int:
        """Everything that was acknowledged is there, once; how many."""
        if self.peer is not None:
            await self._prove_peer(self.peer)
        elif self.system.name == VOLTROUTE:
            await prove(self.system.shards, self.readings, self.stored, self.stored)
        elif self.system.name == SEED:
            first = dict([next(iter(self.system.shards.items()))])
            await prove(first, self.readings, self.stored, self.stored, "seed.")
        else:
            return 0
        return len(self.stored)

    async def _prove_peer(self, peer: Peer) -> None:
        """Some show what they acknowledged a little later."""
        end, found = time.monotonic() + VISIBLE_S, -1
        while found != len(self.stored) and time.monotonic() < end:
            found = await peer.count(self.system, self.readings)
            await asyncio.sleep(0.2)
        if found != len(self.stored):
            message = f"{peer.name} acknowledged {len(self.stored):,} readings and has {found:,}"
            raise LedgerError(message)


def _promised(name: str, promises: Promises) -> str:
    return (
        f"{name}: durable {promises.durable}; duplicates {promises.duplicates}; status {promises.status}; "
        f"SQL {promises.sql}"
    )


async def run(context: Context) -> ScenarioResult:
    """Closed loops, interleaved; the ledger of each system at the end."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("peers", [], TARGETS, 0, ["needs a cluster of its own: not run against --url"])
    skipped = {**NEVER, **{peer.name: why for peer in PEERS if (why := await asyncio.to_thread(peer.missing))}}
    here = [peer for peer in PEERS if peer.name not in skipped]
    context.begin("peers", len(LOADS) * (3 + len(here)), extra=3)
    async with AsyncExitStack() as stack:
        context.step("starting")
        made = await stack.enter_async_context(with_baselines(context.shards))
        contenders = [Contender(made[name], None) for name in (VOLTROUTE, NULL, SEED)]
        contenders += [Contender(await stack.enter_async_context(peer.start()), peer) for peer in here]
        context.step("warming up")
        for each in contenders:
            await each.flood(LOADS[-1], 1)
            await each.settle()
        for _ in range(context.rounds):
            for load in LOADS:
                for each in contenders:
                    context.step(f"{load.name} connections, {each.system.name}")
                    rate = await each.flood(load, context.seconds)
                    await each.settle()
                    found.add(f"{load.name}: {each.system.name}", "readings/s", rate)
        context.step("ledgers")
        for each in contenders:
            found.proofs += await each.prove()
    others = [NULL, SEED, *(peer.name for peer in here)]
    ratios = [
        found.ratio(f"{load.name}: {VOLTROUTE} / {other}", f"{load.name}: {VOLTROUTE}", f"{load.name}: {other}")
        for load in LOADS
        for other in others
    ]
    notes = [_promised(name, promises) for name, promises in PROMISES.items()]
    notes += [_promised(peer.name, peer.promises) for peer in here]
    notes += [f"skipped {name}: {why}" for name, why in skipped.items()]
    return ScenarioResult("peers", found.figures(*ratios), TARGETS, found.proofs, notes, found.curves)
