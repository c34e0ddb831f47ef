"""What a failover without synchronous replication loses: what the replica had not received, and nothing older."""

import asyncio
import os
import signal
from datetime import timedelta

import asyncpg
import psutil
import pytest

from tests.support.ledger import stored
from tests.support.readings import START, ingest, meter
from tests.support.replicated import Pair, replicated
from tests.support.routers import in_process

SETTINGS = {"runner": False, "ingest_timeout_s": 30, "failover_hold_s": 30}


@pytest.mark.timeout(240)
async def test_the_loss_is_the_lag() -> None:
    async with replicated(synchronous=False) as (servers, cluster), in_process(cluster, **SETTINGS) as client:

        async def post(minutes: range) -> set[str]:
            for minute in minutes:
                await ingest(client, [meter(f"DEV-{device}", minute) for device in range(8)])
            return {f"DEV-{device} {START + timedelta(minutes=minute)}" for device in range(8) for minute in minutes}

        received = await post(range(20))
        await caught_up(servers)
        receiver = receiver_of(servers)
        os.kill(receiver, signal.SIGSTOP)  # from here on it lags
        lagging = await post(range(20, 40))
        await asyncio.to_thread(servers.first.kill)
        os.kill(receiver, signal.SIGKILL)  # what is in the socket's buffer is gone with the machine
        await asyncio.to_thread(servers.second.stop)
        await asyncio.to_thread(servers.second.start)
        await servers.promote()
        later = await post(range(40, 60))
        again = await post(range(20, 30))  # a device that sends again is stored
        second = {name: servers.second.dsn(name) for name in ("s1", "s2")}
        found = [f"{device} {at}" for _, device, at in await stored(second)]
    assert len(found) == len(set(found))
    assert received | later | again <= set(found)
    assert (received | lagging | later) - set(found) == lagging - again


async def caught_up(servers: Pair) -> None:
    """The replica has received everything."""
    first, second = await asyncpg.connect(servers.first.dsn()), await asyncpg.connect(servers.second.dsn())
    try:
        written = await first.fetchval("SELECT pg_current_wal_flush_lsn()")
        async with asyncio.timeout(60):
            while not await second.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", written):
                await asyncio.sleep(0.02)
    finally:
        await first.close()
        await second.close()


def receiver_of(servers: Pair) -> int:
    """The process of the replica that receives."""
    assert servers.second.process is not None
    children = psutil.Process(servers.second.process.pid).children()
    return next(each.pid for each in children if "walreceiver" in " ".join(each.cmdline()))
