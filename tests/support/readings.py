"""Readings for the tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2

START = datetime(2026, 5, 1, tzinfo=UTC)


def at(minute: float) -> str:
    """A timestamp some minutes after START."""
    return (START + timedelta(minutes=minute)).isoformat()


def meter(device: str = "M-1", minute: float = 0, kwh: float = 0.5, voltage: float = 230.0) -> dict[str, Any]:
    return {"meterId": device, "kwhConsumedAc": kwh, "voltage": voltage, "timestamp": at(minute)}


def register(device: str = "M-1", minute: float = 0, count: float = 1000.0) -> dict[str, Any]:
    """A reading of a meter that sends its count, and no voltage."""
    return {"meterId": device, "registerKwh": count, "timestamp": at(minute)}


def vehicle(
    device: str = "V-1", minute: float = 0, kwh: float = 0.4, soc: float = 50.0, temp: float = 25.0
) -> dict[str, Any]:
    return {
        "vehicleId": device,
        "soc": soc,
        "kwhDeliveredDc": kwh,
        "batteryTemp": temp,
        "timestamp": at(minute),
    }


async def ingest(client: httpx2.AsyncClient, readings: Any, path: str = "/v1/ingest", **options: Any) -> Any:
    """Post and return the answer's body, which must be a 200."""
    response = await client.post(path, json=readings, **options)
    assert response.status_code == 200, response.text
    return response.json()


def undated(answer: httpx2.Response) -> Any:
    """What an answer says, but for when that was."""
    body = answer.json()
    body.pop("asOf", None)
    return body
