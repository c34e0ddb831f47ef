"""The servers behind a DSN, of which one is the primary: all are asked, and of those that say so the newest is taken.

asyncpg's own way through several hosts asks one after the other under a single timeout, so that a host that hangs
hides those behind it, and takes the first that may be written to, which may be an old primary that came back.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from shards.errors import Cause, ShardError, ShardUnavailable
from shards.postgres.connections import Session, cut
from shards.postgres.driver import as_shard_error
from shards.postgres.dsn import Address, addresses
from shards.postgres.lineage import Lineage, Role, Standing

# The timeline of the WAL that is written now: pg_control_checkpoint() still has the old one after a promotion.
_STANDING: Final = """
SELECT (SELECT system_identifier FROM pg_control_system()),
    CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END
"""
OTHERS_S: Final = 0.3  # how long a primary that was found waits for what the other hosts say
CONFIRMED_S: Final = 5.0  # and for how long the answer holds for further connections
# Which of several hosts' reasons is told as the whole database's.
_TELLING: Final = (Cause.CONNECTIONS_EXHAUSTED, Cause.STARTING_OR_STOPPING, Cause.SILENT, Cause.UNREACHABLE)


@dataclass(frozen=True)
class _Options:
    timeout_s: float
    settings: dict[str, str]
    command_timeout_s: float | None


@dataclass(frozen=True)
class _Confirmed:
    address: Address
    until: float


class Hosts:
    """Connects to one database, as one login. `lineage`: shared with the others that connect to it."""

    def __init__(self, name: str, dsn: str, lineage: Lineage | None = None, role: Role = Role.PRIMARY) -> None:
        self.lineage = lineage or Lineage()
        self._name = name
        self._dsn = dsn
        self._role = role
        self._addresses = addresses(dsn)
        self._confirmed: _Confirmed | None = None
        self._asking = asyncio.Lock()

    @property
    def are_several(self) -> bool:
        return len(self._addresses) > 1

    async def connect(
        self, timeout_s: float, settings: Mapping[str, str], command_timeout_s: float | None = None
    ) -> Session:
        """A connection with these settings. ShardUnavailable when no server is what it must be.

        What the driver raises comes out as it is where there is one host. Each host has `timeout_s`, all at once.
        """
        options = _Options(timeout_s, dict(settings), command_timeout_s)
        if not self.are_several or self._role is not Role.PRIMARY:
            return await self._first(options)
        async with self._asking:
            known = self._confirmed
            if known is not None and time.monotonic() < known.until:
                try:
                    return await self._to(known.address, options)
                except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError, ShardError):
                    self._confirmed = None
            return await self._ask_all(options)

    async def look(self, timeout_s: float) -> None:
        """Ask all hosts which is the primary: the lineage learns of a newer one, and tells who listens."""
        self._confirmed = None
        cut(await self.connect(timeout_s, {}))

    async def _first(self, options: _Options) -> Session:
        """The first host that will do."""
        failed: dict[Address, Exception] = {}
        for address in self._addresses:
            try:
                return await self._to(address, options)
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError, ShardError) as error:
                failed[address] = error
        raise self._failure(failed)

    async def _ask_all(self, options: _Options) -> Session:
        """Connect to every host; the newest primary of those that answer until a little after the first of them."""
        asked = {asyncio.create_task(self._to(each, options)): each for each in self._addresses}
        waiting = set(asked)
        found: dict[Address, Session] = {}
        failed: dict[Address, Exception] = {}
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=OTHERS_S if found else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    if (error := task.exception()) is None:
                        found[asked[task]] = task.result()
                    elif isinstance(error, Exception):
                        failed[asked[task]] = error
            return self._newest(found, failed)
        except asyncio.CancelledError:
            for session in found.values():
                cut(session)
            raise
        finally:
            for task in waiting:
                task.cancel()
                task.add_done_callback(_drop)

    def _newest(self, found: dict[Address, Session], failed: dict[Address, Exception]) -> Session:
        """The connection to the newest primary; the others are closed."""
        if not found:
            raise self._failure(failed)
        address, taken = max(found.items(), key=lambda each: each[1].timeline or 0)
        for session in found.values():
            if session is not taken:
                cut(session)
        self._confirmed = _Confirmed(address, time.monotonic() + CONFIRMED_S)
        return taken

    async def _to(self, address: Address, options: _Options) -> Session:
        """A connection to one host, if it is what it must be."""
        async with asyncio.timeout(
            options.timeout_s
        ):  # asyncpg's own does not cover a host that hangs in the handshake
            session: Session = await asyncpg.connect(
                self._dsn,
                host=address.host,
                port=None if address.host is None else address.port,
                timeout=options.timeout_s,
                command_timeout=options.command_timeout_s,
                server_settings=options.settings,
                target_session_attrs=SessionAttribute.any,
                connection_class=Session,
            )
            if self._role is Role.ANY:
                return session
            try:
                system, timeline = (await session.fetch(_STANDING))[0]
                standing = Standing(system, None if timeline is None else int(timeline, 16))
                self._admit(address, standing)
            except BaseException:
                cut(session)
                raise
        session.timeline = standing.timeline
        return session

    def _admit(self, address: Address, standing: Standing) -> None:
        if (foreign := self.lineage.foreign(standing)) is not None:
            raise ShardUnavailable(self._name, f"{address}: {foreign}", cause=Cause.WRONG_DATABASE)
        if (refusal := self.lineage.refusal(standing, self._role)) is not None:
            cause = Cause.SUPERSEDED if self._role is Role.PRIMARY else Cause.WRONG_DATABASE
            cause = Cause.READ_ONLY if standing.timeline is None else cause
            raise ShardUnavailable(self._name, f"{address}: {refusal}", cause=cause)
        if standing.timeline is not None:
            self.lineage.learn(standing.system, standing.timeline)

    def _failure(self, failed: Mapping[Address, Exception]) -> Exception:
        """Why none of the hosts will do."""
        if len(failed) == 1:
            return next(iter(failed.values()))
        errors = {address: as_shard_error(self._name, error) for address, error in failed.items()}
        causes = [error.cause for error in errors.values() if isinstance(error, ShardUnavailable)]
        told = [_without(str(address), error.detail) for address, error in errors.items()]
        cause = next((each for each in _TELLING if each in causes), causes[0] if causes else Cause.UNREACHABLE)
        return ShardUnavailable(self._name, f"no primary: {'; '.join(told)}", cause=cause)


def _without(address: str, detail: str) -> str:
    """A reason with its host before it, once."""
    return detail if detail.startswith(address) else f"{address}: {detail}"


def _drop(task: "asyncio.Task[Session]") -> None:
    """An answer that came too late to be used."""
    if not task.cancelled() and task.exception() is None:
        cut(task.result())
