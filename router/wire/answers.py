"""The wire types of answers: what msgspec writes, and what /openapi.json describes."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from router.wire.complaints import ItemError

Count = Annotated[int, Meta(ge=0)]
Suspect = Annotated[
    int,
    Meta(
        ge=0,
        description="readings whose energy no device of that power can have, left out of sums; and counts that dip",
    ),
]
Tiers = Annotated[
    list[str],
    Meta(description="where the readings were found: hot, late (stored when their time was frozen), packed"),
]
Item = TypeVar("Item")


class Answer(Struct, frozen=True, rename="camel"):
    """What all answers have in common: camelCase, and null for what is not known."""


AsOf = Annotated[
    datetime | None,
    Meta(
        description="the answer has everything that was acknowledged before then: now, or of a replica; null: unknown"
    ),
]


class Dated(Answer, frozen=True, kw_only=True):
    """What is read from shards: it says of when it is, last of all."""

    as_of: AsOf = None


class Health(StrEnum):
    """How well AC energy becomes DC energy."""

    HEALTHY = "HEALTHY"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    ANOMALY = "ANOMALY"
    NO_METER_DATA = "NO_METER_DATA"
    NO_VEHICLE_DATA = "NO_VEHICLE_DATA"


class IngestAnswer(Answer, frozen=True):
    """Counts of readings; `errors` lists the first 100 that are rejected or in conflict with what is stored."""

    accepted: Count
    duplicates: Count
    conflicts: Count
    rejected: Count
    errors: list[ItemError]


class Page(Answer, Generic[Item], frozen=True):
    """One page of a list; `next` is the cursor of the following page, null on the last."""

    items: list[Item]
    next: str | None


class HistoryPage(Dated, Generic[Item], frozen=True):
    """One page of a device's readings; `next` is the cursor of the following page, null on the last.

    `archivedUntil`: older readings are archived; null when there are more pages, or nothing is.
    """

    items: list[Item]
    next: str | None
    tiers: Tiers
    archived_until: datetime | None


class Shards(Answer, frozen=True):
    """How many shards were asked, how many answered, and the names of the others."""

    total: Count
    ok: Count
    missing: list[str]


class DeviceList(Dated, Generic[Item], frozen=True):
    """One page of the devices that ever sent a reading, by ID, each with its newest one."""

    items: list[Item]
    next: str | None
    is_partial: bool
    shards: Shards


class Performance(Dated, frozen=True):
    """AC into a vehicle's chargers and DC out, over (from, to]. Energies in kWh.

    `efficiencyRatio` counts only the time in which a meter was paired; null without data of both sides.
    """

    vehicle_id: str
    from_: datetime = msgspec.field(name="from")
    to: datetime
    total_energy_consumed_ac: float | None
    total_energy_delivered_dc: float | None
    efficiency_ratio: float | None
    avg_battery_temp: float | None
    data_points: Count
    meter_data_points: Count
    suspect: Suspect
    coverage: Annotated[float, Meta(ge=0, le=1, description="share of the reporting intervals with a vehicle reading")]
    meter_ids: list[str]
    mixed_meter_ids: Annotated[
        list[str], Meta(description="meters that sent both energies and registers in the period")
    ]
    health_status: Health
    tiers: Tiers
    is_partial: bool
    shards: Shards


class FleetTotals(Answer, frozen=True):
    """AC, DC and their ratio within the pairings alone."""

    pairings: Count
    total_energy_consumed_ac: float | None
    total_energy_delivered_dc: float | None
    efficiency_ratio: float | None


class FleetInterval(Answer, frozen=True):
    """One interval (from, to] of the series."""

    from_: datetime = msgspec.field(name="from")
    to: datetime
    total_energy_consumed_ac: float | None
    total_energy_delivered_dc: float | None
    efficiency_ratio: float | None
    avg_battery_temp: float | None
    data_points: Count
    meter_data_points: Count
    suspect: Suspect


class Fleet(Dated, frozen=True):
    """All devices over (from, to]: every meter's AC, every vehicle's DC, and `paired` for what pairings cover."""

    from_: datetime = msgspec.field(name="from")
    to: datetime
    meters: Count
    vehicles: Count
    total_energy_consumed_ac: float | None
    total_energy_delivered_dc: float | None
    efficiency_ratio: float | None
    avg_battery_temp: float | None
    data_points: Count
    meter_data_points: Count
    suspect: Suspect
    mixed_meters: Annotated[int, Meta(ge=0, description="meters that sent both energies and registers in the period")]
    coverage: Annotated[float, Meta(ge=0, le=1, description="readings of vehicles / those expected of them")]
    health_status: Health
    paired: FleetTotals
    series: list[FleetInterval] | None
    tiers: Tiers
    is_partial: bool
    shards: Shards


class MoveInfo(Answer, frozen=True):
    """A bucket on its way. Totals are PostgreSQL's estimates; `pauseMs`: how long its writers waited at the fence."""

    move_id: int
    bucket: int
    source: str
    target: str
    phase: str
    started_at: datetime | None
    cut_over_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime
    rows_total: int | None
    rows_done: Count
    bytes_total: int | None
    bytes_done: Count
    delta_rows: Count
    copy_s: float
    lag_s: float | None
    passes: Count
    retries: Count
    pause_ms: float | None
    rows_verified: int | None
    healed: Count
    held: str | None
    last_error: str | None


