"""Readings as the bulk load has them."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from shards.bulk.readings import Readings, Values
from shards.kinds import Type
from shards.storage.packing import Shape

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FORMS: dict[Type, Any] = {Type.FLOAT8: "f8", Type.FLOAT4: "f4", Type.INT: "i4", Type.BOOL: "?", Type.TEXT: object}


def readings_of(shape: Shape, rows: Iterable[tuple[datetime, str, Sequence[Any]]]) -> Readings:
    """(time, device, values) in the order in which they come."""
    listed = list(rows)
    devices = sorted({device for _, device, _ in listed})
    values = []
    for at, column in enumerate(shape.columns):
        found = [each[at] for _, _, each in listed]
        there = np.array([value is not None for value in found], np.bool_)
        data = np.array([0 if value is None else value for value in found], FORMS[column.type])
        values.append(Values(data, None if there.all() else there))
    times = [(moment - EPOCH) // timedelta(microseconds=1) for moment, _, _ in listed]
    places = [devices.index(device) for _, device, _ in listed]
    return Readings(devices, np.array(places, np.int32), np.array(times, np.int64), values)
