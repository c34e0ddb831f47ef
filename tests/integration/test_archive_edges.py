"""The archive at its edges: interrupted, raced, changed in the middle; first instants, registers, corrections."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shards.archive.runner import Archiver
from shards.archive.store import Archive
from shards.catalog import kinds as catalogued
from shards.catalog import lifecycle as policies_of
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.duties import archive as duty
from shards.errors import Refused
from shards.kinds import BUILT_IN, KINDS, Field, Kind, Role
from shards.operations import kinds as kinds_op
from shards.operations import lifecycle as lc
from shards.operations.correct import correct
from shards.operations.lifecycle import Change
from shards.policy import Policies, Policy
from shards.tiers.runner import Tender
from shards.tiers.watching import Watch
from tests.integration.test_keys import until as until_status
from tests.support.archiving import (
    ARCHIVED,
    BOTH,
    DROPPED,
    catalog_at,
    leave,
    leave_from,
    left,
    old_snapshots,
    restore_from,
    restored,
    set_all,
    use,
)
from tests.support.declaring import silently
from tests.support.ledger import execute, fetch
from tests.support.months import DAY, LEFT, WHOLE, given, packed, states, total
from tests.support.readings import at, ingest, meter, register, undated, vehicle
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import new_tenant
from tests.support.tiering import Interrupted, as_if_made, records_of, tend, until

JULY = datetime(2026, 7, 1, tzinfo=UTC)


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str], tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=2, buckets=4) as made:
        await use(made, f"file://{tmp_path}/archive")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def june_leaves_beside_hot_july(cluster: TestCluster) -> None:
    """With leaves of a month."""
    now = datetime.now(UTC)
    hot, gone = (now - datetime(2026, 7, day, tzinfo=UTC) for day in (15, 2))
    await tend(cluster, policies={k.name: Policy(k.name, hot) for k in KINDS})
    await left(cluster, {k.name: Policy(k.name, timedelta(0), gone) for k in KINDS})


async def test_a_month_whose_taker_ended_is_settled(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    with pytest.raises(Interrupted):
        await leave(cluster, until("after take"))
    await tend(cluster)  # the tiers' duty drops the partition first, as `lifecycle run` does
    await left(cluster)
    assert await states(cluster) == {"dropped"}


def moving_to(catalog: Catalog, folder: Path) -> Watch:
    """The place of the archive is put right when the first month is sealed."""
    seen: list[str] = []

    async def watch(place: str) -> None:
        if place == "after seal" and not seen:
            seen.append(place)
            await lc.set_policy(catalog, None, Change({}, None, f"file://{folder}/other"))

    return watch


async def test_the_place_is_put_right_during_a_round(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    await packed(client, cluster)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        await leave_from(catalog, moving_to(catalog, tmp_path))
        assert (await restore_from(catalog)).failed == {}


async def test_what_is_expired_is_deleted_where_it_is(
    client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path
) -> None:
    await packed(client, cluster)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        await leave_from(catalog, moving_to(catalog, tmp_path))
        await leave_from(catalog, policies=BOTH)
    assert (await states(cluster), [*tmp_path.rglob("*.parquet")]) == ({"expired"}, [])


async def test_a_policy_that_is_taken_back_during_a_round_is_not_carried_out(
    client: httpx2.AsyncClient, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await packed(client, cluster)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        was: list[int] = []

        async def watch(place: str) -> None:
            if place == "after seal" and not was:
                was.append(await total(cluster, LEFT))
                await set_all(catalog)  # --drop-after never

        await set_all(catalog, drop=timedelta(days=2))
        monkeypatch.setattr(duty, "Archiver", partial(Archiver, watch=watch))
        await duty.Archiving(catalog, 1.0)._round()
    assert await total(cluster, LEFT) > 0


async def test_what_was_to_be_dropped_is_archived_when_somebody_says_so(
    client: httpx2.AsyncClient, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the month that was sealed already."""
    await packed(client, cluster)
    before = await total(cluster, LEFT)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        was: list[str] = []

        async def watch(place: str) -> None:
            if place == "after seal" and not was:
                was.append(place)
                await set_all(catalog, archive=timedelta(days=2), drop=timedelta(days=9000))

        await set_all(catalog, drop=timedelta(days=2))
        monkeypatch.setattr(duty, "Archiver", partial(Archiver, watch=watch))
        for _ in range(2):
            await duty.Archiving(catalog, 1.0)._round()
        assert (await total(cluster, LEFT), await states(cluster)) == (0, {"dropped"})
        assert (await restore_from(catalog)).failed == {}
    assert await total(cluster, LEFT) == before


