"""From AC and DC energy to an efficiency and a verdict. Pure."""

from datetime import timedelta
from typing import Final

from router.wire.answers import Health
from shards.window import Window

_MINUTE: Final = timedelta(minutes=1)
ANOMALY_ABOVE: Final = 1.02  # more DC than AC, beyond the meters' tolerance


def ratio(ac_kwh: float, dc_kwh: float, meter_readings: int, vehicle_readings: int) -> float | None:
    """DC / AC; None when either side has no reading, or no AC energy flowed."""
    if not meter_readings or not vehicle_readings or ac_kwh <= 0:
        return None
    return dc_kwh / ac_kwh


def health(
    efficiency: float | None,
    dc_kwh: float,
    meter_readings: int,
    vehicle_readings: int,
    warning: float,
    critical: float,
) -> Health:
    """Verdict on an efficiency. Without AC readings: NO_METER_DATA, never 0 or infinity."""
    if not meter_readings:
        return Health.NO_METER_DATA
    if not vehicle_readings:
        return Health.NO_VEHICLE_DATA
    if efficiency is None:  # both sides report, and no AC flowed: then no DC may have, either
        return Health.ANOMALY if dc_kwh > 0 else Health.HEALTHY
    if efficiency > ANOMALY_ABOVE:
        return Health.ANOMALY
    if efficiency < critical:
        return Health.CRITICAL
    return Health.WARNING if efficiency < warning else Health.HEALTHY


def coverage(readings: int, per_minute: float, period: Window) -> float:
    """Share of the expected readings that are there; at least one is expected of each device."""
    expected = per_minute * max((period.end - period.start) / _MINUTE, 1)
    return min(readings / expected, 1.0) if expected else 0.0
