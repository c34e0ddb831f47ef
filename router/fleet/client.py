"""Posting to a router as a careful device does: again when it is told to, never twice for the same result."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httpx2
import orjson
import stamina

ATTEMPTS_MAX: Final = 30
PATIENCE_S: Final = 60.0
_RETRIED: Final = frozenset({408, 429, *range(500, 600)})


@dataclass
class Tally:
    """What a router said to some readings."""

    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    failed: int = 0
    retries: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Readings that were sent."""
        return self.accepted + self.duplicates + self.conflicts + self.rejected + self.failed

    def add(self, other: "Tally") -> None:
        """Add the counts of another tally; at most 20 errors are kept."""
        self.accepted += other.accepted
        self.duplicates += other.duplicates
        self.conflicts += other.conflicts
        self.rejected += other.rejected
        self.failed += other.failed
        self.retries += other.retries
        self.errors = (self.errors + other.errors)[:20]


class RouterRefused(Exception):
    """The router said no, and will again."""


def refusal(response: httpx2.Response) -> RouterRefused:
    """What the router's problem says, or just the status."""
    detail = _body_of(response).get("detail", "no details")
    return RouterRefused(f"HTTP {response.status_code} from {response.request.url}: {detail}")


def is_passing(response: httpx2.Response) -> bool:
    """Whether the same request may be answered in a while."""
    return response.status_code in _RETRIED


def _body_of(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object of an answer; nothing when it is something else, as a balancer in between may send."""
    try:
        found = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _pause(response: httpx2.Response) -> float:
    """Retry-After in seconds, at most 5; one when it is missing, or a date."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), 5.0) if text.isascii() and text.isdigit() else 1.0


class _TryAgain(Exception):
    """The router is overloaded, or a shard is away."""

    def __init__(self, text: str, answer: dict[str, Any]) -> None:
        super().__init__(text)
        self.answer = answer


# What is retried shows in the tally; a log line for each attempt would bury it.
stamina.instrumentation.set_on_retry_hooks([])


class RouterClient:
    """One keep-alive client of one router."""

    def __init__(self, url: str, key: str | None = None, connections: int = 64) -> None:
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx2.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> httpx2.Response:
        """GET, without retries."""
        return await self._http.get(path)

    async def pair(self, vehicle_id: str, meter_id: str, valid_from: str) -> None:
        """Make a pairing, unless the meter already has one. RouterRefused when it is refused."""
        body = {"vehicleId": vehicle_id, "meterId": meter_id, "validFrom": valid_from}
        answer = await self._http.put("/v1/pairings", json=body)
        if answer.status_code not in {200, 201, 409}:
            raise refusal(answer)

    async def post(self, path: str, readings: Sequence[dict[str, Any]], attempts: int = ATTEMPTS_MAX) -> Tally:
        """Post readings as NDJSON until they are stored or invalid; after `attempts` the rest counts as failed."""
        body = b"\n".join(map(orjson.dumps, readings))
        tally = Tally()
        try:
            async for attempt in stamina.retry_context(
                on=(_TryAgain, httpx2.TransportError),
                attempts=attempts,
                timeout=PATIENCE_S,
                wait_initial=0.1,
                wait_max=2.0,
            ):
                with attempt:
                    tally.retries = attempt.num - 1
                    self._count(tally, await self._send(path, body))
        except (_TryAgain, httpx2.TransportError) as error:
            self._count(tally, error.answer if isinstance(error, _TryAgain) else {})
            settled = tally.accepted + tally.duplicates + tally.conflicts + tally.rejected
            tally.failed = max(len(readings) - settled, 0)
            tally.errors = [{"detail": str(error) or type(error).__name__}]
        return tally

    async def _send(self, path: str, body: bytes) -> dict[str, Any]:
        response = await self._http.post(path, content=body, headers={"Content-Type": "application/x-ndjson"})
        if response.status_code in _RETRIED:
            answer = _body_of(response)
            await asyncio.sleep(_pause(response) / 2)
            raise _TryAgain(str(answer.get("detail", f"HTTP {response.status_code}")), answer)
        if response.status_code not in {200, 422} or not _body_of(response):
            raise refusal(response)
        return _body_of(response)

    @staticmethod
    def _count(tally: Tally, answer: dict[str, Any]) -> None:
        tally.accepted = int(answer.get("accepted", 0))
        tally.duplicates = int(answer.get("duplicates", 0))
        tally.conflicts = int(answer.get("conflicts", 0))
        tally.rejected = int(answer.get("rejected", 0))
        tally.errors = answer.get("errors", [])[:20]