async def test_registers_behind_archived_time(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await given(client, cluster, [register("R", m + 0.5, 1000 + m / 10) for m in range(0, 63 * DAY, 30)])
    await tend(cluster)
    asked = (
        ("/v1/analytics/fleet", {"from": "2026-07-01T00:00:00Z", "to": "2026-07-02T00:00:00Z"}),
        ("/v1/meters/R/history", {"from": "2026-07-01T00:00:00Z", "to": "2026-07-01T01:00:00Z"}),
    )
    before = [undated(await client.get(path, params=params)) for path, params in asked]
    await left(cluster)
    for (path, params), told in zip(asked, before, strict=True):
        told.pop("tiers", None)
        answer = undated(await client.get(path, params=params))
        answer.pop("tiers", None)
        assert answer == told


async def test_a_correction_of_the_first_instant(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Leaves of a month: the reading is hot, and belongs to June's last hour and minute, which are archived."""
    await given(
        client, cluster, [vehicle(f"V-{n}", m) for n in range(3) for m in range(60 * DAY, 63 * DAY, 5)], "month"
    )
    await june_leaves_beside_hot_july(cluster)
    params = {"from": "2026-06-30T00:00:00Z", "to": "2026-07-02T00:00:00Z"}
    before = (await client.get("/v1/analytics/fleet", params=params)).json()["dataPoints"]
    async with catalog_at(cluster.catalog_dsn) as catalog:
        with pytest.raises(Refused, match="ends an hour whose sums are archived"):
            await correct(catalog, 0, BUILT_IN.by_name["vehicle"], ("V-1", JULY), {"soc": 51.0}, "x")
    assert (await client.get("/v1/analytics/fleet", params=params)).json()["dataPoints"] == before


async def test_a_kind_whose_sums_are_whole_later(servers: list[str], tmp_path: Path) -> None:
    pump = Kind("pump", "pumpId", "pump_id", "One interval.", (
        Field("temp", "temp", "deg C", role=Role.TEMPERATURE, kept=True),  # no limits: it has no rollups
        Field("rpm", "rpm", "turns", minimum=0, maximum=10_000, required=True),
    ))  # fmt: skip
    async with new_cluster(servers, shards=1, buckets=4) as made, catalog_at(made.catalog_dsn) as catalog:
        await as_if_made(made, date(2026, 5, 1), "month")
        await use(made, f"file://{tmp_path}/archive")
        await kinds_op.create(catalog, pump, silently)
        policies = {"pump": replace(ARCHIVED["meter"], kind="pump")}
        key = await new_tenant(made, "one")
        async with in_process(made, runner=False) as client:
            await until_status(client, 200, headers=key.headers)
            sent = [{"pumpId": "P", "timestamp": at(m), "rpm": 5.0, "temp": 20.0} for m in range(1, 60 * DAY, 600)]
            assert (await client.post("/v1/ingest/pump", json=sent, headers=key.headers)).status_code == 200
            await tend(made, policies=policies)
            await left(made, policies)
            assert (await client.get("/v1/usage", params=WHOLE, headers=key.headers)).status_code == 409
        await kinds_op.retire(catalog, "pump", "temp")
        known = await catalogued.known(catalog, deadline_in(10))
        for record in await records_of(made):
            await Tender(record, Policies(policies), known).roll()
        async with in_process(made, runner=False) as client:
            await until_status(client, 200, headers=key.headers)
            answer = await client.get("/v1/usage", params=WHOLE, headers=key.headers)
        assert answer.status_code == 409 or sum(each["readings"] for each in answer.json()["items"]) == len(sent)


async def test_what_is_dropping_is_ended_without_a_policy(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    sessions = await old_snapshots(cluster)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        await leave_from(catalog)
        await set_all(catalog)  # --archive-after never
        for session in sessions:
            await session.close()
        await tend(cluster, policies={k.name: Policy(k.name, timedelta(days=1)) for k in KINDS})
        await duty.Archiving(catalog, 1.0)._round()
    assert await states(cluster) == {"dropped"}


async def test_what_is_kept_longer_stays_longer(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    await left(cluster)
    await restored(cluster)
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET restored_until = now()")
    async with catalog_at(cluster.catalog_dsn) as catalog:
        kept: list[Any] = []

        async def watch(_place: str) -> None:
            if not kept:
                kept.append(None)
                kept.append(await restore_from(catalog, keep=timedelta(days=30)))

        await leave_from(catalog, watch)
    still = await fetch(cluster.catalog_dsn, "SELECT count(*) FROM archived_month WHERE state = 'restored'")
    assert still[0]["count"] == kept[1].months


async def test_restore_names_months_that_are_on_their_way_out(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    await left(cluster)
    await restored(cluster)
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET restored_until = now() WHERE month = '2026-05-01'")
    sessions = await old_snapshots(cluster)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        await leave_from(catalog)
        outcome = await restore_from(catalog)
    for session in sessions:
        await session.close()
    there = await client.get("/v1/vehicles/V-1/history", params={"from": "2026-05-01T00:00:00Z", "limit": "1000"})
    assert outcome.failed or there.status_code == 200


async def test_the_first_instant_behind_archived_time(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await given(client, cluster, [register("R", m, 1000 + m / 10) for m in range(0, 63 * DAY, 60)])
    await tend(cluster)
    await left(cluster)
    for path, params in (
        ("/v1/meters/R/history", {"limit": "1000"}),
        ("/v1/export/meters", {"from": "2026-06-30T23:59:59.999999Z"}),
    ):
        assert (await client.get(path, params=params)).status_code == 200, path


async def test_a_late_reading_of_the_first_instant(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    await left(cluster)
    await ingest(client, vehicle("V-0", 61 * DAY, kwh=5))  # exactly 1 July 00:00:00: not sealed, accepted
    params = {"from": "2026-06-30T00:00:00Z", "to": "2026-07-02T00:00:00Z"}
    before = (await client.get("/v1/analytics/fleet", params=params)).json()["dataPoints"]
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE tier SET rolled_of = NULL")  # as a move that was rolled back leaves it
    await roll(cluster)
    assert (await client.get("/v1/analytics/fleet", params=params)).json()["dataPoints"] == before


async def second_after_first(cluster: TestCluster, policies: Mapping[str, Policy]) -> dict[str, str]:
    """Two archivers; the second looked before the first had done all."""
    failed: dict[str, str] = {}
    async with catalog_at(cluster.catalog_dsn) as catalog:
        deadline = deadline_in(10)
        cluster_id = (await catalog.info(deadline)).cluster_id
        archive = await Archive.of(catalog, cluster_id)

        async def current() -> Policies:
            return Policies(policies)

        for record in await catalog.shards(deadline):
            first, second = (Archiver(record, archive, current) for _ in range(2))

            async def due(connection: Any, look: Any = second._due, first: Archiver = first) -> Any:
                found = await look(connection)
                while (await first.run()).waiting:
                    await asyncio.sleep(0.05)
                return found

            object.__setattr__(second, "_due", due)
            failed |= (await second.run()).failed
    return failed


async def test_two_archivers_raise_no_false_alarm(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    assert await second_after_first(cluster, ARCHIVED) == {}


async def test_two_archivers_leave_the_ledgers_counts(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    await second_after_first(cluster, DROPPED)
    assert (await fetch(cluster.catalog_dsn, "SELECT sum(readings) AS n FROM archived_month"))[0]["n"] > 0


async def test_a_policy_that_is_removed_holds_up_no_move(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await packed(client, cluster)
    sessions = await old_snapshots(cluster)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        await leave_from(catalog)
        for session in sessions:
            await session.close()
        async with catalog.membership(deadline_in(10)) as connection:
            await policies_of.set_policy(connection, Policy("meter", timedelta(days=1)))
        await lc.run(catalog)
    assert await total(cluster, "SELECT count(*) FROM packed_leaf") == 0


async def test_a_kept_value_of_archived_time(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    await given(client, cluster, [meter("K", 5 * DAY, voltage=230.0), meter("K", 62 * DAY, voltage=231.0)], "month")
    await june_leaves_beside_hot_july(cluster)
    async with catalog_at(cluster.catalog_dsn) as catalog:
        key = ("K", datetime(2026, 7, 2, tzinfo=UTC))
        with pytest.raises(Refused, match="would need the voltage before"):
            await correct(catalog, 0, BUILT_IN.by_name["meter"], key, {"voltage": None}, "x")
    assert (await client.get("/v1/meters/K/status")).json()["voltage"] == 231.0
