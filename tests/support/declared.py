"""A kind that is not built in, with a field of each type."""

from typing import Final

from shards.kinds import Field, Kind, Role, Type

CHARGER: Final = Kind(
    "charger",
    "chargerId",
    "charger_id",
    "One interval of a charger.",
    (
        Field("kwh", "kwh", "kWh delivered", role=Role.ENERGY, minimum=0, maximum=1_000, required=True),
        Field("powerKw", "power_kw", "kW", role=Role.POWER, minimum=-500, maximum=500),
        Field("voltage", "voltage", "volts of the DC side", minimum=0, maximum=2_000),
        Field("phases", "phases", "phases in use", Type.INT, minimum=1, maximum=3),
        Field("plugged", "plugged", "whether a vehicle is plugged in", Type.BOOL),
        Field("state", "state", "what it does", Type.TEXT, choices=("idle", "charging", "faulted"), required=True),
    ),
)
