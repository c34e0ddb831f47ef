"""Sessions in use: cut when a newer primary than their server is known, which is looked for when nobody answers."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from shards.errors import ShardError
from shards.postgres.connections import Connection, Session, cut
from shards.postgres.hosts import Hosts

SILENCE_S: Final = 1.0  # when no statement was answered for so long, all hosts are asked who is the primary
_LOOK_S: Final = 0.25


class Watch:
    """`look`: ask all hosts; whatever comes of it, the lineage hears. Watches only where there are several hosts.

    A statement on a server that hangs would otherwise wait for its own deadline while another server was promoted.
    """

    def __init__(self, hosts: Hosts, look: Callable[[], Awaitable[None]]) -> None:
        self._hosts = hosts
        self._look = look
        self._in_use: dict[Connection, float] = {}
        self._answered_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._end = hosts.lineage.listen(self._overtaken)

    def began(self, connection: Connection) -> None:
        """A connection is in use from now on."""
        self._in_use[connection] = time.monotonic()
        if self._timer is None and self._hosts.are_several:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._tick)

    def ended(self, connection: Connection) -> None:
        """It is not in use any more."""
        self._in_use.pop(connection, None)

    def answered(self) -> None:
        """The server has answered something."""
        self._answered_at = time.monotonic()

    def is_overtaken(self, connection: Connection) -> bool:
        """Whether a connection leads to a server that another one has taken the place of."""
        return self._hosts.lineage.is_past(timeline_of(connection))

    def close(self) -> None:
        """End all that it does."""
        self._end()
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def _overtaken(self) -> None:
        for connection in list(self._in_use):
            if self.is_overtaken(connection):
                cut(connection)

    def _tick(self) -> None:
        self._timer = None
        if not self._in_use:
            return
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._tick)
        longest = min(self._in_use.values())
        is_silent = time.monotonic() - max(longest, self._answered_at) > SILENCE_S
        if is_silent and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        with contextlib.suppress(ShardError):
            await self._look()


def timeline_of(connection: Connection) -> int | None:
    """The timeline of a pool's connection when it was made."""
    behind = getattr(connection, "_con", None)  # of asyncpg's proxy, while it is in use
    return behind.timeline if isinstance(behind, Session) else None
