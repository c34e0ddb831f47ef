"""Kinds and groups of fields that come ready-made, off until somebody adds them. Declarations only.

Units are UCUM's. Positions are personal data wherever a vehicle is somebody's: see shards/README.
"""

from collections.abc import Mapping
from typing import Final

from shards.kinds import ENERGY_MAX_KWH, REGISTER_MAX_KWH, Direction, Field, Kind, Role, Type

_POWER_MAX_KW: Final = 100_000.0
_CURRENT_MAX_A: Final = 100_000.0
# OCPP 2.0.1's ChargingStateEnumType, and what a vehicle itself may know.
_CHARGE_STATES: Final = ("idle", "connected", "charging", "suspended_ev", "suspended_evse", "complete", "faulted")


def _field(name: str, column: str, unit: str, description: str, limits: tuple[float, float], role: Role) -> Field:
    low, high = limits
    return Field(name, column, description, Type.FLOAT8, role, low, high, unit=unit, kept=True)


def _power(name: str, column: str, description: str, lowest: float = -_POWER_MAX_KW) -> Field:
    return _field(name, column, "kW", description, (lowest, _POWER_MAX_KW), Role.POWER)


def _current(description: str) -> Field:
    return _field("currentA", "current_a", "A", description, (-_CURRENT_MAX_A, _CURRENT_MAX_A), Role.NONE)


def _states(description: str, choices: tuple[str, ...]) -> Field:
    return Field("chargeState", "charge_state", description, Type.TEXT, choices=choices, kept=True)


def _energy(name: str, column: str, description: str, direction: Direction = Direction.IN) -> Field:
    return Field(
        name,
        column,
        description,
        Type.FLOAT8,
        Role.ENERGY,
        0.0,
        ENERGY_MAX_KWH,
        unit="kWh",
        direction=direction,
        kept=True,
    )


# Kind -> name of the group -> its fields.
EXTENSIONS: Final[Mapping[str, Mapping[str, tuple[Field, ...]]]] = {
    "meter": {
        "grid": (
            _power("powerKw", "power_kw", "active power, negative when it is fed back"),
            _current("current, of the phases together"),
            _field("frequencyHz", "frequency_hz", "Hz", "frequency of the grid", (0.0, 1_000.0), Role.NONE),
        ),
        "export": (_energy("kwhExportedAc", "kwh_exported_ac", "kWh fed back in the interval", Direction.OUT),),
    },
    "vehicle": {
        "charging": (
            _power("powerKw", "power_kw", "power at the battery, negative when it is drawn from it"),
            _current("current at the battery"),
            _states("what its charging is doing", _CHARGE_STATES),
            _power("chargePowerKw", "charge_power_kw", "power that the charger delivers", 0.0),
        ),
        "driving": (
            _field("odometerKm", "odometer_km", "km", "distance since it was built", (0.0, 10_000_000.0), Role.NONE),
            _field("outsideTemp", "outside_temp", "Cel", "degrees Celsius outside", (-90.0, 70.0), Role.NONE),
        ),
        "position": (
            _field("latitude", "latitude", "deg", "WGS 84, north; personal data", (-90.0, 90.0), Role.POSITION),
            _field("longitude", "longitude", "deg", "WGS 84, east; personal data", (-180.0, 180.0), Role.POSITION),
        ),
    },
}

READY_MADE: Final[Mapping[str, Kind]] = {
    "charger": Kind(
        "charger",
        "chargerId",
        "charger_id",
        "One interval of a charging point: its energy, or its meter's count at the end; exactly one of them.",
        (
            _energy("kwhDelivered", "kwh_delivered", "kWh of the interval that ends at `timestamp`"),
            Field(
                "registerKwh",
                "register_kwh",
                "cumulative count in kWh at `timestamp`, instead of kwhDelivered",
                Type.FLOAT8,
                Role.REGISTER,
                0.0,
                REGISTER_MAX_KWH,
                unit="kWh",
                kept=True,
            ),
            _power("powerKw", "power_kw", "power to the vehicle, negative when it gives"),
            _power("offeredKw", "offered_kw", "power that the vehicle may take", 0.0),
            _field("voltage", "voltage", "V", "volts", (0.0, 1_000_000.0), Role.NONE),
            _current("current to the vehicle"),
            _states("what the connector is doing", ("available", *_CHARGE_STATES[1:], "unavailable")),
            _field(
                "cableTemp",
                "cable_temp",
                "Cel",
                "degrees Celsius of the cable or plug",
                (-60.0, 200.0),
                Role.TEMPERATURE,
            ),
        ),
    ),
    "inverter": Kind(
        "inverter",
        "inverterId",
        "inverter_id",
        "One interval of an inverter of solar panels or a battery.",
        (
            _energy(
                "kwhGenerated", "kwh_generated", "kWh given in the interval that ends at `timestamp`", Direction.OUT
            ),
            _energy("kwhTaken", "kwh_taken", "kWh taken in the interval, to fill a battery or for itself"),
            _power("powerKw", "power_kw", "AC power, negative when it takes"),
            _power("dcPowerKw", "dc_power_kw", "power of the DC side, negative when it fills a battery"),
            _field("voltage", "voltage", "V", "volts of the AC side", (0.0, 1_000_000.0), Role.NONE),
            _field("dcVoltage", "dc_voltage", "V", "volts of the DC side", (0.0, 1_000_000.0), Role.NONE),
            _field("frequencyHz", "frequency_hz", "Hz", "frequency of the grid", (0.0, 1_000.0), Role.NONE),
            _field("soc", "soc", "%", "state of charge of its battery, percent", (0.0, 100.0), Role.LEVEL),
            _field("inverterTemp", "inverter_temp", "Cel", "degrees Celsius inside", (-60.0, 200.0), Role.TEMPERATURE),
            Field(
                "inverterState",
                "inverter_state",
                "what it is doing",
                Type.TEXT,
                choices=("off", "standby", "starting", "running", "throttled", "faulted"),
                kept=True,
            ),
        ),
    ),
}
