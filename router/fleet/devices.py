"""A model of chargers and the vehicles at them: what each would report at a moment. Pure, and the same for one seed."""

import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

REPORT_INTERVAL: Final = timedelta(minutes=1)
TAPER_SOC: Final = 80.0  # above, a battery takes less and less
_HOUR_S: Final = 3600.0


@dataclass
class Bay:
    """A meter and the vehicle that charges behind it."""

    number: int
    capacity_kwh: float
    power_kw: float
    efficiency: float
    plug_in_hour: float
    clock_offset_h: float
    driven_share: float
    hot_sensor: bool
    soc: float
    meter_at: datetime
    vehicle_at: datetime

    @property
    def meter_id(self) -> str:
        return f"METER-{self.number:05d}"

    @property
    def vehicle_id(self) -> str:
        return f"VEHICLE-{self.number:05d}"


@dataclass(frozen=True)
class Fleet:
    """The bays; each has one meter and one vehicle."""

    bays: list[Bay]
    noise: random.Random


def new_fleet(devices: int, seed: int, faulty: float, start: datetime) -> Fleet:
    """Half meters, half vehicles (at least one bay), of which the share `faulty` wastes energy or has a hot sensor."""
    noise = random.Random(seed)
    bays = []
    for number in range(1, max(devices // 2, 1) + 1):
        broken = noise.random() < faulty
        bays.append(
            Bay(
                number=number,
                capacity_kwh=noise.choice((40.0, 58.0, 77.0, 100.0)),
                power_kw=noise.choice((7.4, 11.0, 22.0, 50.0)),
                efficiency=noise.uniform(0.55, 0.72) if broken else noise.uniform(0.88, 0.95),
                plug_in_hour=noise.gauss(18.0, 2.0) % 24,
                clock_offset_h=noise.uniform(-12, 12),
                driven_share=noise.uniform(0.2, 0.7),
                hot_sensor=broken and noise.random() < 0.3,
                soc=noise.uniform(15, 90),
                meter_at=start,
                vehicle_at=start,
            )
        )
    return Fleet(bays, noise)


def charging_power_kw(bay: Bay, moment: datetime) -> float:
    """DC power into the battery: constant, then tapering; none on the road. Vehicles live all around the globe."""
    seconds = moment.hour * _HOUR_S + moment.minute * 60 + moment.second
    hour = (seconds / _HOUR_S + bay.clock_offset_h) % 24
    plugged = (hour - bay.plug_in_hour) % 24 < 12
    if not plugged or bay.soc >= 100:
        return 0.0
    taper = 1.0 if bay.soc < TAPER_SOC else max((100 - bay.soc) / (100 - TAPER_SOC), 0.05)
    return bay.power_kw * bay.efficiency * taper


def vehicle_reading(fleet: Fleet, bay: Bay, moment: datetime) -> dict[str, Any]:
    """What the vehicle reports for the time since its last report; charges or drives it."""
    hours = max((moment - bay.vehicle_at).total_seconds(), 0) / _HOUR_S
    power = charging_power_kw(bay, moment)
    delivered = power * hours
    used = 0.0 if power else bay.capacity_kwh * bay.driven_share * hours / 12
    bay.soc = min(max(bay.soc + (delivered - used) / bay.capacity_kwh * 100, 5.0), 100.0)
    bay.vehicle_at = moment
    temperature = 85.0 if bay.hot_sensor else 22 + power * 0.25 + 3 * math.sin(bay.number) + fleet.noise.gauss(0, 0.3)
    return {
        "vehicleId": bay.vehicle_id,
        "soc": round(bay.soc, 2),
        "kwhDeliveredDc": round(delivered, 6),
        "batteryTemp": round(temperature, 2),
        "timestamp": wire_time(moment),
    }


def meter_reading(fleet: Fleet, bay: Bay, moment: datetime) -> dict[str, Any]:
    """What the meter reports for the time since its last report."""
    hours = max((moment - bay.meter_at).total_seconds(), 0) / _HOUR_S
    bay.meter_at = moment
    return {
        "meterId": bay.meter_id,
        "kwhConsumedAc": round(charging_power_kw(bay, moment) / bay.efficiency * hours, 6),
        "voltage": round(fleet.noise.gauss(230, 1.5), 2),
        "timestamp": wire_time(moment),
    }


def wire_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
