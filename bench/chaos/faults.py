"""What can go wrong: each fault is begun, lasts for a while, and ends; all of it chosen by a seed."""

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.chaos.cast import Cast, Router, send
from bench.store import start as start_store

LASTS_S: Final = (0.5, 4.0)


@dataclass(frozen=True)
class Fault:
    """`name` says what, and to what; `happens` lasts for so many seconds, where that means something."""

    name: str
    happens: Callable[[float], Awaitable[None]]


def faults(cast: Cast) -> list[Fault]:
    """All that can happen to this cast."""
    found = [
        *(_stalled(cast, name) for name in cast.servers),
        *(_killed(cast, name) for name in cast.servers),
        *(fault for router in cast.routers for fault in _of_router(router)),
        Fault("redis stalled", lambda seconds: _stop_redis(cast, seconds)),
        Fault("redis killed", lambda seconds: _kill_redis(cast, seconds)),
        Fault("redis forgets all", lambda _: _flush(cast)),
    ]
    shards = cast.system.shards
    return [*found, *(_moved(cast, name) for name in shards), *(_promoted(cast, name) for name in shards)]


def _what(name: str) -> str:
    """Of a server's name."""
    return "replica" if "replica" in name else name.rstrip("-0123456789")


def _stalled(cast: Cast, name: str) -> Fault:
    async def happens(seconds: float) -> None:
        processes = cast.server(name)
        send(processes, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            send(processes, signal.SIGCONT)

    return Fault(f"{_what(name)} stalled", happens)


def _killed(cast: Cast, name: str) -> Fault:
    async def happens(_: float) -> None:
        send(cast.server(name), signal.SIGKILL)  # its keeper starts it again

    return Fault(f"{_what(name)} killed", happens)


def _of_router(router: Router) -> list[Fault]:
    async def killed(seconds: float) -> None:
        await router.end(signal.SIGKILL)
        await asyncio.sleep(seconds)
        await router.start()

    async def restarted(_: float) -> None:
        await router.end(signal.SIGTERM)
        await router.start()

    async def stalled(seconds: float) -> None:
        processes = router.processes()
        send(processes, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            send(processes, signal.SIGCONT)

    return [Fault("router killed", killed), Fault("router restarted", restarted), Fault("router stalled", stalled)]


async def _stop_redis(cast: Cast, seconds: float) -> None:
    cast.redis.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        cast.redis.process.send_signal(signal.SIGCONT)


async def _kill_redis(cast: Cast, seconds: float) -> None:
    cast.redis.process.kill()
    await cast.redis.process.wait()
    await asyncio.sleep(seconds)
    cast.redis.process = await start_store(cast.redis.program, cast.redis.port)


async def _flush(cast: Cast) -> None:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", cast.redis.port)
        writer.write(b"FLUSHALL\r\n")
        await writer.drain()
        writer.close()


def _moved(cast: Cast, name: str) -> Fault:
    """Not a fault: buckets go away from a shard, or back to it."""

    async def happens(seconds: float) -> None:
        await command(cast, "shard", "weight", name, f"{0.5 + seconds / 4:.2f}")
        await command(cast, "rebalance", "start", "--keep", "0")

    return Fault("buckets move", happens)


def _promoted(cast: Cast, name: str) -> Fault:
    """Not a fault either: a shard's replica becomes its primary, if it may; or the other one, which was it before."""

    async def happens(_: float) -> None:
        if await command(cast, "shard", "promote", name, f"{name}-r1"):
            await command(cast, "shard", "promote", name, name)

    return Fault("primary changed", happens)


async def command(cast: Cast, *words: str) -> int:
    """`voltroute ...` on the cluster; its exit code: a catalog that is away is an answer, too."""
    program = str(Path(sys.executable).with_name("voltroute"))
    process = await asyncio.create_subprocess_exec(
        program,
        *words,
        "--data",
        str(cast.system.data),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()


def chosen(found: list[Fault], chance: random.Random) -> tuple[Fault, float]:
    """What happens next, and for how long."""
    return chance.choice(found), chance.uniform(*LASTS_S)
