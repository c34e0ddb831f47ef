"""Whatever is posted, loaded, frozen, packed, merged, rolled up, archived and restored, in whatever order: answers are
those of a cluster that keeps everything hot, and so are the counts of what comes.
"""

import tempfile
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.kinds import KINDS, METER, VEHICLE
from shards.policy import Policy
from tests.conftest import LoopRunner
from tests.support.archiving import left, restored, use
from tests.support.ledger import execute, fetch
from tests.support.loading import load_files, of_kind, with_policies, write_csv
from tests.support.readings import START, ingest, meter, register, vehicle
from tests.support.rolling import NOW, roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import answers, as_if_made, soon, tend

DAYS: Final = 4
A_DAY: Final = 20  # times of a day that may be
PERIOD: Final = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-06T00:00:00Z"}
DEVICES: Final = {"vehicles": ["V-0", "V-1"], "meters": ["M-0", "R-0"]}
PLACES: Final = st.tuples(
    st.sampled_from(["V-0", "V-1", "M-0", "R-0"]), st.integers(0, DAYS * A_DAY), st.sampled_from([0, 0, 0, 1])
)
SOME: Final = st.lists(PLACES, min_size=1, max_size=40)
OPERATION: Final = st.one_of(
    st.tuples(st.just("post"), SOME),
    st.tuples(st.just("load"), SOME),
    st.tuples(st.just("age"), st.integers(1, DAYS + 1)),
    st.tuples(st.sampled_from(["roll", "anew", "reclock"]), st.none()),
)
Place = tuple[str, int, int]


def reading(place: Place) -> dict[str, Any]:
    device, at, other = place
    minute = at * 1440 / A_DAY + (0.5 if device == "V-1" else 0)
    if device == "M-0":
        return meter(device, minute, kwh=at % 7 / 8 + other)
    if device == "R-0":
        return register(device, minute, count=1000 + at * 0.5 + other / 4)
    return vehicle(device, minute, kwh=at % 5 / 10_000 + other, temp=20 + at % 3)


def plain(value: Any) -> Any:
    """Without what tells when it came."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items() if name != "createdAt"}
    return [plain(each) for each in value] if isinstance(value, list) else value


class Both:
    """A cluster whose history goes through tiers, and one whose does not."""

    def __init__(self, tiered: TestCluster, hot: TestCluster, clients: Sequence[httpx2.AsyncClient]) -> None:
        self.tiered, self.hot = tiered, hot
        self.client, self.other = clients

    async def post(self, some: list[Place]) -> None:
        told = [await ingest(client, [reading(each) for each in some]) for client in (self.client, self.other)]
        assert told[0] == told[1]

    async def load(self, some: list[Place]) -> None:
        """One file a kind; the other cluster is sent the same in the same order."""
        readings = [reading(each) for each in some]
        with tempfile.TemporaryDirectory() as folder:
            for kind in (METER, VEHICLE):
                if mine := of_kind(readings, kind):
                    file = write_csv(Path(folder) / f"{kind}.csv", kind, mine)
                    done = await load_files(self.tiered, kind, [file], Path(folder) / "spool")
                    told = await ingest(self.other, mine)
                    found = done.outcome
                    assert done.failed == {}
                    assert found.accepted == told["accepted"]
                    assert (found.duplicates, found.conflicts) == (told["duplicates"], told["conflicts"])

    async def age(self, days: int) -> None:
        """Everything before a day is packed, and late readings merged."""
        now = (await fetch(self.tiered.catalog_dsn, NOW))[0][0]
        hot = now - START - timedelta(days=days)
        await tend(self.tiered, policies={kind.name: Policy(kind.name, hot) for kind in KINDS})

    async def roll(self, _: None) -> None:
        await roll(self.tiered)

    async def anew(self, _: None) -> None:
        """As after columns were declared otherwise."""
        for dsn in self.tiered.shards.values():
            await execute(dsn, "UPDATE tier SET rolled_of = NULL")
        await roll(self.tiered)

    async def reclock(self, _: None) -> None:
        """As after a clock that was set back."""
        for dsn in self.tiered.shards.values():
            await execute(dsn, "UPDATE tier SET rolled_until = now() + interval '1 hour' WHERE rolled_of IS NOT NULL")
        await roll(self.tiered)

    async def check(self, what: str) -> None:
        mine, theirs = [plain(await answers(each, PERIOD, DEVICES)) for each in (self.client, self.other)]
        assert mine == theirs, what


@pytest.mark.timeout(600)
def test_any_order_of_everything(
    servers: list[str], event_loop_runner: LoopRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon(monkeypatch)

    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(OPERATION, min_size=2, max_size=7))
    def check(operations: list[tuple[str, Any]]) -> None:
        event_loop_runner.run(scenario(operations))

    async def scenario(operations: list[tuple[str, Any]]) -> None:
        async with (
            new_cluster(servers, shards=3, buckets=4) as tiered,
            new_cluster(servers, shards=3, buckets=4) as hot,
        ):
            for cluster in (tiered, hot):
                await as_if_made(cluster, date(2026, 5, 1), "day")
                await with_policies(cluster)
            async with in_process(tiered, runner=False) as client, in_process(hot, runner=False) as other:
                both = Both(tiered, hot, (client, other))
                await both.post([(device, 0, 0) for devices in DEVICES.values() for device in devices])
                for name, argument in operations:
                    await getattr(both, name)(argument)
                    await both.check(name)
                with tempfile.TemporaryDirectory() as folder:
                    await use(tiered, f"file://{folder}/archive")
                    await both.post([(device, 33 * A_DAY, 0) for each in DEVICES.values() for device in each])
                    await both.age(40)  # of all of May
                    await both.check("packed")
                    await left(tiered)
                    await restored(tiered)
                    await both.check("restored")

    check()
