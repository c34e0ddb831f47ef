"""What the ingest endpoints of the built-in kinds take."""

from typing import Final

from router.ingest.decode import Decoded, Items, Shape
from shards.kinds import KINDS, METER, VEHICLE

METER_SHAPE: Final = Shape([METER])
VEHICLE_SHAPE: Final = Shape([VEHICLE])
MIXED_SHAPE: Final = Shape(KINDS)


def meters(decoded: Decoded) -> Items:
    return decoded.readings.get(METER, [])


def vehicles(decoded: Decoded) -> Items:
    return decoded.readings.get(VEHICLE, [])