class RebalanceInfo(Answer, frozen=True):
    """A plan that was started. `keepS`: seconds for which the source's copy is kept after a cutover."""

    rebalance_id: int
    state: str
    reason: str
    created_at: datetime
    ended_at: datetime | None
    note: str | None
    parallel_max: int
    bytes_per_s_max: int | None
    keep_s: float


class RunnerInfo(Answer, frozen=True):
    """Who carries moves out, or did last; `leads`: its lease has not run out."""

    name: str
    since: datetime
    silent_s: float
    leads: bool


class RebalanceStatus(Answer, frozen=True):
    """The newest rebalance and its moves; `idle`: why nothing is being done, if nothing is."""

    rebalance: RebalanceInfo | None
    moves: list[MoveInfo]
    runner: RunnerInfo | None
    idle: str | None


class ShardReady(Answer, frozen=True):
    """The breaker of a shard's writes, and whether its last write and its last read went through (true at first)."""

    breaker: str
    writes: bool
    reads: bool


class Ready(Answer, frozen=True):
    """Whether the router takes requests, and whether writes go through, for every shard."""

    ready: bool
    epoch: int
    shards: dict[str, ShardReady]


class Index(Answer, frozen=True):
    """What answers here, and the paths to begin with."""

    name: str
    version: str
    docs: str
    openapi: str
    health: str
    metrics: str


class Live(Answer, frozen=True):
    """The process answers."""

    live: bool


class ProblemEntry(Struct, frozen=True):
    """One thing that was refused: a parameter, a field (a JSON Pointer), or an item of a batch, by its index."""

    pointer: str
    code: str
    detail: str
    index: int | UnsetType = UNSET


class ProblemBody(Struct, frozen=True, rename="camel"):
    """RFC 9457 problem details. `errors`: what was refused; counts are of an ingest request, `missing` its shards."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str | UnsetType = UNSET
    errors: list[ProblemEntry] | UnsetType = UNSET
    accepted: Count | UnsetType = UNSET
    duplicates: Count | UnsetType = UNSET
    conflicts: Count | UnsetType = UNSET
    rejected: Count | UnsetType = UNSET
    unavailable: Count | UnsetType = UNSET
    missing: list[str] | UnsetType = UNSET
    is_partial: bool | UnsetType = UNSET
    shards: Shards | UnsetType = UNSET


_JSON: Final = "application/json"
_encoder: Final = msgspec.json.Encoder()


def encode(answer: Struct) -> bytes:
    """An answer as JSON; times in UTC with `Z`."""
    return _encoder.encode(answer)


def json_response(answer: Struct, status: int = 200) -> Response:
    """An answer as a response."""
    return encoded_response(encode(answer), status)


def encoded_response(answer: bytes, status: int = 200) -> Response:
    """The same of an answer that is JSON already."""
    return Response(answer, status, media_type=_JSON)
