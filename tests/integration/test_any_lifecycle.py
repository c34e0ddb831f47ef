"""Whatever is posted, loaded, frozen, packed, merged, rolled up, archived and restored, in whatever order: answers are
those of a cluster that keeps everything hot, and so are the counts of what comes.
"""

import asyncio
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
from tests.support.readings import START, ingest, meter, register, undated, vehicle
from tests.support.rolling import NOW, roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import Made, new_key, new_tenant
from tests.support.tiering import answers, as_if_made, soon, tend

DAYS: Final = 4
A_DAY: Final = 20  # times of a day that may be
PERIOD: Final = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-06T00:00:00Z"}
DEVICES: Final = {"vehicles": ["V-0", "V-1"], "meters": ["M-0", "R-0"]}
ZONES: Final = ("Europe/Berlin", "America/St_Johns")
# A device of the first tenant or of the second, which share buckets and have the same IDs; a time; one of two readings.
PLACES: Final = st.tuples(
    st.sampled_from(["V-0", "V-1", "M-0", "R-0"]),
    st.integers(0, DAYS * A_DAY),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 1]),
)
SOME: Final = st.lists(PLACES, min_size=1, max_size=40)
OPERATION: Final = st.one_of(
    st.tuples(st.just("post"), SOME),
    st.tuples(st.just("load"), SOME),
    st.tuples(st.just("age"), st.integers(1, DAYS + 1)),
    st.tuples(st.sampled_from(["roll", "anew", "reclock"]), st.none()),
)
Place = tuple[str, int, int, int]


def reading(place: Place) -> dict[str, Any]:
    device, at, other, tenant = place
    minute = at * 1440 / A_DAY + (0.5 if device == "V-1" else 0)
    if device == "M-0":
        return meter(device, minute, kwh=at % 7 / 8 + other + tenant * 2)
    if device == "R-0":  # it dips, and begins again
        return register(device, minute, count=1000 + at * 0.5 + other / 4 - (900 if at > 50 else 20 * (at % 11 == 3)))
    return vehicle(device, minute, kwh=at % 5 / 10_000 + other, temp=20 + at % 3 + tenant)


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
        self.keys: list[list[Made]] = []  # of each tenant: of both clusters

    async def tenants(self) -> None:
        """Two, that share buckets."""
        both = (self.tiered, self.hot)
        self.keys = [[await new_key(each) for each in both], [await new_tenant(each, "acme") for each in both]]
        for tenant in range(2):
            self.serve(tenant)
            for client in (self.client, self.other):
                await known(client)

    def serve(self, tenant: int) -> None:
        """From here on both are asked as a tenant."""
        for client, key in zip((self.client, self.other), self.keys[tenant], strict=True):
            client.headers.update(key.headers)

    async def post(self, some: list[Place]) -> None:
        for tenant in range(2):
            self.serve(tenant)
            mine = [reading(each) for each in some if each[3] == tenant]
            told = [await ingest(client, mine) for client in (self.client, self.other) if mine]
            assert told[:1] == told[1:]

    async def load(self, some: list[Place]) -> None:
        """One file a kind; the other cluster is sent the same in the same order."""
        await self.post([each for each in some if each[3]])
        self.serve(0)
        readings = [reading(each) for each in some if not each[3]]
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
        for tenant in range(2):
            self.serve(tenant)
            mine, theirs = [plain(await answers(each, PERIOD, DEVICES)) for each in (self.client, self.other)]
            assert mine == theirs, (what, tenant)
            for zone in ZONES:
                mine, theirs = [await by_day(each, zone) for each in (self.client, self.other)]
                assert mine == theirs, (what, tenant, zone)


async def known(client: httpx2.AsyncClient) -> None:
    """The router has heard of the key."""
    async with asyncio.timeout(60):
        while (await client.get("/v1/meters")).status_code != 200:
            await asyncio.sleep(0.05)


async def by_day(client: httpx2.AsyncClient, zone: str) -> Any:
    """The fleet's sums by calendar days, which begin in the middle of hours in some zones."""
    answer = await client.get("/v1/analytics/fleet", params={**PERIOD, "interval": "day", "tz": zone})
    assert answer.status_code == 200, answer.text
    return {name: each for name, each in undated(answer).items() if name != "tiers"}


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
                await both.tenants()
                every = [device for devices in DEVICES.values() for device in devices]
                await both.post([(device, 0, 0, tenant) for device in every for tenant in range(2)])
                for name, argument in operations:
                    await getattr(both, name)(argument)
                    await both.check(name)
                with tempfile.TemporaryDirectory() as folder:
                    await use(tiered, f"file://{folder}/archive")
                    await both.post([(device, 33 * A_DAY, 0, tenant) for device in every for tenant in range(2)])
                    await both.age(40)  # of all of May
                    await both.check("packed")
                    await left(tiered)
                    await restored(tiered)
                    await both.check("restored")

    check()
