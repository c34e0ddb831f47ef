"""The logins with which routers reach a shard: a cluster's own, with random passwords and rights of their own."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import asyncpg

from shards.postgres.connections import Connection
from shards.postgres.dsn import with_login
from shards.postgres.transactions import transaction
from shards.shard import ShardRecord, ShardState

WRITER: Final = "voltroute_writer"
QUERY: Final = "voltroute_query"
MONITOR: Final = "voltroute_monitor"
READER: Final = "voltroute_reader"  # of routers before there were tenants

_EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
# Utility statements take no parameters: PostgreSQL itself quotes them into the text.
_CREATE: Final = (
    "SELECT format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD %L', $1::text, $2::text)"
)
_ALTER: Final = "SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)"
# What a schema cannot carry: a database that was restored from a dump, or copied, is open to everybody again.
_CLOSE: Final = "SELECT format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database())"
_RIGHTS: Final = "SELECT grant_rights($1, $2, $3, $4)"
_STATISTICS: Final = "SELECT format('GRANT pg_monitor TO %I', $1::text)"
# pg_settings leaves out what the owner may not see; then nobody knows, and nothing is made.
COUNTS_NO_STATEMENTS: Final = r"""
SELECT EXISTS (
    SELECT FROM pg_settings WHERE name = 'shared_preload_libraries' AND setting ~ '\mpg_stat_statements\M'
) AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements')
"""
# Of an extension: only a superuser may make it, the provider does not allow it, its files are not installed.
_NOT_TO_BE_HAD: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.UndefinedFileError,
)
_COUNT_STATEMENTS: Final = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"
_RETIRE: Final = "SELECT retire_reader($1)"
# Roles belong to a server, and advisory locks to a database: two shards on one server can only try again.
_RACES: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
    asyncpg.InternalServerError,
    asyncpg.DeadlockDetectedError,
)
_ATTEMPTS_MAX: Final = 20
_SCRAM_ROUNDS: Final = 4_096


@dataclass(frozen=True, repr=False)
class Logins:
    """Passwords of one cluster's logins. Two shards on one server share them.

    `reader_password`: of the login of routers before there were tenants; None when none of them can be left.
    """

    suffix: str
    writer_password: str
    query_password: str
    monitor_password: str
    reader_password: str | None = None

    @property
    def writer(self) -> str:
        return f"{WRITER}_{self.suffix}"

    @property
    def query(self) -> str:
        return f"{QUERY}_{self.suffix}"

    @property
    def monitor(self) -> str:
        return f"{MONITOR}_{self.suffix}"

    @property
    def reader(self) -> str:
        return f"{READER}_{self.suffix}"

    @property
    def passwords(self) -> dict[str, str]:
        """Login -> password."""
        found = {
            self.writer: self.writer_password,
            self.query: self.query_password,
            self.monitor: self.monitor_password,
        }
        return found if self.reader_password is None else {**found, self.reader: self.reader_password}

    def record(self, name: str, owner_dsn: str, weight: float = 1.0) -> ShardRecord:
        """An active shard, as the logins reach the database behind `owner_dsn`."""
        password = self.reader_password
        return ShardRecord(
            name,
            ShardState.ACTIVE,
            owner_dsn,
            with_login(owner_dsn, self.writer, self.writer_password),
            with_login(owner_dsn, self.query, self.query_password),
            weight,
            None if password is None else with_login(owner_dsn, self.reader, password),
            with_login(owner_dsn, self.monitor, self.monitor_password),
        )


def scram_sha_256(password: str) -> str:
    """What PostgreSQL stores of a password (RFC 5802, 7677): the text itself would be in its logs and statistics."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${_SCRAM_ROUNDS}:{salt_text}${stored_text}:{server_text}"


def new_logins(cluster_id: str) -> Logins:
    """Logins for a new cluster, named after it, so that two clusters on one server do not meet."""
    return Logins(cluster_id.replace("-", "")[:8], *(secrets.token_urlsafe(24) for _ in range(3)))


async def make_logins(connection: Connection, logins: Logins) -> None:
    """Create a cluster's logins, or set their passwords, and give them, and nobody else, rights in a database."""
    await _racing(connection, logins, _make)


async def make_roles(connection: Connection, logins: Logins) -> None:
    """The logins alone, without rights: for a database that is about to be restored, where rights name them."""
    await _racing(connection, logins, _roles)


async def _racing(
    connection: Connection, logins: Logins, make: Callable[[Connection, Logins], Awaitable[None]]
) -> None:
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        try:
            async with transaction(connection):
                return await make(connection, logins)
        except _RACES:
            if attempt == _ATTEMPTS_MAX:
                raise
            await asyncio.sleep(random.uniform(0.01, 0.1))
    raise AssertionError  # the loop returns or raises


async def close_to_public(connection: Connection) -> None:
    """Nobody connects to the database, or makes temporary tables there, but by a right of their own. As its owner."""
    await connection.execute(await connection.fetchval(_CLOSE))


async def _roles(connection: Connection, logins: Logins) -> None:
    for login, password in logins.passwords.items():
        there = await connection.fetchval(_EXISTS, login)
        statement = _ALTER if there else _CREATE
        await connection.execute(await connection.fetchval(statement, login, scram_sha_256(password)))


async def _make(connection: Connection, logins: Logins) -> None:
    await _roles(connection, logins)
    await close_to_public(connection)
    reader = None if logins.reader_password is None else logins.reader
    await connection.execute(_RIGHTS, logins.writer, logins.query, logins.monitor, reader)
    # An owner who may not do these has fewer figures; `doctor` says what is missing.
    with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
        async with transaction(connection):
            await connection.execute(await connection.fetchval(_STATISTICS, logins.monitor))
    if await connection.fetchval(COUNTS_NO_STATEMENTS):
        with contextlib.suppress(*_NOT_TO_BE_HAD):
            async with transaction(connection):
                await connection.execute(_COUNT_STATEMENTS)


async def retire_reader(connection: Connection, logins: Logins) -> None:
    """The login of routers before there were tenants loses its rights in a database. As its owner."""
    if await connection.fetchval(_EXISTS, logins.reader):
        await connection.execute(_RETIRE, logins.reader)
