"""What the ingest endpoints of the built-in kinds take."""

from typing import Final

from router.ingest.shapes import Decoded, Items, Shape
from router.wire.readings import Cells
from shards.kinds import KINDS, METER, VEHICLE, Kind

METER_SHAPE: Final = Shape([METER])
VEHICLE_SHAPE: Final = Shape([VEHICLE])
MIXED_SHAPE: Final = Shape(KINDS)


def of(decoded: Decoded, kind: Kind) -> list[tuple[int, Cells]]:
    """(index, cells) of a kind's readings."""
    items = decoded.readings.get(kind, Items([], []))
    return list(zip(items.indexes, items.cells, strict=True))


def meters(decoded: Decoded) -> list[tuple[int, Cells]]:
    return of(decoded, METER)


def vehicles(decoded: Decoded) -> list[tuple[int, Cells]]:
    return of(decoded, VEHICLE)
