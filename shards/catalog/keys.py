"""API keys in the catalog: `vr_<id>_<secret>`, of which only a digest is stored."""

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import asyncpg

from shards.buckets import BucketRange
from shards.catalog.database import Catalog
from shards.catalog.tenants import Tenant

_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 8
_SECRET_BYTES: Final = 32  # 43 characters of base64
_KEY: Final = re.compile(rb"vr_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")

_LIST: Final = """
SELECT k.key_id, t.name AS tenant, k.scopes, k.prefix, k.rate, k.expires_at, k.created_at, k.revoked_at, k.label
FROM api_key AS k JOIN tenant AS t USING (tenant_id)
WHERE $1::text IS NULL OR t.name = $1
ORDER BY k.created_at, k.key_id
"""
_INSERT: Final = """
INSERT INTO api_key (key_id, digest, tenant_id, scopes, prefix, rate, expires_at, label)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING created_at
"""
_REVOKE: Final = "UPDATE api_key SET revoked_at = now() WHERE key_id = $1 AND revoked_at IS NULL"
_KNOWN: Final = "SELECT EXISTS (SELECT FROM api_key WHERE key_id = $1)"
_RING: Final = """
SELECT c.keys_epoch, EXISTS (SELECT FROM api_key) AS closed, k.key_id, k.digest, k.tenant_id, k.scopes, k.prefix,
    k.rate, k.expires_at, t.rate AS tenant_rate, t.name AS tenant, t.first_bucket, t.bucket_count
FROM cluster AS c
LEFT JOIN api_key AS k ON k.revoked_at IS NULL
LEFT JOIN tenant AS t USING (tenant_id)
"""


class Right(StrEnum):
    """What a key may do, its scope: store, read, or see and change the cluster."""

    INGEST = "ingest"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True)
class KeyRecord:
    """A key as it is listed; nothing of it lets anybody in."""

    key_id: str
    tenant: str
    scopes: tuple[str, ...]
    prefix: str | None
    rate: float | None
    expires_at: datetime | None
    created_at: datetime
    revoked_at: datetime | None
    label: str | None

    @property
    def state(self) -> str:
        """`valid`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= datetime.now(UTC) else "valid"


@dataclass(frozen=True)
class Wanted:
    """What a new key is to be."""

    scopes: Collection[Right]
    prefix: str | None = None
    rate: float | None = None
    expires_at: datetime | None = None
    label: str | None = None


@dataclass(frozen=True)
class Key:
    """A valid key as a router knows it. `expires_at`: seconds since 1970. Rates: readings a second.

    `pinned`: the buckets of its tenant alone; a router whose map has none for it must not take its readings.
    """

    key_id: str
    tenant_id: int
    tenant: str
    scopes: frozenset[str]
    prefix: str | None
    rate: float | None
    tenant_rate: float | None
    expires_at: float | None
    digest: bytes = field(repr=False)
    pinned: BucketRange | None = None


@dataclass(frozen=True)
class Keyring:
    """All keys that are not revoked, as of `epoch`. `closed`: a key was made once, so nobody enters without one."""

    epoch: int
    closed: bool
    keys: Mapping[str, Key]

    def find(self, given: bytes) -> Key | None:
        """The key that these bytes are, valid or expired; digests are compared in constant time."""
        match = _KEY.fullmatch(given)
        key = self.keys.get(match[1].decode()) if match else None
        digest = hashlib.sha256(given).digest()  # of an unknown ID too: the time tells nothing of what exists
        if hmac.compare_digest(digest, key.digest if key else digest) and key is not None:
            return key
        return None


async def ring(catalog: Catalog, deadline: float) -> Keyring:
    """What routers must know of keys, in one snapshot."""
    async with catalog.knowing.connection(deadline) as connection:
        records = await connection.fetch(_RING)
    keys = {record["key_id"]: _key(record) for record in records if record["key_id"] is not None}
    return Keyring(records[0]["keys_epoch"], records[0]["closed"], keys)


def _key(record: asyncpg.Record) -> Key:
    expires = record["expires_at"]
    return Key(
        record["key_id"],
        record["tenant_id"],
        record["tenant"],
        frozenset(record["scopes"]),
        record["prefix"],
        record["rate"],
        record["tenant_rate"],
        None if expires is None else expires.timestamp(),
        record["digest"],
        None if record["first_bucket"] is None else BucketRange(record["first_bucket"], record["bucket_count"]),
    )


def new_text() -> str:
    """The text of a key that does not exist yet."""
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    return f"vr_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


async def create(catalog: Catalog, tenant: Tenant, wanted: Wanted, text: str, deadline: float) -> tuple[KeyRecord, str]:
    """Make the key of this text; it is stored nowhere."""
    key_id = text.split("_")[1]
    digest = hashlib.sha256(text.encode()).digest()
    scopes = [right.value for right in Right if right in wanted.scopes]
    values = (tenant.tenant_id, scopes, wanted.prefix, wanted.rate, wanted.expires_at, wanted.label)
    async with catalog.pool.connection(deadline) as connection:
        created_at = await connection.fetchval(_INSERT, key_id, digest, *values)
    record = KeyRecord(
        key_id,
        tenant.name,
        tuple(scopes),
        wanted.prefix,
        wanted.rate,
        wanted.expires_at,
        created_at,
        None,
        wanted.label,
    )
    return record, text


async def listed(catalog: Catalog, tenant: str | None, deadline: float) -> list[KeyRecord]:
    """All keys (of one tenant), in the order of their making; revoked and expired ones too."""
    async with catalog.pool.connection(deadline) as connection:
        records = await connection.fetch(_LIST, tenant)
    return [KeyRecord(**{**dict(record), "scopes": tuple(record["scopes"])}) for record in records]


async def revoke(catalog: Catalog, key_id: str, deadline: float) -> bool | None:
    """Revoke a key for good: True now, False when it was revoked before, None when there is none."""
    async with catalog.pool.connection(deadline) as connection:
        if (await connection.execute(_REVOKE, key_id)) == "UPDATE 1":
            return True
        return False if await connection.fetchval(_KNOWN, key_id) else None
