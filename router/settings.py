"""Every setting of a router. The one place that reads the environment (prefix VOLTROUTE_)."""

import os
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from shards.cluster.replicas import ReplicaRules
from shards.postgres.dsn import REDACTED, redact
from shards.postgres.options import PoolLimits

PREFIX: Final = "VOLTROUTE_"
_OTHER_VARIABLES: Final = {
    f"{PREFIX}URL",
    f"{PREFIX}KEY",
    f"{PREFIX}TEST_POSTGRES",
}  # of the commands that post, of the tests
Seconds = Annotated[float, Field(gt=0, le=3600)]


class LogFormat(StrEnum):
    """AUTO: console on a terminal, JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class UnknownFields(StrEnum):
    """What becomes of a reading with fields that nobody declared."""

    REFUSE = "refuse"
    IGNORE = "ignore"


class Settings(BaseSettings):
    """Read from the environment, then from what the command line overrides. Units come last in the names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    catalog_dsn: SecretStr | None = Field(None, description="PostgreSQL URL of the catalog; or where it is: @FILE")
    data: str | None = Field(None, description="folder of an embedded cluster")
    pg_bin: str | None = Field(None, description="folder with initdb and postgres, for embedded clusters")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0: any free one")

    workers: int = Field(
        1, ge=1, le=64, description="processes on the port; connections, pools, queues and bodies are shared out"
    )
    worker_silent_s: Seconds = Field(
        30, description="a worker that answers its supervisor nothing for this long is killed and started again"
    )

    insecure: bool = Field(False, description="serve a cluster without keys on more than loopback")
    metrics_open: bool = Field(False, description="/metrics asks for no key")
    tls_certificate: str | None = Field(None, description="file with the certificate chain (PEM): then HTTPS")
    tls_key: str | None = Field(None, description="file with the private key of tls_certificate, unless it is in there")

    allowed_hosts: str = Field(
        "", description="hosts, comma-separated, that requests may name; loopback: its own names"
    )
    cors_origins: str = Field("", description="origins, comma-separated, whose pages may call; * is any")
    connections_max: int = Field(4_096, ge=16, description="client connections; further ones are answered 503")
    header_bytes_max: int = Field(32_768, ge=1_024, description="request line and headers of a request; then 431")
    header_timeout_s: Seconds = Field(
        10, description="from a connection, or a request's first byte, to its last header"
    )
    idle_timeout_s: Seconds = Field(75, description="between two requests of a connection")
    write_timeout_s: Seconds = Field(30, description="a client that reads nothing of its answer is cut off after this")
    body_idle_s: Seconds = Field(10, description="without a byte of a request's body; then 408")
    body_rate_min: int = Field(
        1_000, ge=1, description="bytes a second of a body, after its first body_idle_s; then 408"
    )

    pool_min: int = Field(5, ge=0, le=1000, description="connections kept open, for each shard and login")
    pool_max: int = Field(20, ge=1, le=1000, description="connections at most, for each shard and login")
    pool_idle_s: Seconds = Field(30, description="an idle connection above pool_min is closed after this")
    connect_timeout_s: Seconds = Field(2, description="to open a connection")
    acquire_timeout_s: Seconds = Field(2, description="to get a connection from a pool")

    failover_hold_s: float = Field(
        5,
        ge=0,
        le=300,
        description="requests wait so long, within their time, for a server that restarts or fails over",
    )

    ingest_timeout_s: Seconds = Field(5, description="from the last byte of an ingest request to its answer")
    query_timeout_s: Seconds = Field(10, description="from the first byte of any other request to its answer")
    batch_readings_max: int = Field(2_000, ge=1, le=50_000, description="readings in one transaction")
    batches_in_flight_max: int = Field(
        1,
        ge=1,
        le=64,
        description="transactions at a time, for each shard and kind: of small requests, and of large ones",
    )
    queue_readings_max: int = Field(
        50_000,
        ge=1,
        description="readings waiting, for each shard and kind, of small requests and of large ones; then 429",
    )

    queue_wait_max_s: Seconds = Field(
        0.25, description="readings that wait longer than this for their transaction: new requests get 429"
    )

    body_bytes_max: int = Field(8 * 2**20, ge=1024, description="a request body, also after decompression")
    bodies_bytes_max: int = Field(256 * 2**20, ge=1024, description="all request bodies being worked on; then 429")
    readings_max: int = Field(20_000, ge=1, description="readings in one request")
    direct_path: bool = Field(
        True, description="answer small POSTs of readings without ASGI; off: to compare, or in doubt"
    )
    unknown_fields: UnknownFields = Field(
        UnknownFields.REFUSE, description="fields that nobody declared: refuse the reading, or ignore (and count) them"
    )
    reading_age_max_days: float = Field(10_958, gt=0, le=36_525, description="older readings are refused")
    reading_ahead_max_s: float = Field(300, ge=0, le=86_400, description="readings further in the future are refused")

    efficiency_warning: float = Field(0.85, ge=0, le=1, description="below: healthStatus WARNING")
    efficiency_critical: float = Field(0.75, ge=0, le=1, description="below: healthStatus CRITICAL")

    replica_lag_max_s: float = Field(
        10, ge=0, le=3600, description="history and analytics are read from a replica that is behind by no more"
    )
    zone: str | None = Field(None, description="where this router is: replicas of the same zone are read first")

    cache_file: str | None = Field(
        None, description="file in which shards, map and keys are kept, to start from while the catalog is away"
    )

    redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey that keeps current statuses, or where its URL is: @FILE (extra redis)"
    )
    redis_timeout_s: Seconds = Field(0.1, description="for a command to Redis; then the shard is asked")
    status_ttl_s: Seconds = Field(10, description="a status is kept so long at most")

    map_poll_s: Seconds = Field(2, description="between two looks at the catalog's epoch")
    runner: bool = Field(True, description="stand for election as leader, who moves buckets and makes partitions")
    partitions_s: Seconds = Field(600, description="between two looks at whether partitions are ahead of time")
    lifecycle_s: Seconds = Field(600, description="between two looks at what is due of history's lifecycle")
    rollups_s: Seconds = Field(60, description="between two times that rollups are brought up to date")
    drain_delay_s: float = Field(0, ge=0, le=600, description="readyz says 503 for this long before a stop begins")
    drain_timeout_s: Seconds = Field(10, description="for requests in progress when stopping")

    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="least level that is logged")
    log_format: LogFormat = Field(LogFormat.AUTO, description="auto, json or console")

    traces_ratio: float | None = Field(
        None, ge=0, le=1, description="traces kept of requests that bring none; none: no traces (extra otel)"
    )

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """Environment variables with our prefix that no setting reads: misspelt, most likely."""
        known = {PREFIX + name.upper() for name in cls.model_fields} | _OTHER_VARIABLES
        return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)

    def pool_limits(self) -> PoolLimits:
        """Limits of the pools to the shards."""
        return PoolLimits(
            min_size=min(self.pool_min, self.pool_max),
            max_size=self.pool_max,
            idle_s=self.pool_idle_s,
            connect_timeout_s=self.connect_timeout_s,
            acquire_timeout_s=self.acquire_timeout_s,
            hold_s=self.failover_hold_s,
            statement_timeout_s=self.ingest_timeout_s,
        )

    def replica_rules(self) -> ReplicaRules:
        """Which replicas are read."""
        return ReplicaRules(self.replica_lag_max_s, self.zone)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the router."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")

    def origins(self) -> tuple[str, ...]:
        """Origins whose pages may call from a browser; none unless they are named."""
        return tuple(origin.strip() for origin in self.cors_origins.split(",") if origin.strip())

    def hosts(self) -> frozenset[str] | None:
        """Hosts that requests may name: the configured ones, on loopback its own names too; None: any."""
        named = {host.strip().lower() for host in self.allowed_hosts.split(",") if host.strip()}
        if self.is_loopback:
            return frozenset({"127.0.0.1", "localhost", "[::1]", *named})
        return frozenset(named) or None

    def shown(self, name: str) -> object:
        """A setting's value as it may be shown: secrets redacted."""
        value = getattr(self, name)
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
            return _redis_shown(text) if name == "redis_url" else redact(text)
        return value


def _redis_shown(url: str) -> str:
    """Its server. A password with a character that means something in a URL makes another URL of it: all is hidden."""
    if url.startswith(("@", "env:")):
        return url
    login, at, rest = url.rpartition("@")
    scheme, separator, server = (login if at else url).partition("://")
    if not separator or scheme not in {"redis", "rediss", "unix"}:
        return REDACTED
    shown = rest if at else server
    return f"{scheme}://{REDACTED + '@' if at else ''}{shown.partition('?')[0]}"
