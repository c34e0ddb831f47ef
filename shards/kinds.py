"""The two kinds of device, and what their tables are called. Constants only."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

# (bucket, tenant, device id, timestamp, value, ...): the values in the order of Kind.values.
Row: TypeAlias = tuple[int, int, str, datetime, *tuple[float | None, ...]]
VALUES_AT: Final = 4  # where a row's values begin


@dataclass(frozen=True, eq=False)  # there are two objects of it: compared and hashed by identity, often
class Kind:
    """Names of a kind of device, its tables and its columns (the seed's names).

    `energy`: kWh of a reading's interval; `register`: the device's count in kWh, which it may send instead; it is the
    last of `values`.
    """

    name: str
    id_column: str
    values: tuple[str, ...]
    energy: str
    register: str | None = None

    @property
    def history(self) -> str:
        return f"{self.name}_telemetry_history"

    @property
    def status(self) -> str:
        return f"{self.name}_current_status"

    def __str__(self) -> str:
        return self.name


METER: Final = Kind(
    "meter", "meter_id", ("kwh_consumed_ac", "voltage", "register_kwh"), "kwh_consumed_ac", "register_kwh"
)
VEHICLE: Final = Kind("vehicle", "vehicle_id", ("soc", "kwh_delivered_dc", "battery_temp"), "kwh_delivered_dc")
KINDS: Final = (METER, VEHICLE)
ROOT_TABLES: Final = frozenset({kind.history for kind in KINDS} | {kind.status for kind in KINDS})
